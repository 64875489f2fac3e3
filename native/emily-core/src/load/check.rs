//! What MLX's readers take for granted about a file, checked before they see it. They follow lengths
//! out of the file, divide by an alignment of zero, and read a file that ends too early in a circle;
//! the first two end the process.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};

/// Why a file is not what its name says.
pub(super) type Broken = io::Error;

fn broken(reason: impl Into<String>) -> Broken {
    io::Error::new(ErrorKind::InvalidData, reason.into())
}

/// The most bytes that a product of sizes may have, far from where arithmetic wraps.
const MOST: u64 = 1 << 48;

/// Elements of a shape whose sizes MLX can hold.
fn count(sizes: impl IntoIterator<Item = u64>) -> Result<u64, Broken> {
    sizes.into_iter().try_fold(1u64, |count, size| {
        let count = count.checked_mul(size).filter(|&count| count <= MOST);
        count.filter(|_| i32::try_from(size).is_ok()).ok_or_else(|| broken("sizes out of range"))
    })
}

/// A shape that MLX's reader has made, whose sizes may be negative or wrap in their product.
pub(super) fn shape(sizes: &[i32]) -> Result<(), Broken> {
    // A negative size is a very large one here.
    count(sizes.iter().map(|&size| size as u64)).map(|_| ())
}

/// A file that is read from its start, its length known.
struct Reader {
    file: BufReader<File>,
    length: u64,
    position: u64,
}

impl Reader {
    fn open(file: File) -> Result<Self, Broken> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(broken("not a file"));
        }
        Ok(Reader { file: BufReader::new(file), length: metadata.len(), position: 0 })
    }

    /// Claims the next bytes of the file.
    fn claim(&mut self, length: u64) -> Result<(), Broken> {
        if length > self.length - self.position {
            return Err(broken("the file ends too early, or a length in it is wrong"));
        }
        self.position += length;
        Ok(())
    }

    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, Broken> {
        self.claim(length)?;
        let mut bytes = vec![0; length as usize];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, length: u64) -> Result<(), Broken> {
        self.claim(length)?;
        let offset = i64::try_from(length).map_err(|_| broken("a length in it is wrong"))?;
        self.file.seek_relative(offset)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Broken> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Broken> {
        self.array().map(u64::from_le_bytes)
    }
}

/// An npy file: its header is where MLX looks for it, and all its elements are there.
pub(super) fn npy(file: File) -> Result<(), Broken> {
    let mut reader = Reader::open(file)?;
    let start = reader.array::<8>()?;
    if !start.starts_with(b"\x93NUMPY") {
        return Err(broken("not an npy file"));
    }
    let length = match start[6] {
        1 => u64::from(u16::from_le_bytes(reader.array()?)),
        2 => u64::from(reader.u32()?),
        version => return Err(broken(format!("npy version {version}"))),
    };
    let header = String::from_utf8(reader.bytes(length)?).map_err(|_| broken("npy header"))?;
    let parse = || -> Option<(u64, Vec<u64>)> {
        // MLX reads the dtype and the order at fixed places.
        let rest = header.strip_prefix("{'descr': '")?;
        let (dtype, rest) = rest.split_at_checked(3)?;
        let rest = rest.strip_prefix("', 'fortran_order': ")?;
        if !rest.starts_with("True") && !rest.starts_with("False") {
            return None;
        }
        let width = dtype.chars().last()?.to_digit(10)?;
        let (_, shape) = rest.split_once("'shape': (")?;
        let (shape, rest) = shape.split_once(')')?;
        if rest.contains(['(', ')']) {
            return None;
        }
        let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
        Some((u64::from(width), sizes.map(|size| size.parse().ok()).collect::<Option<_>>()?))
    };
    let (width, sizes) = parse().ok_or_else(|| broken(format!("npy header {header:?}")))?;
    reader.claim(count(sizes)? * width)
}

/// The kinds of GGUF's metadata.
mod kind {
    pub(super) const U32: u32 = 4;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const F64: u32 = 12;
}

/// Bytes of a metadata value of a fixed size.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10 | 11 => Some(8),
        _ => None,
    }
}

/// Elements that a GGUF type packs together. Types are absent that MLX's reader does not know.
fn block(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 24..=26 => Some(1),
        2 | 3 | 6..=9 => Some(32),
        10..=15 => Some(256),
        _ => None,
    }
}

/// A GGUF file: all lengths stay inside it.
pub(super) fn gguf(file: File) -> Result<(), Broken> {
    let mut reader = Reader::open(file)?;
    if reader.array()? != *b"GGUF" {
        return Err(broken("not a GGUF file"));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(broken(format!("GGUF version {version}")));
    }
    let (tensors, entries) = (reader.u64()?, reader.u64()?);
    for _ in 0..entries {
        let length = reader.u64()?;
        let name = reader.bytes(length)?;
        let kind = reader.u32()?;
        if name == b"general.alignment" {
            let is_alignment = kind == kind::U32 && reader.u32()?.is_power_of_two();
            is_alignment.then_some(()).ok_or_else(|| broken("alignment"))?;
        } else {
            value(&mut reader, kind)
                .map_err(|e| broken(format!("{}: {e}", String::from_utf8_lossy(&name))))?;
        }
    }
    for _ in 0..tensors {
        let length = reader.u64()?;
        let name = reader.bytes(length)?;
        tensor(&mut reader)
            .map_err(|e| broken(format!("{}: {e}", String::from_utf8_lossy(&name))))?;
    }
    Ok(())
}

fn value(reader: &mut Reader, kind: u32) -> Result<(), Broken> {
    match kind {
        kind::TEXT => {
            let length = reader.u64()?;
            reader.skip(length)
        }
        kind::ARRAY => {
            let (kind, count) = (reader.u32()?, reader.u64()?);
            if i32::try_from(count).is_err() {
                return Err(broken("too many values"));
            }
            if kind == kind::ARRAY {
                return Err(broken("an array of arrays, which MLX does not read"));
            }
            match width(kind) {
                Some(width) => reader.skip(count * width),
                None => (0..count).try_for_each(|_| value(reader, kind)),
            }
        }
        // MLX's reader takes four bytes of the eight and loses its place.
        kind::F64 => Err(broken("a double, which MLX does not read")),
        _ => match width(kind) {
            Some(width) => reader.skip(width),
            None => Err(broken(format!("kind of metadata {kind}"))),
        },
    }
}

fn tensor(reader: &mut Reader) -> Result<(), Broken> {
    let rank = reader.u32()?;
    if rank > 4 {
        return Err(broken(format!("rank {rank}")));
    }
    let sizes = (0..rank).map(|_| reader.u64()).collect::<Result<Vec<_>, _>>()?;
    let kind = reader.u32()?;
    let block =
        block(kind).ok_or_else(|| broken(format!("type {kind}, which MLX does not read")))?;
    // Where the elements are, MLX checks.
    reader.skip(8)?;
    let row = sizes.first().copied().unwrap_or(1);
    if !count(sizes)?.is_multiple_of(block) || !row.is_multiple_of(block) {
        return Err(broken(format!("rows of {row}, not of blocks of {block}")));
    }
    Ok(())
}
