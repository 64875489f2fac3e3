//! Reading checkpoints: GGUF, safetensors and npy.

use crate::build::{Build, Describe};
use crate::error::{Error, Result};
use crate::mlx;
use crate::place::placed;
use crate::risk::Risks;
use crate::slot::Home;
use crate::tensor::{evaluate, Tensor};
use mlx_rs::Array;
use mlx_sys::{mlx_io_gguf, mlx_vector_string};
use std::ffi::{c_char, c_int, CStr, CString};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

mod check;

const OP: &str = "Load";

/// What a file holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Tensors by name; an npy file's only one is called `array`. Those of safetensors and npy are
    /// lazy: their elements are read when they are first used.
    pub tensors: Vec<(String, Tensor)>,
    /// Metadata by name.
    pub metadata: Vec<(String, Metadata)>,
}

/// A value of a file's metadata.
#[derive(Debug)]
pub enum Metadata {
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// Numbers: a scalar, or a vector.
    Numbers(Tensor),
}

/// Loads a file by its extension, on the thread that holds `home`.
///
/// # Errors
/// [`Error::Argument`] for another extension, [`Error::File`] for what cannot be read.
pub(crate) fn load(path: &str, home: &Arc<Home>) -> Result<Loaded> {
    let extension = Path::new(path).extension().and_then(|e| e.to_str()).unwrap_or_default();
    type Check = fn(File) -> io::Result<()>;
    type Read = fn(&CStr, &Arc<Home>) -> Result<Loaded>;
    let (check, read): (Check, Read) = match extension {
        "gguf" => (check::gguf, gguf),
        // MLX's reader checks the header itself, but for the sizes.
        "safetensors" => (|_| Ok(()), safetensors),
        "npy" => (check::npy, npy),
        _ => {
            return Err(Error::Argument {
                op: OP,
                what: "file name",
                expected: "one ending in .gguf, .safetensors or .npy".into(),
                got: format!("{path:?}"),
            })
        }
    };
    let unreadable = |reason: String| Error::File { path: path.to_owned(), reason };
    // MLX's own message for a missing file does not say so.
    File::open(path).and_then(check).map_err(|e| unreadable(e.to_string()))?;
    let name = CString::new(path).map_err(|e| unreadable(e.to_string()))?;
    read(&name, home).map_err(|error| match error {
        Error::Mlx { message, .. } | Error::MlxArgument { message, .. } => unreadable(message),
        other => other,
    })
}

fn npy(path: &CStr, home: &Arc<Home>) -> Result<Loaded> {
    // SAFETY: the path is NUL-terminated. Files are read on the CPU: a GPU stream cannot.
    let array =
        on_cpu(home).array(OP, |res, s| unsafe { mlx_sys::mlx_load(res, path.as_ptr(), s) })?;
    let tensor = Tensor::lazy(placed(array, home)?, home, Risks::one());
    Ok(Loaded { tensors: vec![("array".into(), tensor)], metadata: Vec::new() })
}

fn safetensors(path: &CStr, home: &Arc<Home>) -> Result<Loaded> {
    let build = on_cpu(home);
    build.set_default();
    let mut arrays = ArrayMap::new();
    let mut texts = TextMap::new();
    // SAFETY: live maps, a NUL-terminated path and a live stream.
    mlx::check(OP, unsafe {
        mlx_sys::mlx_load_safetensors(&mut arrays.0, &mut texts.0, path.as_ptr(), build.stream())
    })?;
    let tensors = arrays
        .entries()?
        .into_iter()
        .map(|(name, array)| {
            check::shape(array.shape_of())
                .map_err(|e| Error::Mlx { op: OP, message: format!("{name}: {e}") })?;
            Ok((name, Tensor::lazy(placed(array, home)?, home, Risks::one())))
        })
        .collect::<Result<_>>()?;
    let metadata = texts.entries()?.into_iter().map(|(name, text)| (name, Metadata::Text(text)));
    Ok(Loaded { tensors, metadata: metadata.collect() })
}

