//! A model folder that passed all checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pomona_common::{ModelDigests, ModelName, ModelRecord};

use crate::config::LlamaConfig;
use crate::header::{self, TensorInfo};
use crate::{StoreError, digest, text};

/// Longest JSON file that is read from a folder, tokenizers apart.
const JSON_LIMIT: u64 = 16 * 1024 * 1024;

/// One weight file and what is in it.
#[derive(Debug, Clone)]
pub struct TensorFile {
    /// The file.
    pub path: PathBuf,
    /// Its tensors.
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// A folder with a valid `config.json`, all shards present, and honest headers.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// Its configuration.
    pub config: LlamaConfig,
    /// Its weights.
    pub files: Vec<TensorFile>,
}

impl ModelFolder {
    /// Opens a folder and checks everything but the numbers in the tensors.
    ///
    /// # Errors
    /// What is missing, unreadable, or contradicts something else.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let config_path = path.join("config.json");
        let json = read_limited(&config_path, JSON_LIMIT)?;
        let config =
            LlamaConfig::parse(&json).map_err(|problem| StoreError::invalid(&config_path, problem))?;
        let files = shard_paths(path)?
            .into_iter()
            .map(|path| {
                let tensors = header::read(&path)?;
                Ok(TensorFile { path, tensors })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        check_index(path, &files)?;
        Ok(Self {
            path: path.to_owned(),
            config,
            files,
        })
    }

    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> u64 {
        self.files
            .iter()
            .flat_map(|file| file.tensors.values())
            .map(|tensor| tensor.bytes)
            .sum()
    }

    /// Bytes of all weights as 32-bit floats.
    pub fn dequantized_bytes(&self) -> u64 {
        let numbers = |name: &str, tensor: &TensorInfo| match tensor.dtype.as_str() {
            "U32" => {
                let layer = name.trim_end_matches(".weight");
                let affine = self.config.quantization.as_ref().and_then(|q| q.of(layer));
                tensor.bytes * 8 / u64::from(affine.map_or(32, |affine| affine.bits))
            }
            "F32" => tensor.bytes / 4,
            _ if name.ends_with(".scales") || name.ends_with(".biases") => 0,
            _ => tensor.bytes / 2,
        };
        let tensors = self.files.iter().flat_map(|file| &file.tensors);
        tensors.map(|(name, tensor)| 4 * numbers(name, tensor)).sum()
    }

    /// The record of this folder for the catalogue; reads every byte once for the digest.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn record(
        &self,
        name: ModelName,
        created_s: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ModelRecord, StoreError> {
        let config_path = self.path.join("config.json");
        let mut paths = vec![config_path.as_path()];
        paths.extend(self.files.iter().map(|file| file.path.as_path()));
        let bundle = text::text_bundle(&self.path, &self.config)?;
        Ok(ModelRecord {
            name,
            digests: ModelDigests {
                weights: digest::of_files(&paths, progress)?,
                tokenizer: digest::of_bytes(&bundle.tokenizer_json),
                template: digest::of_bytes(bundle.chat_template.as_bytes()),
            },
            weight_bytes: self.weight_bytes(),
            dequantized_bytes: self.dequantized_bytes(),
            kv_bytes_per_token: 2 * self.config.kv_numbers_per_token(),
            context: self.config.context,
            created_s,
        })
    }
}

/// Reads a file that may not be longer than `limit`.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    let len = fs::metadata(path).map_err(StoreError::io(path))?.len();
    if len > limit {
        return Err(StoreError::invalid(
            path,
            format!("{len} bytes exceed the limit of {limit}"),
        ));
    }
    fs::read(path).map_err(StoreError::io(path))
}

fn shard_paths(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(folder).map_err(StoreError::io(folder))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("model") && name.ends_with(".safetensors")
        })
        .collect();
    paths.sort();
    if paths.is_empty() {
        return Err(StoreError::invalid(folder, "no model*.safetensors file"));
    }
    Ok(paths)
}

/// The index, where there is one, and the shards name the same tensors in the same files.
fn check_index(folder: &Path, files: &[TensorFile]) -> Result<(), StoreError> {
    let mut seen = BTreeSet::new();
    for file in files {
        for name in file.tensors.keys() {
            if !seen.insert(name) {
                let problem = format!("tensor `{name}` is in a second file too");
                return Err(StoreError::invalid(&file.path, problem));
            }
        }
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(());
    }
    let json: serde_json::Value = serde_json::from_slice(&read_limited(&index, JSON_LIMIT)?)
        .map_err(|error| StoreError::invalid(&index, format!("not JSON: {error}")))?;
    let Some(map) = json["weight_map"].as_object() else {
        return Err(StoreError::invalid(&index, "no weight_map"));
    };
    for (tensor, shard) in map {
        let shard = shard.as_str().unwrap_or_default();
        let file = files
            .iter()
            .find(|file| file.path.file_name().is_some_and(|name| name == shard));
        match file {
            None => {
                let problem = format!("shard `{shard}` is missing");
                return Err(StoreError::invalid(&index, problem));
            }
            Some(file) if !file.tensors.contains_key(tensor) => {
                let problem = format!("tensor `{tensor}` is not in `{shard}`");
                return Err(StoreError::invalid(&index, problem));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
