//! SHA-256 of files and texts, in hex.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::StoreError;

/// Digest of bytes.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Digest of one file's bytes.
///
/// # Errors
/// The file cannot be read.
pub fn of_file(path: &Path) -> Result<String, StoreError> {
    let mut hasher = Sha256::new();
    feed(&mut hasher, path, &mut |_| {})?;
    Ok(hex(&hasher.finalize()))
}

/// Digest of files, one after the other, each preceded by its name and length so that no two
/// folders collide. `progress` is told the bytes read.
///
/// # Errors
/// A file cannot be read.
pub fn of_files(paths: &[&Path], progress: &mut dyn FnMut(u64)) -> Result<String, StoreError> {
    let mut hasher = Sha256::new();
    for path in paths {
        let len = std::fs::metadata(path).map_err(StoreError::io(path))?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hasher.update(format!("{name}\0{len}\0"));
        feed(&mut hasher, path, progress)?;
    }
    Ok(hex(&hasher.finalize()))
}

fn feed(hasher: &mut Sha256, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
    let mut file = File::open(path).map_err(StoreError::io(path))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(StoreError::io(path))?;
        if n == 0 {
            return Ok(());
        }
        hasher.update(&buffer[..n]);
        progress(n as u64);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
