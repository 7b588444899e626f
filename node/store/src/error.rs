//! Why a model folder or file is refused.

use std::path::{Path, PathBuf};

/// A refusal that names the file and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error("cannot use {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A model this version cannot run.
    #[error("{what} is not supported: {supported}")]
    Unsupported {
        /// What the model needs.
        what: String,
        /// What there is.
        supported: &'static str,
    },
}

impl StoreError {
    /// An I/O error at a path.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError + use<> {
        let path = path.to_owned();
        move |source| StoreError::Io { path, source }
    }

    /// An invalid file.
    pub fn invalid(path: &Path, problem: impl Into<String>) -> StoreError {
        StoreError::Invalid {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}
