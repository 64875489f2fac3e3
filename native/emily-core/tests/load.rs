//! Loading files written by hand: what they hold, and what broken ones get.

mod runtime;

use emily_core::dtype::Dtype;
use emily_core::error::{Error, Kind, Result};
use emily_core::reply::Value;
use emily_core::worker::Worker;
use emily_core::{Loaded, Metadata};
use runtime::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// A folder of one test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, SeqCst);
        let folder = std::env::temp_dir().join(format!("emily-{}-{number}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        Folder(folder)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Left behind at worst.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn load(worker: &Worker, path: &Path) -> Result<Loaded> {
    let path = path.to_str().unwrap().to_owned();
    accepted(|reply| worker.load(path, reply)).wait().map(|value| match value {
        Value::Loaded(loaded) => loaded,
        other => panic!("load answered {other:?}"),
    })
}

/// Loads and reads everything, as a caller would.
fn load_and_read(worker: &Worker, path: &Path) -> Result<()> {
    let loaded = load(worker, path)?;
    for (_, tensor) in &loaded.tensors {
        read(worker, tensor)?;
    }
    for (_, value) in &loaded.metadata {
        if let Metadata::Numbers(tensor) = value {
            read(worker, tensor)?;
        }
    }
    Ok(())
}

#[track_caller]
fn is_unreadable(worker: &Worker, path: &Path) -> String {
    let error = load(worker, path).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error:?}");
    assert_eq!(error.kind(), Kind::Runtime);
    error.to_string()
}

fn npy(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), data].concat()
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn le_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Writes GGUF, version 3.
#[derive(Default)]
struct Gguf {
    metadata: Vec<u8>,
    entries: u64,
    tensors: Vec<u8>,
    count: u64,
    data: Vec<u8>,
}

impl Gguf {
    fn text(bytes: &str) -> Vec<u8> {
        [&(bytes.len() as u64).to_le_bytes()[..], bytes.as_bytes()].concat()
    }

    fn value(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.metadata.extend(Self::text(key));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.entries += 1;
        self
    }

    fn array(self, key: &str, kind: u32, count: u64, values: &[u8]) -> Self {
        let array = [&kind.to_le_bytes()[..], &count.to_le_bytes()[..], values].concat();
        self.value(key, 9, &array)
    }

