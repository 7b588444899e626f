//! API keys at this node's own endpoint: what coordinators tell of them, kept on disk for when none is in
//! reach, and what they took here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pomona_api::Access;
use pomona_clocks::wall_s;
use pomona_common::control::CoordinatorMessage;
use pomona_common::{MachineRole, Pools};
use pomona_keys::Learned;
use tokio_util::sync::CancellationToken;

use crate::files::write_whole;

/// Many keys come one after the other: they are written this often.
const WRITES: Duration = Duration::from_secs(1);

/// See the module's documentation. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    access: Access,
    learned: Arc<Mutex<Kept>>,
}

#[derive(Debug)]
struct Kept {
    learned: Learned,
    path: PathBuf,
    is_written: bool,
}

impl Keys {
    /// What the node whose state is in `folder` knew last.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(crate) fn open(folder: &Path, access: Access) -> io::Result<Self> {
        let path = folder.join("keys");
        let learned: Learned = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                // Coordinators tell it again.
                tracing::warn!(%error, path = %path.display(), "the API keys on disk are not readable");
                Learned::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Learned::default(),
            Err(error) => return Err(error),
        };
        access.learn(|ring| learned.fill(ring));
        let kept = Kept {
            learned,
            path,
            is_written: true,
        };
        Ok(Self {
            access,
            learned: Arc::new(Mutex::new(kept)),
        })
    }

    /// Whether there is any.
    pub(crate) fn is_empty(&self) -> bool {
        !self.kept().learned.has_keys()
    }

    /// Where they are asked for.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// What the node is to the cluster, as far as it was told.
    pub(crate) fn role(&self) -> Option<MachineRole> {
        self.kept().learned.role
    }

    /// Whether this machine may answer a request for these pools.
    pub(crate) fn is_in(&self, pools: &Pools) -> bool {
        pools.is_any() || self.role().is_some_and(|role| pools.allow(role))
    }

    /// A coordinator tells something of keys.
    pub(crate) fn learn(&self, message: CoordinatorMessage) {
        let mut kept = self.kept();
        let learned = &mut kept.learned;
        let is_new = match message {
            CoordinatorMessage::Keys { applied, ids, role } => learned.learn_keys(applied, &ids, role),
            CoordinatorMessage::Key { applied, id, record } => learned.learn_key(applied, id, *record),
            CoordinatorMessage::Spent {
                applied,
                spent,
                charged,
            } => {
                learned.learn_spent(applied, spent, charged, wall_s());
                self.access.learn(|ring| learned.fill_spent(ring));
                return;
            }
            _ => return,
        };
        if is_new {
            kept.is_written = false;
            self.access.learn(|ring| kept.learned.fill(ring));
        }
    }

    /// Writes down what is new, until the stop.
    pub(crate) async fn run(self, stopped: CancellationToken) {
        while tokio::time::timeout(WRITES, stopped.cancelled()).await.is_err() {
            let Some((path, learned)) = self.unwritten() else {
                continue;
            };
            let write = move || {
                let text = serde_json::to_string(&learned).map_err(io::Error::from);
                if let Err(error) = text.and_then(|text| write_whole(&path, &text)) {
                    tracing::error!(%error, path = %path.display(), "API keys are not on disk");
                }
            };
            // Disks may be slow, and requests ask what is known.
            if tokio::task::spawn_blocking(write).await.is_err() {
                return;
            }
        }
    }

    fn unwritten(&self) -> Option<(PathBuf, Learned)> {
        let mut kept = self.kept();
        let is_written = std::mem::replace(&mut kept.is_written, true);
        (!is_written).then(|| (kept.path.clone(), kept.learned.clone()))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
