//! The devices of this host.

use crate::error::{Error, Result};
use crate::mlx;
use std::ffi::{c_char, CStr, CString};
use std::sync::OnceLock;

/// What is known of a device.
#[derive(Clone, Debug, PartialEq)]
pub enum Property {
    /// A name or version.
    Text(String),
    /// Bytes or a count.
    Size(usize),
}

/// What a stream computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor.
    Cpu,
    /// Metal or CUDA.
    Gpu,
}

impl Device {
    /// The name in Elixir.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Gpu => "gpu",
        }
    }

    /// Whether this host has such a device. A build for a GPU on a host without one has none: MLX's
    /// own `is_available` speaks of the build, its device count of the host.
    pub fn is_present(self) -> bool {
        static GPU: OnceLock<bool> = OnceLock::new();
        match self {
            Device::Cpu => true,
            Device::Gpu => *GPU.get_or_init(|| {
                mlx::install_error_handler();
                let mut count = 0;
                let gpu = mlx_sys::mlx_device_type__MLX_GPU;
                // SAFETY: writes an int; the error handler is ours.
                let status = unsafe { mlx_sys::mlx_device_count(&mut count, gpu) };
                mlx::check("Device", status).is_ok() && count > 0
            }),
        }
    }

    /// The device that work goes to when nobody says otherwise.
    pub fn preferred() -> Device {
        if Device::Gpu.is_present() {
            Device::Gpu
        } else {
            Device::Cpu
        }
    }

    /// Whether the host cannot read what is computed there: so it is with CUDA. Metal's memory is the
    /// host's own.
    pub fn has_memory_of_its_own(self) -> bool {
        self == Device::Gpu && cfg!(target_os = "linux")
    }

    /// Whether it is a card that this host has and MLX computes on with CUDA.
    pub(crate) fn is_cuda(self) -> bool {
        self.has_memory_of_its_own() && self.is_present()
    }

    /// What MLX says of the device, such as `device_name` and `free_memory`, sorted by name.
    ///
    /// # Errors
    /// [`Error::NoDevice`], or MLX's reason.
    pub fn info(self) -> Result<Vec<(String, Property)>> {
        self.require()?;
        mlx::install_error_handler();
        // SAFETY: makes an empty handle.
        let mut info = Info(unsafe { mlx_sys::mlx_device_info_new() });
        // SAFETY: a live handle, which this fills, and a live device.
        let status = self.with_raw(|raw| unsafe { mlx_sys::mlx_device_info_get(&mut info.0, raw) });
        mlx::check("Device", status)?;
        let mut properties: Vec<_> = info
            .keys()?
            .into_iter()
            .map(|key| Ok((key.clone(), info.get(&key)?)))
            .collect::<Result<_>>()?;
        properties.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(properties)
    }

    /// Bytes that are free for anybody, where the device says so.
    pub fn free_memory(self) -> Option<usize> {
        let properties = self.info().ok()?;
        properties.into_iter().find_map(|(name, property)| match property {
            Property::Size(bytes) if name == "free_memory" => Some(bytes),
            _ => None,
        })
    }

    /// An error where the host lacks the device.
    pub(crate) fn require(self) -> Result<()> {
        if self.is_present() {
            return Ok(());
        }
        Err(Error::NoDevice { device: self.name(), available: Device::Cpu.name().to_owned() })
    }

    /// A handle for mlx-c, alive for `f`.
    pub(crate) fn with_raw<T>(self, f: impl FnOnce(mlx_sys::mlx_device) -> T) -> T {
        let kind = match self {
            Device::Cpu => mlx_sys::mlx_device_type__MLX_CPU,
            Device::Gpu => mlx_sys::mlx_device_type__MLX_GPU,
        };
        // SAFETY: makes a plain value on the heap, freed below.
        let device = unsafe { mlx_sys::mlx_device_new_type(kind, 0) };
        let value = f(device);
        // SAFETY: made above and not kept by mlx-c, which copies devices.
        unsafe { mlx_sys::mlx_device_free(device) };
        value
    }
}

/// mlx-c's map of a device's properties.
struct Info(mlx_sys::mlx_device_info);

impl Info {
    fn keys(&self) -> Result<Vec<String>> {
        // SAFETY: makes an empty vector, freed below.
        let mut keys = unsafe { mlx_sys::mlx_vector_string_new() };
        // SAFETY: both handles are live.
        let status = unsafe { mlx_sys::mlx_device_info_get_keys(&mut keys, self.0) };
        let names = mlx::check("Device", status).map(|()| {
            // SAFETY: the vector is live.
            let count = unsafe { mlx_sys::mlx_vector_string_size(keys) };
            (0..count).filter_map(|index| vector_text(keys, index)).collect()
        });
        // SAFETY: made above and not used again.
        unsafe { mlx_sys::mlx_vector_string_free(keys) };
        names
    }

    fn get(&self, key: &str) -> Result<Property> {
        let name = CString::new(key).unwrap_or_default();
        let mut is_text = false;
        // SAFETY: a live handle and a text; writes a flag.
        let status =
            unsafe { mlx_sys::mlx_device_info_is_string(&mut is_text, self.0, name.as_ptr()) };
        mlx::check("Device", status)?;
        if is_text {
            let mut text: *const c_char = std::ptr::null();
            // SAFETY: as above; writes a pointer to a text that the handle keeps.
            let status =
                unsafe { mlx_sys::mlx_device_info_get_string(&mut text, self.0, name.as_ptr()) };
            mlx::check("Device", status)?;
            return Ok(Property::Text(copied(text)));
        }
        let mut size = 0;
        // SAFETY: as above; writes a number.
        let status = unsafe { mlx_sys::mlx_device_info_get_size(&mut size, self.0, name.as_ptr()) };
        mlx::check("Device", status).map(|()| Property::Size(size))
    }
}

impl Drop for Info {
    fn drop(&mut self) {
        // SAFETY: ours alone and not used again.
        unsafe { mlx_sys::mlx_device_info_free(self.0) };
    }
}

fn vector_text(texts: mlx_sys::mlx_vector_string, index: usize) -> Option<String> {
    let mut text: *mut c_char = std::ptr::null_mut();
    // SAFETY: the vector is live and the index inside it; the text lives as long as the vector.
    let status = unsafe { mlx_sys::mlx_vector_string_get(&mut text, texts, index) };
    (status == 0).then(|| copied(text))
}

fn copied(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: mlx-c gives NUL-terminated texts.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
