//! Pulls models: from a hub that speaks Hugging Face's API, from a folder, or from a GGUF file.
//! A model is put together beside its place and moved there when every check has passed.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pomona_common::{ModelName, ModelRecord};
use pomona_store::{StoreError, digest, import};
use serde_json::Value;

use crate::store::{partial_folder, write_record};

/// Attempts in a row that bring a file no further; each goes on where the last one stopped.
const ATTEMPTS: u32 = 5;
/// Files of one repository that are looked at.
const FILES: usize = 512;
/// Largest file.
const FILE_BYTES: u64 = 1 << 40;

/// Why a model is not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The hub cannot be reached or answers nonsense.
    #[error("{url}: {problem}")]
    Hub {
        /// What was asked.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// The hub has no such model, or it needs a token.
    #[error("the hub does not give `{0}`: check the name, or set HF_TOKEN if it is gated")]
    NoSuchModel(ModelName),
    /// Contents differ from what the hub promised.
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

/// A hub and a place to put models.
pub struct Puller {
    /// Base URL, `https://huggingface.co` unless `HF_ENDPOINT` says otherwise.
    pub endpoint: String,
    /// Token for gated models.
    pub token: Option<String>,
    /// The store's folder.
    pub models: PathBuf,
}

struct RemoteFile {
    name: String,
    size: Option<u64>,
    sha256: Option<String>,
}

impl Puller {
    /// Pulls a model from the hub under its own name. A pull that broke off goes on.
    ///
    /// # Errors
    /// The hub fails for good, or the contents are not what it promised.
    pub fn pull(
        &self,
        name: &ModelName,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelRecord, PullError> {
        let agent = agent();
        let files = self.list(&agent, name)?;
        let partial = partial_folder(&self.models, name);
        fs::create_dir_all(&partial).map_err(io_error(&partial))?;
        for file in &files {
            self.fetch(&agent, name, file, &partial, progress)?;
        }
        self.settle(name, &partial, progress)
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

    fn list(&self, agent: &ureq::Agent, name: &ModelName) -> Result<Vec<RemoteFile>, PullError> {
        let url = format!("{}/api/models/{name}/revision/main?blobs=true", self.endpoint);
        let failed = |problem: String| PullError::Hub {
            url: url.clone(),
            problem,
        };
        let mut response = self
            .request(agent, &url, None)
            .map_err(|error| failed(error.to_string()))?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 | 404 => return Err(PullError::NoSuchModel(name.clone())),
            status => return Err(failed(format!("status {status}"))),
        }
        let listing: Value = response
            .body_mut()
            .read_json()
            .map_err(|error| failed(error.to_string()))?;
        let siblings = listing["siblings"]
            .as_array()
            .ok_or_else(|| failed("no list of files".to_owned()))?;
        let files: Vec<RemoteFile> = siblings
            .iter()
            .take(FILES)
            .filter_map(|file| {
                Some(RemoteFile {
                    name: file["rfilename"].as_str().filter(|name| wanted(name))?.to_owned(),
                    size: file["lfs"]["size"].as_u64().or(file["size"].as_u64()),
                    sha256: file["lfs"]["sha256"].as_str().map(str::to_owned),
                })
            })
            .collect();
        if files.is_empty() {
            return Err(failed(
                "no model files (config.json, *.safetensors, tokenizer.json)".to_owned(),
            ));
        }
        Ok(files)
    }

    /// Downloads one file, going on where an earlier attempt stopped.
    fn fetch(
        &self,
        agent: &ureq::Agent,
        model: &ModelName,
        file: &RemoteFile,
        folder: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), PullError> {
        let url = format!("{}/{model}/resolve/main/{}", self.endpoint, file.name);
        let path = folder.join(&file.name);
        let mut fruitless = 0;
        let mut have = 0;
        loop {
            let problem = match self.append(agent, &url, file, &path, progress) {
                Ok(()) => return check(file, &path),
                Err(Stop::Again(problem)) => problem,
                Err(Stop::Never(problem)) => return Err(PullError::Hub { url, problem }),
            };
            // Attempts that bring the file forward are not counted: they end with the file.
            let now = fs::metadata(&path).map_or(0, |meta| meta.len());
            fruitless = if now > have { 0 } else { fruitless + 1 };
            have = have.max(now);
            if fruitless >= ATTEMPTS {
                return Err(PullError::Hub {
                    url,
                    problem: format!("{problem} ({ATTEMPTS} attempts)"),
                });
            }
            std::thread::sleep(Duration::from_millis(100 << fruitless));
        }
    }

    fn append(
        &self,
        agent: &ureq::Agent,
        url: &str,
        file: &RemoteFile,
        path: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Stop> {
        let have = fs::metadata(path).map_or(0, |meta| meta.len());
        if file.size.is_some_and(|size| size == have) && have > 0 {
            return Ok(());
        }
        let response = self
            .request(agent, url, (have > 0).then_some(have))
            .map_err(|error| Stop::Again(error.to_string()))?;
        let status = response.status().as_u16();
        let resumed = status == 206;
        match status {
            200 | 206 => {}
            // Past the end: what is here is not what is there.
            416 => {
                let _ = fs::remove_file(path);
                return Err(Stop::Again("the server refused to resume".to_owned()));
            }
            500..=599 | 429 => return Err(Stop::Again(format!("status {status}"))),
            _ => return Err(Stop::Never(format!("status {status}"))),
        }
        let mut done = if resumed { have } else { 0 };
        let mut out = OpenOptions::new()
            .create(true)
            .write(true)
            .append(resumed)
            .truncate(!resumed)
            .open(path)
            .map_err(|error| Stop::Never(error.to_string()))?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = body
                .read(&mut buffer)
                .map_err(|error| Stop::Again(error.to_string()))?;
            if n == 0 {
                break;
            }
            done += n as u64;
            if done > file.size.unwrap_or(FILE_BYTES) {
                let _ = fs::remove_file(path);
                return Err(Stop::Never("the file is longer than the hub said".to_owned()));
            }
            out.write_all(&buffer[..n])
                .map_err(|error| Stop::Never(error.to_string()))?;
            progress(Progress {
                file: file.name.clone(),
                done,
                total: file.size.unwrap_or(0),
            });
        }
        match file.size {
            Some(size) if done < size => {
                Err(Stop::Again(format!("the body ended at {done} of {size} bytes")))
            }
            _ => Ok(()),
        }
    }

    fn request(
        &self,
        agent: &ureq::Agent,
        url: &str,
        from: Option<u64>,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let mut request = agent.get(url);
        if let Some(token) = &self.token {
            // ureq drops it on a redirect to another host.
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call()
    }
}

enum Stop {
    /// Worth another attempt.
    Again(String),
    /// Not.
    Never(String),
}

/// Checks length and digest; a wrong file is removed, so that the next pull starts it afresh.
fn check(file: &RemoteFile, path: &Path) -> Result<(), PullError> {
    let Some(expected) = &file.sha256 else {
        return Ok(());
    };
    let got = digest::of_file(path)?;
    if got == *expected {
        return Ok(());
    }
    let _ = fs::remove_file(path);
    Err(PullError::Damaged {
        file: file.name.clone(),
        problem: format!("its SHA-256 is {got}, the hub says {expected}"),
    })
}

/// What a model folder is made of: plain names at the top, nothing else.
fn wanted(name: &str) -> bool {
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && name.len() <= 200
        && !name.starts_with('.');
    let part = matches!(
        name,
        "config.json"
            | "generation_config.json"
            | "tokenizer.json"
            | "tokenizer_config.json"
            | "chat_template.jinja"
            | "model.safetensors.index.json"
    );
    plain && (part || (name.starts_with("model") && name.ends_with(".safetensors")))
}

fn agent() -> ureq::Agent {
    let patience = Some(Duration::from_secs(30));
    ureq::Agent::config_builder()
        .timeout_connect(patience)
        .timeout_recv_response(patience)
        .timeout_per_read(patience)
        .http_status_as_error(false)
        .user_agent(concat!("pomona/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> PullError + use<> {
    let path = path.to_owned();
    move |source| PullError::Io { path, source }
}
