//! The manifest of a model folder: every file, and the SHA-256 of every chunk.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use pomona_common::weights::{CHUNK_BYTES, Manifest, ManifestFile, is_file_name};
use sha2::{Digest, Sha256};

use crate::StoreError;

/// SHA-256 of a chunk.
pub fn chunk_digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Reads every byte of a folder's files once. Our own records in it are left out.
///
/// # Errors
/// A file cannot be read.
pub fn manifest_of(folder: &Path) -> Result<Manifest, StoreError> {
    let entries = fs::read_dir(folder).map_err(StoreError::io(folder))?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_file_name(name))
        .collect();
    names.sort();
    let files = names.into_iter().map(|name| file(&folder.join(&name), name));
    let manifest = Manifest {
        files: files.collect::<Result<_, StoreError>>()?,
    };
    manifest.check().map_err(|why| StoreError::invalid(folder, why))?;
    Ok(manifest)
}

fn file(path: &Path, name: String) -> Result<ManifestFile, StoreError> {
    let mut file = File::open(path).map_err(StoreError::io(path))?;
    let (mut bytes, mut chunks) = (0, Vec::new());
    let mut buffer = Vec::with_capacity(CHUNK_BYTES as usize);
    loop {
        buffer.clear();
        let mut chunk = (&mut file).take(CHUNK_BYTES);
        let n = chunk.read_to_end(&mut buffer).map_err(StoreError::io(path))?;
        if n == 0 {
            return Ok(ManifestFile { name, bytes, chunks });
        }
        bytes += n as u64;
        chunks.push(chunk_digest(&buffer));
    }
}
