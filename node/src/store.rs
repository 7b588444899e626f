//! The models on this machine: folders below one directory, each with a record that is computed
//! once and kept beside it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pomona_common::control::TextBundle;
use pomona_common::weights::Manifest;
use pomona_common::{ModelName, ModelRecord};
use pomona_store::manifest::manifest_of;
use pomona_store::{ModelFolder, StoreError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::adopted::Adopted;

/// How often the directory is looked at: a pull by another process appears within this time.
const RESCAN: Duration = Duration::from_secs(2);
/// The record, kept in the model's folder.
const RECORD: &str = "pomona.json";
/// The manifest, kept there as well.
const MANIFEST: &str = "pomona.manifest";
/// A folder that is being written; its name tells scans to leave it alone.
const PARTIAL: &str = ".partial";

/// A handle on the store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    folder: Arc<PathBuf>,
    models: watch::Receiver<Arc<Vec<ModelRecord>>>,
    /// Whether the folder was read once.
    scanned: watch::Receiver<bool>,
    /// Manifests by model, each with the time of its file.
    manifests: Arc<Mutex<Manifests>>,
}

type Manifests = BTreeMap<ModelName, (SystemTime, Arc<Manifest>)>;

impl Store {
    /// Follows a folder until the stop.
    pub fn open(folder: PathBuf, tasks: &mut JoinSet<()>, stopped: CancellationToken) -> Self {
        let (sender, models) = watch::channel(Arc::new(Vec::new()));
        let (read_once, scanned) = watch::channel(false);
        let folder = Arc::new(folder);
        let place = folder.clone();
        tasks.spawn(async move {
            loop {
                let folder = place.clone();
                if let Ok(found) = tokio::task::spawn_blocking(move || scan(&folder)).await {
                    sender.send_if_modified(|known| {
                        let changed = **known != found;
                        if changed {
                            *known = Arc::new(found);
                        }
                        changed
                    });
                    read_once.send_replace(true);
                }
                tokio::select! {
                    () = tokio::time::sleep(RESCAN) => {}
                    () = stopped.cancelled() => return,
                }
            }
        });
        Self {
            folder,
            models,
            scanned,
            manifests: Arc::default(),
        }
    }

    /// Models in the store, and news of them.
    pub fn models(&self) -> watch::Receiver<Arc<Vec<ModelRecord>>> {
        self.models.clone()
    }

    /// Waits until the folder was read for the first time.
    pub(crate) async fn scanned(&self) {
        // Fails when the node stops: then nobody asks any more.
        let _ = self.scanned.clone().wait_for(|scanned| *scanned).await;
    }

    /// The folder of all models.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes on the disk of models that other nodes give, and that are not whole yet.
    pub(crate) fn half_brought(&self) -> u64 {
        let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        let suffix = format!(".fetch{PARTIAL}");
        let folders =
            entries(&self.folder).filter(|entry| entry.file_name().to_string_lossy().ends_with(&suffix));
        // Blocks: files are made in their full length, and filled where chunks arrive.
        let used = |file: fs::DirEntry| file.metadata().map_or(0, |meta| meta.blocks() * 512);
        folders.flat_map(|folder| entries(&folder.path())).map(used).sum()
    }

    /// The folder of a model.
    pub fn path(&self, model: &ModelName) -> PathBuf {
        self.folder.join(model.as_folder())
    }

    /// The manifest of a model: made when it came into the store, else now, and kept in memory.
    ///
    /// # Errors
    /// There is no such model, or it cannot be read.
    pub fn manifest(&self, model: &ModelName) -> Result<Arc<Manifest>, StoreError> {
        let folder = self.path(model);
        let known = self.models.borrow().iter().any(|record| record.name == *model);
        if !known {
            return Err(StoreError::invalid(&folder, "no such model"));
        }
        let mut manifests = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        let path = folder.join(MANIFEST);
        let made = fs::metadata(&path).and_then(|meta| meta.modified()).ok();
        if let Some((at, manifest)) = manifests.get(model)
            && made == Some(*at)
        {
            return Ok(manifest.clone());
        }
        let kept = fs::read(&path).ok();
        let kept = kept.and_then(|bytes| {
            pomona_wire::read_from::<Manifest>(&mut bytes.as_slice())
                .ok()
                .flatten()
        });
        let manifest = match kept {
            Some(manifest) => manifest,
            None => {
                let manifest = manifest_of(&folder)?;
                write_manifest(&folder, &manifest)?;
                manifest
            }
        };
        let manifest = Arc::new(manifest);
        let made = fs::metadata(&path)
            .and_then(|meta| meta.modified())
            .map_err(StoreError::io(&path))?;
        manifests.retain(|name, _| self.models.borrow().iter().any(|record| record.name == *name));
        manifests.insert(model.clone(), (made, manifest.clone()));
        Ok(manifest)
    }

