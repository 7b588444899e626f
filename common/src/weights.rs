//! How weights go from one node to another: what is asked for, and the manifest of a model.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::ModelName;
use crate::limits;

/// Bytes of a chunk, the last one of a file apart: large enough that asking costs nothing, small
/// enough that a broken one is soon fetched again.
pub const CHUNK_BYTES: u64 = 4 * 1024 * 1024;

/// First and only message on a stream of a weights session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WeightsRequest {
    /// The manifest of a model: one [`Manifest`] follows.
    Manifest(ModelName),
    /// One chunk: its bytes follow, and the end of the stream.
    Chunk {
        /// The model.
        model: ModelName,
        /// Index of the file in the manifest.
        file: u16,
        /// Index of the chunk in the file.
        chunk: u32,
    },
}

/// The files of a model with the SHA-256 of every chunk. It is as trustworthy as who sent it: what
/// was fetched by it is checked against the catalogue's digests before anybody uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Sorted by name.
    pub files: Vec<ManifestFile>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name, without folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its chunks.
    pub chunks: Vec<[u8; 32]>,
}

impl Manifest {
    /// Checks everything that a hostile sender could have chosen.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.files.is_empty() || self.files.len() > limits::MODEL_FILES {
            return Err(format!("{} files", self.files.len()));
        }
        let (mut names, mut total) = (BTreeSet::new(), 0u64);
        for file in &self.files {
            if !is_file_name(&file.name) || !names.insert(&file.name) {
                return Err(format!("a file is called {:?}", short(&file.name)));
            }
            total = total.checked_add(file.bytes).ok_or("sizes overflow")?;
            if file.chunks.len() as u64 != file.bytes.div_ceil(CHUNK_BYTES) {
                return Err(format!(
                    "{} has {} chunks for {} bytes",
                    file.name,
                    file.chunks.len(),
                    file.bytes
                ));
            }
        }
        if total > limits::MODEL_BYTES {
            return Err(format!(
                "{total} bytes exceed the limit of {}",
                limits::MODEL_BYTES
            ));
        }
        Ok(())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

impl ManifestFile {
    /// Where a chunk begins and how long it is; `None` when there is no such chunk.
    pub fn range(&self, chunk: u32) -> Option<(u64, usize)> {
        let at = u64::from(chunk) * CHUNK_BYTES;
        let left = self.bytes.checked_sub(at).filter(|left| *left > 0)?;
        Some((at, left.min(CHUNK_BYTES) as usize))
    }
}

/// Letters, digits, `.`, `_` and `-`, beginning with a letter or digit: no folder, nothing hidden.
/// Our own records begin with `pomona.` and are nobody else's business.
pub fn is_file_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.len() <= 255
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain)
        && !name.starts_with("pomona.")
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: u64, chunks: usize) -> ManifestFile {
        ManifestFile {
            name: name.into(),
            bytes,
            chunks: vec![[0; 32]; chunks],
        }
    }

    #[test]
    fn hostile_manifests_are_refused() {
        let refused = |files: Vec<ManifestFile>| Manifest { files }.check().is_err();
        assert!(!refused(vec![
            file("model.safetensors", CHUNK_BYTES + 1, 2),
            file("config.json", 3, 1)
        ]));
        assert!(refused(vec![]));
        for name in ["../x", "a/b", ".hidden", "", "pomona.json", "a\0b", "ä", "a b"] {
            assert!(refused(vec![file(name, 3, 1)]), "{name:?}");
        }
        assert!(refused(vec![file("a", 3, 1), file("a", 3, 1)]), "twice");
        assert!(refused(vec![file("a", 3, 2)]), "a chunk too many");
        assert!(refused(vec![file("a", CHUNK_BYTES * 9, 1)]), "too few chunks");
        assert!(refused(vec![file("a", u64::MAX, 0), file("b", u64::MAX, 0)]));
        assert!(refused((0..5000).map(|i| file(&format!("f{i}"), 0, 0)).collect()));
    }

    #[test]
    fn ranges_cover_a_file() {
        let file = file("a", 2 * CHUNK_BYTES + 5, 3);
        assert_eq!(file.range(0), Some((0, CHUNK_BYTES as usize)));
        assert_eq!(file.range(2), Some((2 * CHUNK_BYTES, 5)));
        assert_eq!(file.range(3), None);
        assert_eq!(file.range(u32::MAX), None);
    }
}