    /// Sizes in the file's order, the fastest first.
    fn tensor(mut self, name: &str, sizes: &[u64], kind: u32, data: &[u8]) -> Self {
        self.tensors.extend(Self::text(name));
        self.tensors.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|size| self.tensors.extend(size.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.count += 1;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [self.count.to_le_bytes(), self.entries.to_le_bytes()].concat();
        let mut bytes =
            [b"GGUF", &3u32.to_le_bytes()[..], &counts, &self.metadata, &self.tensors].concat();
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}

/// Every kind of metadata and two tensors.
fn gguf() -> Gguf {
    let texts = [Gguf::text("one"), Gguf::text(""), Gguf::text("zwei €")].concat();
    Gguf::default()
        .value("a.u8", 0, &[200])
        .value("a.i8", 1, &[0xfe])
        .value("a.u16", 2, &50_000u16.to_le_bytes())
        .value("a.i16", 3, &(-5i16).to_le_bytes())
        .value("a.u32", 4, &4_000_000_000u32.to_le_bytes())
        .value("a.i32", 5, &(-6i32).to_le_bytes())
        .value("a.f32", 6, &1.5f32.to_le_bytes())
        .value("a.bool", 7, &[1])
        .value("a.text", 8, &Gguf::text("llama %n%s"))
        .array("a.texts", 8, 3, &texts)
        .array("a.numbers", 5, 2, &[7i32.to_le_bytes(), (-7i32).to_le_bytes()].concat())
        .value("a.u64", 10, &(1u64 << 40).to_le_bytes())
        .value("a.i64", 11, &(-(1i64 << 40)).to_le_bytes())
        .tensor("matrix", &[3, 2], 0, &le_bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
        .tensor("vector", &[2], 0, &le_bytes(&[7.0, 8.0]))
}

fn numbers(worker: &Worker, loaded: &Loaded, name: &str) -> Vec<f32> {
    let found = loaded.tensors.iter().find(|(tensor, _)| tensor == name);
    read_f32(worker, &found.unwrap_or_else(|| panic!("no tensor {name}")).1)
}

#[test]
fn an_npy_file_is_one_tensor() {
    let (folder, worker) = (Folder::new(), worker());
    let data = le_bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let path = folder.write("x.npy", &npy("<f4", "False", "(2, 3)", &data));
    let loaded = load(&worker, &path).unwrap();
    assert!(loaded.metadata.is_empty());
    let (name, tensor) = &loaded.tensors[0];
    assert_eq!(
        (name.as_str(), tensor.shape(), tensor.dtype()),
        ("array", &[2, 3][..], Dtype::Float32)
    );
    assert_eq!(numbers(&worker, &loaded, "array"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);

    // By columns.
    let path = folder.write("y.npy", &npy("<f4", "True", "(2, 3)", &data));
    let loaded = load(&worker, &path).unwrap();
    assert_eq!(loaded.tensors[0].1.shape(), [2, 3]);
    assert_eq!(numbers(&worker, &loaded, "array"), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);

    let path = folder.write("z.npy", &npy("<i8", "False", "(1,)", &(-9i64).to_le_bytes()));
    let loaded = load(&worker, &path).unwrap();
    assert_eq!(loaded.tensors[0].1.dtype(), Dtype::Int64);
    assert_eq!(read(&worker, &loaded.tensors[0].1).unwrap()[..], (-9i64).to_ne_bytes());
}

#[test]
fn a_safetensors_file_has_names_and_texts() {
    let (folder, worker) = (Folder::new(), worker());
    let header = r#"{"__metadata__":{"format":"pt","license":"%n%s"},
        "a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
        "b.c":{"dtype":"I32","shape":[3],"data_offsets":[16,28]},
        "empty":{"dtype":"F32","shape":[0,2],"data_offsets":[28,28]}}"#;
    let mut data = le_bytes(&[1.0, 2.0, 3.0, 4.0]);
    data.extend([5i32, -6, 7].iter().flat_map(|number| number.to_le_bytes()));
    let path = folder.write("x.safetensors", &safetensors(header, &data));
    let mut loaded = load(&worker, &path).unwrap();
    loaded.tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let names: Vec<_> = loaded.tensors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "b.c", "empty"]);
    assert_eq!(numbers(&worker, &loaded, "a"), [1.0, 2.0, 3.0, 4.0]);
    let second = &loaded.tensors[1].1;
    assert_eq!((second.shape(), second.dtype()), (&[3][..], Dtype::Int32));
    assert_eq!(read(&worker, second).unwrap()[4..8], (-6i32).to_ne_bytes());
    assert!(read(&worker, &loaded.tensors[2].1).unwrap().is_empty());
    let text = |key: &str| match loaded.metadata.iter().find(|(name, _)| name == key) {
        Some((_, Metadata::Text(text))) => text.clone(),
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!((text("format"), text("license")), ("pt".into(), "%n%s".into()));
}

#[test]
fn what_is_loaded_lazily_is_read_by_other_workers_after_the_first_has_ended() {
    let (folder, first, second) = (Folder::new(), worker(), worker());
    let path = folder.write("x.npy", &npy("<f4", "False", "(2,)", &le_bytes(&[1.0, 2.0])));
    let loaded = load(&first, &path).unwrap();
    assert!(!loaded.tensors[0].1.is_ready());
    drop(first);
    assert_eq!(numbers(&second, &loaded, "array"), [1.0, 2.0]);
}

#[test]
fn a_gguf_file_has_metadata_of_all_kinds() {
    let (folder, worker) = (Folder::new(), worker());
    let path = folder.write("x.gguf", &gguf().bytes());
    let loaded = load(&worker, &path).unwrap();
    assert_eq!(loaded.tensors.len(), 2);
    assert!(loaded.tensors.iter().all(|(_, tensor)| tensor.is_ready()));
    assert_eq!(numbers(&worker, &loaded, "matrix"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(numbers(&worker, &loaded, "vector"), [7.0, 8.0]);
    let matrix = loaded.tensors.iter().find(|(name, _)| name == "matrix").unwrap();
    assert_eq!(matrix.1.shape(), [2, 3]);

    assert_eq!(loaded.metadata.len(), 13);
    let value = |key: &str| {
        let found = loaded.metadata.iter().find(|(name, _)| name == key);
        &found.unwrap_or_else(|| panic!("no metadata {key}")).1
    };
    let number = |key: &str| match value(key) {
        Metadata::Numbers(tensor) => {
            (tensor.dtype(), tensor.shape().to_vec(), read(&worker, tensor).unwrap().to_vec())
        }
        other => panic!("{key}: {other:?}"),
    };
    let scalar = |dtype: Dtype, bytes: &[u8]| (dtype, vec![], bytes.to_vec());
    assert_eq!(number("a.u8"), scalar(Dtype::Uint8, &[200]));
    assert_eq!(number("a.i8"), scalar(Dtype::Int8, &[0xfe]));
    assert_eq!(number("a.u16"), scalar(Dtype::Uint16, &50_000u16.to_ne_bytes()));
    assert_eq!(number("a.i16"), scalar(Dtype::Int16, &(-5i16).to_ne_bytes()));
    assert_eq!(number("a.u32"), scalar(Dtype::Uint32, &4_000_000_000u32.to_ne_bytes()));
    assert_eq!(number("a.i32"), scalar(Dtype::Int32, &(-6i32).to_ne_bytes()));
    assert_eq!(number("a.f32"), scalar(Dtype::Float32, &1.5f32.to_ne_bytes()));
    assert_eq!(number("a.bool"), scalar(Dtype::Bool, &[1]));
    assert_eq!(number("a.u64"), scalar(Dtype::Uint64, &(1u64 << 40).to_ne_bytes()));
    assert_eq!(number("a.i64"), scalar(Dtype::Int64, &(-(1i64 << 40)).to_ne_bytes()));
    let both = [7i32.to_ne_bytes(), (-7i32).to_ne_bytes()].concat();
    assert_eq!(number("a.numbers"), (Dtype::Int32, vec![2], both));
    assert!(matches!(value("a.text"), Metadata::Text(text) if text == "llama %n%s"));
    assert!(
        matches!(value("a.texts"), Metadata::Texts(texts) if texts[..] == ["one", "", "zwei €"])
    );
}

#[test]
fn quantised_gguf_weights_are_three_tensors() {
    let (folder, worker) = (Folder::new(), worker());
    // Q8_0: a block of 32 is a half-precision scale, here 0.5, and 32 signed bytes.
    let block: Vec<u8> =
        [0x00, 0x38].into_iter().chain((0..32u8).map(|i| i.wrapping_sub(16))).collect();
    let file = Gguf::default().tensor("w.weight", &[32, 1], 8, &block);
    let path = folder.write("x.gguf", &file.bytes());
    let loaded = load(&worker, &path).unwrap();
    let mut names: Vec<_> = loaded.tensors.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["w.biases", "w.scales", "w.weight"]);
    assert!(loaded.tensors.iter().all(|(_, tensor)| tensor.is_ready()));
}

#[test]
fn names_that_are_no_file() {
    let (folder, worker) = (Folder::new(), worker());
    assert!(is_unreadable(&worker, &folder.0.join("none.npy")).contains("No such file"));
    for extension in ["npy", "safetensors", "gguf"] {
        let path = folder.0.join(format!("folder.{extension}"));
        fs::create_dir(&path).unwrap();
        is_unreadable(&worker, &path);
        let path = folder.write(&format!("empty.{extension}"), &[]);
        is_unreadable(&worker, &path);
        let path = folder.write(&format!("%n%s%n.{extension}"), b"%n%s is no file of this kind");
        assert!(is_unreadable(&worker, &path).contains("%n%s%n"));
        is_unreadable(&worker, &folder.0.join(format!("nul\0.{extension}")));
    }
    for name in ["x.bin", "x", "x.NPY", "npy", ".gguf"] {
        let path = folder.write(name, &npy("<f4", "False", "(0,)", &[]));
        let error = load(&worker, &path).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{name}");
        assert!(error.to_string().contains(".gguf, .safetensors or .npy"), "{error}");
    }
    // The worker goes on.
    run(&worker, || Ok(Value::Done)).wait().unwrap();
}

/// Files that load, by name.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let data = le_bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let header =
        r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
    vec![
        ("x.npy", npy("<f4", "False", "(2, 3)", &data)),
        ("x.safetensors", safetensors(header, &data)),
        ("x.gguf", gguf().bytes()),
    ]
}

#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let (folder, worker) = (Folder::new(), worker());
    for (name, bytes) in samples() {
        let path = folder.write(name, &bytes);
        load_and_read(&worker, &path).unwrap();
        // The padding behind a GGUF file's last tensor says nothing.
        let least = if name == "x.gguf" { bytes.len() - 24 } else { bytes.len() };
        for length in 0..least {
            let path = folder.write(name, &bytes[..length]);
            let outcome = load_and_read(&worker, &path);
            assert!(outcome.is_err(), "{name} of {length} bytes");
        }
    }
}

#[test]
fn a_file_with_any_byte_changed_loads_or_is_an_error() {
    let (folder, worker) = (Folder::new(), worker());
    for (name, bytes) in samples() {
        for position in 0..bytes.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[position] ^= change;
                let path = folder.write(name, &changed);
                let _ = load_and_read(&worker, &path);
            }
        }
        let path = folder.write(name, &bytes);
        load_and_read(&worker, &path).unwrap();
    }
}