    /// Tokenizer and template of a model.
    ///
    /// # Errors
    /// The folder is gone or damaged.
    pub fn text(&self, model: &ModelName) -> Result<TextBundle, StoreError> {
        let folder = ModelFolder::open(&self.path(model))?;
        pomona_store::text_bundle(&folder.path, &folder.config)
    }
}

/// Every sound model of a directory; the others are left out with a warning.
pub fn scan(folder: &Path) -> Vec<ModelRecord> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut records: Vec<ModelRecord> = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(PARTIAL) || !entry.path().is_dir() {
                return None;
            }
            let model: ModelName = name.replace("--", "/").parse().ok()?;
            match record(&entry.path(), model) {
                Ok(record) => Some(record),
                Err(error) => {
                    tracing::warn!(folder = %entry.path().display(), %error, "model left out");
                    None
                }
            }
        })
        .collect();
    records.sort_by(|a, b| a.name.cmp(&b.name));
    records
}

/// The record of a folder: the kept one when it is newer than every file, else a new one.
fn record(folder: &Path, name: ModelName) -> Result<ModelRecord, StoreError> {
    if let Some(adopted) = Adopted::read(folder) {
        return Ok(adopted.map_err(StoreError::io(folder))?.record(name));
    }
    let kept = folder.join(RECORD);
    let changed = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let newest = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name() != RECORD && entry.file_name() != MANIFEST)
        .filter_map(|entry| changed(&entry.path()))
        .max();
    if changed(&kept)
        .zip(newest)
        .is_some_and(|(kept, newest)| kept >= newest)
        && let Ok(bytes) = fs::read(&kept)
        && let Ok(record) = serde_json::from_slice::<ModelRecord>(&bytes)
        && record.name == name
    {
        return Ok(record);
    }
    write_record(folder, name, &mut |_| {})
}

/// Checks a folder, computes its record and its manifest and keeps both there.
///
/// # Errors
/// The folder is not a sound model.
pub fn write_record(
    folder: &Path,
    name: ModelName,
    progress: &mut dyn FnMut(u64),
) -> Result<ModelRecord, StoreError> {
    write_record_of(folder, name, None, progress)
}

/// As [`write_record`], of a folder whose chunks are known to be those of a manifest.
pub(crate) fn write_record_of(
    folder: &Path,
    name: ModelName,
    manifest: Option<&Manifest>,
    progress: &mut dyn FnMut(u64),
) -> Result<ModelRecord, StoreError> {
    let created_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let record = ModelFolder::open(folder)?.record(name, created_s, progress)?;
    match manifest {
        Some(manifest) => write_manifest(folder, manifest)?,
        None => write_manifest(folder, &manifest_of(folder)?)?,
    }
    let path = folder.join(RECORD);
    let json =
        serde_json::to_vec_pretty(&record).map_err(|error| StoreError::invalid(&path, error.to_string()))?;
    fs::write(&path, json).map_err(StoreError::io(&path))?;
    Ok(record)
}

/// Where a model is put together that comes from other nodes.
pub(crate) fn fetch_folder(models: &Path, name: &ModelName) -> PathBuf {
    models.join(format!("{}.fetch{PARTIAL}", name.as_folder()))
}

fn write_manifest(folder: &Path, manifest: &Manifest) -> Result<(), StoreError> {
    let path = folder.join(MANIFEST);
    let frame =
        pomona_wire::encode(manifest).map_err(|error| StoreError::invalid(&path, error.to_string()))?;
    fs::write(&path, frame).map_err(StoreError::io(&path))
}

/// Where a model is put together before it is moved to its name.
pub fn partial_folder(models: &Path, name: &ModelName) -> PathBuf {
    models.join(format!("{}{PARTIAL}", name.as_folder()))
}

/// Where an archive that carries a model lies until it is unpacked.
pub fn unpack_folder(models: &Path, name: &ModelName) -> PathBuf {
    models.join(format!("{}.archive{PARTIAL}", name.as_folder()))
}
