//! Reads the header of a GGUF file (version 2 and 3, little endian), trusting no number in it.
//! Format: the GGUF specification of the ggml project.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::StoreError;

/// Most tensors and metadata entries of one file.
const ENTRIES: u64 = 65_536;
/// Longest string; chat templates and token texts are far shorter.
const STRING_BYTES: u64 = 4 * 1024 * 1024;
/// Longest array: larger vocabularies than any published.
const ARRAY_ITEMS: u64 = 4 * 1024 * 1024;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaValue {
    /// Any integer or boolean.
    Int(i64),
    /// Any float.
    Float(f64),
    /// A string.
    Text(String),
    /// A list of strings.
    Texts(Vec<String>),
    /// A list of numbers.
    Numbers(Vec<f64>),
}

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// Blocks of 32: f16 scale, 4-bit values minus 8.
    Q4_0,
    /// Blocks of 32: f16 scale, f16 minimum, 4-bit values.
    Q4_1,
    /// Blocks of 32: f16 scale, 8-bit signed values.
    Q8_0,
}

impl GgufType {
    fn from_code(code: u32) -> Result<Self, String> {
        Ok(match code {
            0 => GgufType::F32,
            1 => GgufType::F16,
            2 => GgufType::Q4_0,
            3 => GgufType::Q4_1,
            8 => GgufType::Q8_0,
            other => {
                return Err(format!(
                    "tensor type {other} is not supported (F32, F16, Q4_0, Q4_1 and Q8_0 are)"
                ));
            }
        })
    }

    /// Numbers and bytes of one block.
    pub const fn block(self) -> (u64, u64) {
        match self {
            GgufType::F32 => (1, 4),
            GgufType::F16 => (1, 2),
            GgufType::Q4_0 => (32, 18),
            GgufType::Q4_1 => (32, 20),
            GgufType::Q8_0 => (32, 34),
        }
    }
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Storage.
    pub kind: GgufType,
    /// Shape, slowest dimension first (the file has it the other way round).
    pub shape: Vec<u64>,
    /// Start in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub bytes: u64,
}

/// A checked header.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// The file.
    pub path: PathBuf,
    /// Metadata.
    pub meta: BTreeMap<String, MetaValue>,
    /// Tensors.
    pub tensors: BTreeMap<String, GgufTensor>,
}

impl Gguf {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// The file cannot be read, or what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(StoreError::io(path))?;
        let file_len = file.metadata().map_err(StoreError::io(path))?.len();
        let mut reader = Reader {
            inner: BufReader::with_capacity(1 << 16, file),
            at: 0,
        };
        let (meta, tensors) =
            parse(&mut reader, file_len).map_err(|problem| StoreError::invalid(path, problem))?;
        Ok(Self {
            path: path.to_owned(),
            meta,
            tensors,
        })
    }

    /// Reads the bytes of a tensor.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn data(&self, tensor: &GgufTensor) -> Result<Vec<u8>, StoreError> {
        let mut file = File::open(&self.path).map_err(StoreError::io(&self.path))?;
        file.seek(SeekFrom::Start(tensor.offset))
            .map_err(StoreError::io(&self.path))?;
        let mut bytes = vec![0; tensor.bytes as usize];
        file.read_exact(&mut bytes).map_err(StoreError::io(&self.path))?;
        Ok(bytes)
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.meta.get(key) {
            Some(MetaValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A number of the metadata.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.meta.get(key) {
            Some(MetaValue::Int(number)) => Some(*number as f64),
            Some(MetaValue::Float(number)) => Some(*number),
            _ => None,
        }
    }
}

struct Reader {
    inner: BufReader<File>,
    at: u64,
}