#[test]
fn hostile_headers_are_errors() {
    let (folder, worker) = (Folder::new(), worker());
    let refused = |name: &str, bytes: &[u8]| {
        let path = folder.write(name, bytes);
        let outcome = load_and_read(&worker, &path);
        assert!(outcome.is_err(), "{name}: {:?}", String::from_utf8_lossy(bytes));
    };
    for shape in [
        "(-1,)",
        "(-2, -3)",
        "(2147483647, 2147483647)",
        "(65536, 65536, 65536, 65536)",
        "(99999999999,)",
        "(1000000000,)",
        "(a,)",
        "(1, 2",
    ] {
        refused("x.npy", &npy("<f4", "False", shape, &[0; 24]));
    }
    for descr in ["<f3", "<x4", "", "<f4f4f4", "|O8"] {
        refused("x.npy", &npy(descr, "False", "(1,)", &[0; 24]));
    }
    for tensor in [
        r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#,
        r#"{"dtype":"F32","shape":[-2,-3],"data_offsets":[0,24]}"#,
        r#"{"dtype":"F32","shape":[65536,65536,65536,65536],"data_offsets":[0,0]}"#,
        r#"{"dtype":"F32","shape":[6],"data_offsets":[18446744073709551592,18446744073709551616]}"#,
        r#"{"dtype":"F32","shape":[6],"data_offsets":[18446744073709551500,18446744073709551524]}"#,
        r#"{"dtype":"F32","shape":[6],"data_offsets":[24,0]}"#,
        r#"{"dtype":"F32","shape":[6],"data_offsets":[4,28]}"#,
        r#"{"dtype":"F32","shape":[6],"data_offsets":[0]}"#,
        r#"{"dtype":"F33","shape":[6],"data_offsets":[0,24]}"#,
        r#"{"dtype":4,"shape":6}"#,
        "[]",
    ] {
        refused("x.safetensors", &safetensors(&format!(r#"{{"a":{tensor}}}"#), &[0; 24]));
    }
    refused("x.safetensors", &safetensors("[1, 2]", &[0; 24]));
    refused("x.safetensors", &safetensors(&"[".repeat(100_000), &[0; 24]));
    refused("x.safetensors", &[&u64::MAX.to_le_bytes()[..], b"{}"].concat());

    let refused = |file: Gguf| refused("x.gguf", &file.bytes());
    let long = (u64::MAX - 3).to_le_bytes();
    refused(Gguf::default().value("k", 8, &long));
    refused(Gguf::default().value("k", 12, &2.5f64.to_le_bytes()));
    refused(Gguf::default().value("k", 13, &[0; 8]));
    refused(Gguf::default().value("general.alignment", 4, &0u32.to_le_bytes()));
    refused(Gguf::default().value("general.alignment", 8, &Gguf::text("32")));
    refused(Gguf::default().array("k", 8, 1 << 31, &[]));
    refused(Gguf::default().array("k", 4, u64::MAX / 4 + 2, &[]));
    refused(Gguf::default().array("k", 9, 1, &[0; 12]));
    let data = [0; 64];
    for sizes in [&[1 << 32][..], &[1 << 31, 1 << 31], &[u64::MAX, u64::MAX], &[1 << 20], &[1; 9]] {
        refused(Gguf::default().tensor("t", sizes, 0, &data));
    }
    // Removed types, types of other readers, blocks that are not whole.
    for kind in [4, 5, 16, 23, 27, 31, 1000, u32::MAX] {
        refused(Gguf::default().tensor("t", &[1], kind, &data));
    }
    for kind in [2, 3, 8, 14] {
        refused(Gguf::default().tensor("t", &[33], kind, &data));
    }
    refused(Gguf { count: u64::MAX, ..Gguf::default() });
    refused(Gguf { entries: u64::MAX, ..Gguf::default() });
}
