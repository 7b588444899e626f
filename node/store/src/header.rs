//! The header of a safetensors file, checked against the file before anything is mapped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::StoreError;

/// Longest header that is read (the format's own limit is 100 MB).
const HEADER_LIMIT: u64 = 16 * 1024 * 1024;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type as the format spells it (`F32`, `BF16`, `U32`, …).
    pub dtype: String,
    /// Shape.
    pub shape: Vec<u64>,
    /// Bytes of data.
    pub bytes: u64,
}

/// Reads and checks a header: tensors lie inside the file, do not overlap, leave no gaps, and
/// have the size their shape and type say.
///
/// # Errors
/// The file cannot be read, or the first lie found in it.
pub fn read(path: &Path) -> Result<BTreeMap<String, TensorInfo>, StoreError> {
    let mut file = File::open(path).map_err(StoreError::io(path))?;
    let file_len = file.metadata().map_err(StoreError::io(path))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|_| StoreError::invalid(path, "shorter than a safetensors header"))?;
    let header_len = u64::from_le_bytes(length);
    if header_len > HEADER_LIMIT || header_len.saturating_add(8) > file_len {
        let problem = format!("header claims {header_len} bytes in a file of {file_len}");
        return Err(StoreError::invalid(path, problem));
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(StoreError::io(path))?;
    check(&header, file_len - 8 - header_len).map_err(|problem| StoreError::invalid(path, problem))
}

/// Checks a header against the length of the data that follows it.
fn check(header: &[u8], data_len: u64) -> Result<BTreeMap<String, TensorInfo>, String> {
    let json: BTreeMap<String, Value> =
        serde_json::from_slice(header).map_err(|error| format!("header is not JSON: {error}"))?;
    let mut tensors = BTreeMap::new();
    let mut extents = Vec::new();
    for (name, value) in json.iter().filter(|(name, _)| *name != "__metadata__") {
        let (info, start, end) = tensor(value).map_err(|problem| format!("tensor `{name}`: {problem}"))?;
        extents.push((start, end, name));
        tensors.insert(name.clone(), info);
    }
    extents.sort_unstable();
    let mut expected = 0;
    for (start, end, name) in extents {
        if start != expected {
            return Err(format!("tensor `{name}` starts at {start}, expected {expected}"));
        }
        expected = end;
    }
    if expected != data_len {
        return Err(format!(
            "tensors end at {expected}, data at {data_len}: truncated or padded"
        ));
    }
    Ok(tensors)
}

fn tensor(value: &Value) -> Result<(TensorInfo, u64, u64), String> {
    let dtype = value["dtype"].as_str().ok_or("no dtype")?;
    let size = match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => 1,
        "U16" | "I16" | "F16" | "BF16" => 2,
        "U32" | "I32" | "F32" => 4,
        "U64" | "I64" | "F64" => 8,
        other => return Err(format!("unknown dtype `{other}`")),
    };
    let numbers = |field: &str| -> Result<Vec<u64>, String> {
        value[field]
            .as_array()
            .filter(|numbers| numbers.len() <= 8)
            .and_then(|numbers| numbers.iter().map(Value::as_u64).collect())
            .ok_or_else(|| format!("{field} is not a short list of numbers"))
    };
    let shape = numbers("shape")?;
    if shape.iter().any(|dim| *dim > i32::MAX as u64) {
        return Err("a dimension is out of range".into());
    }
    let offsets = numbers("data_offsets")?;
    let [start, end] = offsets[..] else {
        return Err("data_offsets are not two numbers".into());
    };
    let bytes = shape
        .iter()
        .try_fold(size as u64, |product, dim| product.checked_mul(*dim))
        .ok_or("size overflows")?;
    if end.checked_sub(start) != Some(bytes) {
        return Err(format!("offsets {start} to {end} do not hold {bytes} bytes"));
    }
    let info = TensorInfo {
        dtype: dtype.to_owned(),
        shape,
        bytes,
    };
    Ok((info, start, end))
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn lies_about_offsets_are_found() {
        for (header, data, word) in [
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
                7,
                "truncated",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}}"#,
                9,
                "do not hold",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
                16,
                "expected 0",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
                8,
                "do not hold",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
                0,
                "out of range",
            ),
            (
                r#"{"a":{"dtype":"X9","shape":[],"data_offsets":[0,0]}}"#,
                0,
                "unknown dtype",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}"#,
                0,
                "list of numbers",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
                6,
                "expected 4",
            ),
            ("[]", 0, "not JSON"),
        ] {
            let result = check(header.as_bytes(), data);
            assert!(
                result.as_ref().is_err_and(|e| e.contains(word)),
                "{header}: {result:?}"
            );
        }
    }

    #[test]
    fn an_honest_header_is_accepted() {
        let header =
            r#"{"__metadata__":{"format":"mlx"},"a":{"dtype":"F16","shape":[3,2],"data_offsets":[0,12]}}"#;
        assert_eq!(check(header.as_bytes(), 12).map(|t| t["a"].bytes), Ok(12));
    }
}