fn gguf(path: &CStr, home: &Arc<Home>) -> Result<Loaded> {
    let build = on_cpu(home);
    build.set_default();
    // SAFETY: makes an empty object.
    let mut file = Gguf(unsafe { mlx_sys::mlx_io_gguf_new() });
    // SAFETY: a live object, a NUL-terminated path and a live stream.
    mlx::check(OP, unsafe { mlx_sys::mlx_load_gguf(&mut file.0, path.as_ptr(), build.stream()) })?;

    let arrays = file
        .names(mlx_sys::mlx_io_gguf_get_keys)?
        .into_iter()
        .map(|name| file.array(&name, mlx_sys::mlx_io_gguf_get_array).map(|array| (name, array)))
        .collect::<Result<Vec<_>>>()?;
    // Elements are read by the loader but partly unpacked lazily, and several outputs of one node
    // must not leave this thread before they are ready.
    evaluate(OP, arrays.iter().map(|(_, array)| array))?;
    let arrays = arrays
        .into_iter()
        .map(|(name, array)| placed(array, home).map(|array| (name, array)))
        .collect::<Result<Vec<_>>>()?;
    evaluate(OP, arrays.iter().map(|(_, array)| array))?;
    let metadata = file
        .names(mlx_sys::emily_gguf_metadata_keys)?
        .into_iter()
        .map(|name| file.metadata(&name, home).map(|value| (text(&name), value)))
        .collect::<Result<Vec<_>>>()?;
    let tensors =
        arrays.into_iter().map(|(name, array)| (text(&name), Tensor::ready(array, home))).collect();
    Ok(Loaded { tensors, metadata })
}

/// The streams of a slot with every node on the CPU.
fn on_cpu(home: &Arc<Home>) -> Build {
    home.build().on_cpu()
}

