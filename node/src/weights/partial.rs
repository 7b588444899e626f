//! A model that is being put together: files of their final size, beside the place of the model.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pomona_common::weights::Manifest;
use pomona_store::manifest::chunk_digest;

use super::work::Piece;

pub(crate) struct Partial {
    manifest: Manifest,
    files: Vec<File>,
}

impl Partial {
    /// Opens the files below `folder`, of an earlier attempt if there was one, and removes what does
    /// not belong there.
    pub(crate) fn open(folder: &Path, manifest: Manifest) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if !manifest.files.iter().any(|file| name == file.name.as_str()) {
                fs::remove_file(entry.path())?;
            }
        }
        let open = |path: PathBuf, bytes: u64| -> io::Result<File> {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(path)?;
            if file.metadata()?.len() != bytes {
                file.set_len(bytes)?;
            }
            Ok(file)
        };
        let files = manifest.files.iter();
        let files = files.map(|file| open(folder.join(&file.name), file.bytes));
        Ok(Self {
            files: files.collect::<io::Result<_>>()?,
            manifest,
        })
    }

    /// Pieces that are not there, or not right. Reads what is there.
    pub(crate) fn missing(&self) -> io::Result<Vec<Piece>> {
        let mut missing = Vec::new();
        let mut buffer = Vec::new();
        for (index, (wanted, file)) in self.manifest.files.iter().zip(&self.files).enumerate() {
            // Holes cost no time to skip and would cost much to read.
            let is_new = std::os::unix::fs::MetadataExt::blocks(&file.metadata()?) == 0;
            for (chunk, digest) in wanted.chunks.iter().enumerate() {
                let piece = Piece {
                    file: index as u16,
                    chunk: chunk as u32,
                };
                let Some((at, len)) = wanted.range(piece.chunk).filter(|_| !is_new) else {
                    missing.push(piece);
                    continue;
                };
                buffer.resize(len, 0);
                file.read_exact_at(&mut buffer, at)?;
                if chunk_digest(&buffer) != *digest {
                    missing.push(piece);
                }
            }
        }
        Ok(missing)
    }

    /// What it is put together by.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Length that a piece must have.
    pub(crate) fn len(&self, piece: Piece) -> usize {
        let file = self.manifest.files.get(usize::from(piece.file));
        file.and_then(|file| file.range(piece.chunk))
            .map_or(0, |(_, len)| len)
    }

    /// Keeps a piece; `false` when it is not what the manifest says.
    pub(crate) fn keep(&self, piece: Piece, bytes: &[u8]) -> io::Result<bool> {
        let index = usize::from(piece.file);
        let (Some(wanted), Some(file)) = (self.manifest.files.get(index), self.files.get(index)) else {
            return Ok(false);
        };
        let digest = wanted.chunks.get(piece.chunk as usize);
        match wanted.range(piece.chunk) {
            Some((at, len)) if len == bytes.len() && digest == Some(&chunk_digest(bytes)) => {
                file.write_all_at(bytes, at)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Everything is on disk after this.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(File::sync_all)
    }
}
