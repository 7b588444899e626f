//! A hub that speaks Hugging Face's API.

use pomona_common::ModelName;
use serde_json::Value;

use super::download::{Downloads, RemoteFile};
use super::{PullError, wanted};

/// Files of one repository that are looked at.
const FILES: usize = 512;

/// A hub.
pub struct Hub {
    /// Base URL, `https://huggingface.co` unless `HF_ENDPOINT` says otherwise.
    pub endpoint: String,
    /// Token for gated models.
    pub token: Option<String>,
}

impl Hub {
    pub(super) fn downloads(&self) -> Downloads {
        Downloads::new(self.token.clone())
    }

    /// The files of a model.
    pub(super) fn list(&self, downloads: &Downloads, name: &ModelName) -> Result<Vec<RemoteFile>, PullError> {
        let url = format!("{}/api/models/{name}/revision/main?blobs=true", self.endpoint);
        let failed = |problem: String| PullError::at(&url, problem);
        let mut response = downloads
            .request(&url, None, None)
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
                let file_name = file["rfilename"].as_str().filter(|name| wanted(name))?;
                Some(RemoteFile {
                    url: format!("{}/{name}/resolve/main/{file_name}", self.endpoint),
                    name: file_name.to_owned(),
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
}
