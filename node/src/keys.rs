//! API keys at this node's own endpoint: what coordinators tell of them, kept on disk for when none is in
//! reach, and what they took here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pomona_api::Access;
use pomona_clocks::wall_s;
use pomona_common::control::CoordinatorMessage;
use pomona_common::{ClusterId, MachineRole, Pools};
use pomona_keys::Learned;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::files::{read_json, write_json};

/// Many keys come one after the other: they are written this often.
const WRITES: Duration = Duration::from_secs(1);

/// See the module's documentation. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    access: Access,
    learned: Arc<Mutex<Kept>>,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct OnDisk {
    cluster: Option<ClusterId>,
    learned: Learned,
}

#[derive(Debug)]
struct Kept {
    cluster: Option<ClusterId>,
    learned: Learned,
    path: PathBuf,
    is_written: bool,
}

impl Keys {
    /// What the node whose state is in `folder` knew last of its cluster's keys.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(crate) fn open(folder: &Path, access: Access, cluster: Option<ClusterId>) -> io::Result<Self> {
        let path = folder.join("keys");
        let on_disk: OnDisk = read_json(&path)?;
        // Another cluster's keys open nothing here.
        let learned = if on_disk.cluster == cluster {
            on_disk.learned
        } else {
            Learned::default()
        };
        access.learn(|ring| learned.fill(ring));
        let kept = Kept {
            cluster,
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
            CoordinatorMessage::Keys { applied, ids, role } => {
                let is_new = learned.learn_keys(applied, &ids, role);
                self.access.learn(|ring| learned.fill(ring));
                is_new
            }
            CoordinatorMessage::Key { applied, id, record } => {
                let is_new = learned.learn_key(applied, id, *record);
                self.access.learn(|ring| learned.fill_key(ring, id));
                is_new
            }
            CoordinatorMessage::Spent {
                applied,
                spent,
                charged,
            } => {
                learned.learn_spent(applied, spent, charged, wall_s());
                self.access.learn(|ring| learned.fill_spent(ring));
                // Not on disk: it is of this minute and this day.
                false
            }
            _ => false,
        };
        kept.is_written &= !is_new;
    }

    /// Writes down what is new, until the stop, and then once more: what was revoked a moment ago must not
    /// open after the next start.
    pub(crate) async fn run(self, stopped: CancellationToken) {
        loop {
            let is_last = tokio::time::timeout(WRITES, stopped.cancelled()).await.is_ok();
            // A rented machine that leaves destroys its folder, and has nothing to keep.
            if let Some((path, on_disk)) = self.unwritten()
                && !(is_last && self.role() == Some(MachineRole::Rented))
            {
                let write = move || write_json(&path, &on_disk);
                // Disks may be slow, and requests ask what is known.
                match tokio::task::spawn_blocking(write).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::error!(%error, "API keys are not on disk");
                        self.kept().is_written = false;
                    }
                    Err(_) => return,
                }
            }
            if is_last {
                return;
            }
        }
    }

    fn unwritten(&self) -> Option<(PathBuf, OnDisk)> {
        let mut kept = self.kept();
        let is_written = std::mem::replace(&mut kept.is_written, true);
        let on_disk = || OnDisk {
            cluster: kept.cluster,
            learned: kept.learned.clone(),
        };
        (!is_written).then(|| (kept.path.clone(), on_disk()))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::KeyId;
    use pomona_common::key::{KeyHash, KeyRecord};

    use super::*;

    #[tokio::test]
    async fn what_was_learned_last_is_there_again_and_another_clusters_is_not() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let cluster = |bits| Some(ClusterId::from_bits(bits));
        let open = |cluster| Keys::open(folder.path(), Access::new(false, 1), cluster);
        let keys = open(cluster(1))?;
        let id = KeyId::from_bits(7);
        let (applied, role) = (9, MachineRole::Laptop);
        keys.learn(CoordinatorMessage::Keys {
            applied,
            ids: vec![id],
            role,
        });
        let record = Box::new(KeyRecord::new("ci", KeyHash([1; 32]), 0));
        keys.learn(CoordinatorMessage::Key { applied, id, record });
        // Stopped before the first look: it is written all the same.
        let stopped = CancellationToken::new();
        stopped.cancel();
        keys.run(stopped).await;
        let again = open(cluster(1))?;
        assert!(!again.is_empty() && again.role() == Some(role));
        let other = open(cluster(2))?;
        assert!(other.is_empty() && other.role().is_none());
        Ok(())
    }
}