fn text(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

/// An mlx-c GGUF object.
struct Gguf(mlx_io_gguf);

impl Gguf {
    fn names(
        &self,
        list: unsafe extern "C" fn(*mut mlx_vector_string, mlx_io_gguf) -> c_int,
    ) -> Result<Vec<CString>> {
        let mut names = Texts::new();
        // SAFETY: both functions fill the live vector that they are given.
        mlx::check(OP, unsafe { list(&mut names.0, self.0) })?;
        names.to_vec()
    }

    fn array(
        &self,
        name: &CStr,
        get: unsafe extern "C" fn(*mut mlx_sys::mlx_array, mlx_io_gguf, *const c_char) -> c_int,
    ) -> Result<Array> {
        // SAFETY: an empty handle, which the call fills.
        let mut made = unsafe { mlx_sys::mlx_array_new() };
        // SAFETY: live handles and a NUL-terminated name.
        let status = unsafe { get(&mut made, self.0, name.as_ptr()) };
        // SAFETY: the handle is ours alone.
        let array = unsafe { Array::from_ptr(made) };
        mlx::check(OP, status).map(|()| array)
    }

    fn metadata(&self, name: &CStr, home: &Arc<Home>) -> Result<Metadata> {
        if self.has(name, mlx_sys::mlx_io_gguf_has_metadata_string)? {
            // SAFETY: an empty string, which the call fills; freed below.
            let mut value = unsafe { mlx_sys::mlx_string_new() };
            // SAFETY: live objects and a NUL-terminated name.
            let status = unsafe {
                mlx_sys::mlx_io_gguf_get_metadata_string(&mut value, self.0, name.as_ptr())
            };
            // SAFETY: a live string's text is NUL-terminated.
            let got = mlx::check(OP, status)
                .map(|()| text(unsafe { CStr::from_ptr(mlx_sys::mlx_string_data(value)) }));
            // SAFETY: ours and not used again.
            unsafe { mlx_sys::mlx_string_free(value) };
            got.map(Metadata::Text)
        } else if self.has(name, mlx_sys::mlx_io_gguf_has_metadata_vector_string)? {
            let mut values = Texts::new();
            // SAFETY: live objects and a NUL-terminated name.
            mlx::check(OP, unsafe {
                mlx_sys::mlx_io_gguf_get_metadata_vector_string(
                    &mut values.0,
                    self.0,
                    name.as_ptr(),
                )
            })?;
            Ok(Metadata::Texts(values.to_vec()?.iter().map(|value| text(value)).collect()))
        } else {
            let array = self.array(name, mlx_sys::mlx_io_gguf_get_metadata_array)?;
            evaluate(OP, [&array])?;
            Ok(Metadata::Numbers(Tensor::ready(array, home)))
        }
    }

    fn has(
        &self,
        name: &CStr,
        ask: unsafe extern "C" fn(*mut bool, mlx_io_gguf, *const c_char) -> c_int,
    ) -> Result<bool> {
        let mut there = false;
        // SAFETY: a live object and a NUL-terminated name.
        mlx::check(OP, unsafe { ask(&mut there, self.0, name.as_ptr()) }).map(|()| there)
    }
}

impl Drop for Gguf {
    fn drop(&mut self) {
        // SAFETY: ours and not used again.
        unsafe { mlx_sys::mlx_io_gguf_free(self.0) };
    }
}

/// An mlx-c vector of texts.
struct Texts(mlx_vector_string);

impl Texts {
    fn new() -> Self {
        // SAFETY: makes an empty vector.
        Texts(unsafe { mlx_sys::mlx_vector_string_new() })
    }

    fn to_vec(&self) -> Result<Vec<CString>> {
        // SAFETY: the vector is live.
        let count = unsafe { mlx_sys::mlx_vector_string_size(self.0) };
        (0..count)
            .map(|index| {
                let mut value = std::ptr::null_mut();
                // SAFETY: an index inside the live vector.
                mlx::check(OP, unsafe {
                    mlx_sys::mlx_vector_string_get(&mut value, self.0, index)
                })?;
                // SAFETY: the vector's texts are NUL-terminated and live as long as it does.
                Ok(unsafe { CStr::from_ptr(value) }.to_owned())
            })
            .collect()
    }
}

impl Drop for Texts {
    fn drop(&mut self) {
        // SAFETY: ours and not used again.
        unsafe { mlx_sys::mlx_vector_string_free(self.0) };
    }
}

/// Status of an mlx-c iterator that has come to its end.
const AT_END: c_int = 2;

/// An mlx-c map of arrays.
struct ArrayMap(mlx_sys::mlx_map_string_to_array);

impl ArrayMap {
    fn new() -> Self {
        // SAFETY: makes an empty map.
        ArrayMap(unsafe { mlx_sys::mlx_map_string_to_array_new() })
    }

    fn entries(&self) -> Result<Vec<(String, Array)>> {
        // SAFETY: the map outlives its iterator, which is freed below.
        let iterator = unsafe { mlx_sys::mlx_map_string_to_array_iterator_new(self.0) };
        let mut entries = Vec::new();
        let ended = loop {
            let mut name = std::ptr::null();
            // SAFETY: an empty handle, which the call fills.
            let mut made = unsafe { mlx_sys::mlx_array_new() };
            // SAFETY: live objects.
            let status = unsafe {
                mlx_sys::mlx_map_string_to_array_iterator_next(&mut name, &mut made, iterator)
            };
            // SAFETY: the handle is ours alone.
            let array = unsafe { Array::from_ptr(made) };
            match status {
                // SAFETY: the map's keys are NUL-terminated and live as long as it does.
                0 => entries.push((text(unsafe { CStr::from_ptr(name) }), array)),
                AT_END => break Ok(()),
                _ => break Err(mlx::last_error(OP)),
            }
        };
        // SAFETY: ours and not used again.
        unsafe { mlx_sys::mlx_map_string_to_array_iterator_free(iterator) };
        ended.map(|()| entries)
    }
}

impl Drop for ArrayMap {
    fn drop(&mut self) {
        // SAFETY: ours and not used again.
        unsafe { mlx_sys::mlx_map_string_to_array_free(self.0) };
    }
}

/// An mlx-c map of texts.
struct TextMap(mlx_sys::mlx_map_string_to_string);

impl TextMap {
    fn new() -> Self {
        // SAFETY: makes an empty map.
        TextMap(unsafe { mlx_sys::mlx_map_string_to_string_new() })
    }

    fn entries(&self) -> Result<Vec<(String, String)>> {
        // SAFETY: the map outlives its iterator, which is freed below.
        let iterator = unsafe { mlx_sys::mlx_map_string_to_string_iterator_new(self.0) };
        let mut entries = Vec::new();
        let ended = loop {
            let (mut name, mut value) = (std::ptr::null(), std::ptr::null());
            // SAFETY: live objects.
            match unsafe {
                mlx_sys::mlx_map_string_to_string_iterator_next(&mut name, &mut value, iterator)
            } {
                0 => {
                    // SAFETY: the map's texts are NUL-terminated and live as long as it does.
                    let entry = unsafe { (CStr::from_ptr(name), CStr::from_ptr(value)) };
                    entries.push((text(entry.0), text(entry.1)));
                }
                AT_END => break Ok(()),
                _ => break Err(mlx::last_error(OP)),
            }
        };
        // SAFETY: ours and not used again.
        unsafe { mlx_sys::mlx_map_string_to_string_iterator_free(iterator) };
        ended.map(|()| entries)
    }
}

impl Drop for TextMap {
    fn drop(&mut self) {
        // SAFETY: ours and not used again.
        unsafe { mlx_sys::mlx_map_string_to_string_free(self.0) };
    }
}