impl Reader {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.inner
            .read_exact(&mut bytes)
            .map_err(|_| "ends inside the header".to_owned())?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<u64, String> {
        let count = u64::from_le_bytes(self.bytes()?);
        if count > limit {
            return Err(format!("{count} {what}, more than {limit}"));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String, String> {
        let len = self.count("bytes in a string", STRING_BYTES)?;
        let mut bytes = vec![0; len as usize];
        self.inner
            .read_exact(&mut bytes)
            .map_err(|_| "ends inside a string".to_owned())?;
        self.at += len;
        String::from_utf8(bytes).map_err(|_| "a string is not UTF-8".to_owned())
    }

    fn number(&mut self, code: u32) -> Result<MetaValue, String> {
        Ok(match code {
            0 => MetaValue::Int(self.bytes::<1>()?[0].into()),
            1 => MetaValue::Int(i8::from_le_bytes(self.bytes()?).into()),
            2 => MetaValue::Int(u16::from_le_bytes(self.bytes()?).into()),
            3 => MetaValue::Int(i16::from_le_bytes(self.bytes()?).into()),
            4 => MetaValue::Int(self.u32()?.into()),
            5 => MetaValue::Int(i32::from_le_bytes(self.bytes()?).into()),
            6 => MetaValue::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => MetaValue::Int(self.bytes::<1>()?[0].into()),
            10 => MetaValue::Int(u64::from_le_bytes(self.bytes()?) as i64),
            11 => MetaValue::Int(i64::from_le_bytes(self.bytes()?)),
            12 => MetaValue::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(format!("unknown metadata type {other}")),
        })
    }

    fn value(&mut self) -> Result<MetaValue, String> {
        match self.u32()? {
            8 => Ok(MetaValue::Text(self.text()?)),
            9 => {
                let item = self.u32()?;
                let count = self.count("items in an array", ARRAY_ITEMS)?;
                if item == 8 {
                    return (0..count)
                        .map(|_| self.text())
                        .collect::<Result<_, _>>()
                        .map(MetaValue::Texts);
                }
                let mut numbers = Vec::new();
                for _ in 0..count {
                    numbers.push(match self.number(item)? {
                        MetaValue::Int(number) => number as f64,
                        MetaValue::Float(number) => number,
                        MetaValue::Text(_) | MetaValue::Texts(_) | MetaValue::Numbers(_) => 0.0,
                    });
                }
                Ok(MetaValue::Numbers(numbers))
            }
            code => self.number(code),
        }
    }
}

type Header = (BTreeMap<String, MetaValue>, BTreeMap<String, GgufTensor>);

fn parse(reader: &mut Reader, file_len: u64) -> Result<Header, String> {
    if &reader.bytes::<4>()? != b"GGUF" {
        return Err("not a GGUF file".into());
    }
    let version = reader.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(format!("GGUF version {version} is not supported"));
    }
    let tensor_count = reader.count("tensors", ENTRIES)?;
    let meta_count = reader.count("metadata entries", ENTRIES)?;
    let mut meta = BTreeMap::new();
    for _ in 0..meta_count {
        let key = reader.text()?;
        let value = reader.value()?;
        meta.insert(key, value);
    }
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let name = reader.text()?;
        let tensor = tensor_info(reader).map_err(|problem| format!("tensor `{name}`: {problem}"))?;
        tensors.insert(name, tensor);
    }
    let alignment = match meta.get("general.alignment") {
        Some(MetaValue::Int(a)) if (1..=1 << 16).contains(a) => *a as u64,
        Some(_) => return Err("general.alignment is out of range".into()),
        None => 32,
    };
    let data_start = reader.at.next_multiple_of(alignment);
    for (name, tensor) in &mut tensors {
        let start = data_start.checked_add(tensor.offset);
        let end = start.and_then(|start| start.checked_add(tensor.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_len => tensor.offset = start,
            _ => return Err(format!("tensor `{name}` lies beyond the end of the file")),
        }
    }
    Ok((meta, tensors))
}

fn tensor_info(reader: &mut Reader) -> Result<GgufTensor, String> {
    let dims = reader.u32()?;
    if !(1..=4).contains(&dims) {
        return Err(format!("{dims} dimensions"));
    }
    let mut shape = (0..dims)
        .map(|_| reader.count("numbers in a dimension", i32::MAX as u64))
        .collect::<Result<Vec<u64>, String>>()?;
    shape.reverse();
    let kind = GgufType::from_code(reader.u32()?)?;
    let offset = u64::from_le_bytes(reader.bytes()?);
    let (numbers, bytes) = kind.block();
    let total = shape
        .iter()
        .try_fold(1u64, |product, dim| product.checked_mul(*dim))
        .ok_or("size overflows")?;
    if shape.last().is_none_or(|row| row % numbers != 0) {
        return Err(format!("rows are not a multiple of {numbers}"));
    }
    Ok(GgufTensor {
        kind,
        shape,
        offset,
        bytes: (total / numbers).checked_mul(bytes).ok_or("size overflows")?,
    })
}
