//! What coordinators said last about this node's work, kept on disk: a machine that starts where none is in
//! reach goes on with it, so that a laptop on a train still answers.

use std::io;
use std::path::{Path, PathBuf};

use pomona_common::plan::NodeTarget;
use pomona_common::{ClusterId, ModelName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::files::{read_json, write_json};
use crate::instructions::{Agreed, Instructed, Instructions};
use crate::store::Store;
use crate::supervisor::Supervisor;

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct OnDisk {
    cluster: Option<ClusterId>,
    /// What to hold.
    target: Option<NodeTarget>,
    /// What the cluster agrees on.
    #[serde(flatten)]
    agreed: Agreed,
}

/// See the module's documentation. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct LastTold {
    /// What is on disk.
    written: OnDisk,
    /// The target that is begun with.
    resumed: Option<NodeTarget>,
    /// The target that was said since.
    target: watch::Sender<Option<NodeTarget>>,
    path: PathBuf,
}

impl LastTold {
    /// What the node whose state is in `folder` heard last in this cluster.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(crate) fn open(folder: &Path, cluster: ClusterId) -> io::Result<Self> {
        let path = folder.join("told.json");
        let on_disk: OnDisk = read_json(&path)?;
        let on_disk = if on_disk.cluster == Some(cluster) {
            on_disk
        } else {
            OnDisk {
                cluster: Some(cluster),
                ..OnDisk::default()
            }
        };
        Ok(Self {
            resumed: on_disk.target.clone(),
            written: on_disk,
            target: watch::Sender::new(None),
            path,
        })
    }

    /// Goes on as it was told, until a coordinator says something else.
    pub(crate) async fn resume(&mut self, instructed: &Instructed, supervisor: &Supervisor, store: &Store) {
        let OnDisk { target, agreed, .. } = self.written.clone();
        let versions = (
            agreed.knobs.as_ref().map(|set| set.version),
            agreed.fallbacks.as_ref().map(|set| set.version),
            agreed.slos.as_ref().map(|set| set.version),
        );
        instructed.resume(agreed);
        self.resumed = target.map(|target| resumed(target, supervisor.killed_before.as_ref()));
        if let Some(target) = self.resumed.clone() {
            tracing::info!(
                models = target.models.len(),
                knobs = versions.0,
                fallbacks = versions.1,
                slos = versions.2,
                "begins with what the cluster wanted here last"
            );
            supervisor.follow(target, store).await;
        }
    }

    /// A coordinator says what to hold; of several targets the newest counts.
    pub(crate) fn learn_target(&self, target: &NodeTarget) {
        self.target.send_if_modified(|known| {
            let is_news = known
                .as_ref()
                .is_none_or(|known| known.generation < target.generation);
            if is_news {
                *known = Some(target.clone());
            }
            is_news
        });
    }

    /// Writes down what is new, until the stop, and then once more, unless a rented machine removes its folder
    /// by then.
    pub(crate) async fn run(
        self,
        mut instructions: watch::Receiver<Instructions>,
        is_rented: impl Fn() -> bool,
        stopped: CancellationToken,
    ) {
        let mut targets = self.target.subscribe();
        let mut written = self.written;
        loop {
            let is_last = stopped.is_cancelled();
            let now = {
                let instructions = instructions.borrow_and_update();
                OnDisk {
                    cluster: written.cluster,
                    target: targets.borrow_and_update().clone().or(self.resumed.clone()),
                    agreed: instructions.agreed.clone(),
                }
            };
            if now != written && !(is_last && is_rented()) {
                let (path, value) = (self.path.clone(), now.clone());
                // Disks may be slow, and sessions go on.
                match tokio::task::spawn_blocking(move || write_json(&path, &value)).await {
                    Ok(Ok(())) => written = now,
                    Ok(Err(error)) => tracing::error!(%error, "what coordinators said is not on disk"),
                    Err(_) => return,
                }
            }
            if is_last {
                return;
            }
            tokio::select! {
                changed = instructions.changed() => if changed.is_err() { return },
                _ = targets.changed() => {}
                () = stopped.cancelled() => {}
            }
        }
    }
}

/// What to begin with. Whatever a coordinator says later counts more: the cluster may have been set back to an
/// earlier state. What took this node down along with its engine, as far as that is known at the start, waits for
/// that word, or it would do so at every start.
fn resumed(mut target: NodeTarget, killed_before: Option<&ModelName>) -> NodeTarget {
    target.generation = 0;
    if let Some(model) = killed_before {
        target.models.remove(model);
    }
    target
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pomona_common::{EngineKnobs, Fallbacks, KnobSet};

    use super::*;

    #[tokio::test]
    async fn the_newest_is_there_again_and_another_clusters_is_not() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let (cluster, other) = (ClusterId::from_bits(1), ClusterId::from_bits(2));
        let told = LastTold::open(folder.path(), cluster)?;
        let instructed = Instructed::new();
        for generation in [3, 7, 5] {
            let models = BTreeMap::new();
            told.learn_target(&NodeTarget { generation, models });
        }
        let knobs = KnobSet {
            version: 2,
            ..KnobSet::of(&EngineKnobs::default())
        };
        instructed.agree(|agreed| &mut agreed.knobs, knobs.clone());
        let fallbacks = Fallbacks {
            version: 3,
            ..Fallbacks::default()
        };
        instructed.agree(|agreed| &mut agreed.fallbacks, fallbacks.clone());
        let agreed = instructed.watch().borrow().agreed.clone();
        // Stopped before the first look: it is written all the same, unless the machine is rented.
        let stopped = CancellationToken::new();
        stopped.cancel();
        told.clone()
            .run(instructed.watch(), || true, stopped.clone())
            .await;
        assert_eq!(LastTold::open(folder.path(), cluster)?.written.target, None);
        told.run(instructed.watch(), || false, stopped).await;
        let again = LastTold::open(folder.path(), cluster)?.written;
        assert_eq!(again.target.map(|target| target.generation), Some(7));
        assert_eq!(
            (&again.agreed.knobs, &again.agreed.fallbacks),
            (&Some(knobs), &Some(fallbacks))
        );
        assert_eq!(again.agreed, agreed);
        let elsewhere = LastTold::open(folder.path(), other)?.written;
        assert_eq!((elsewhere.target, elsewhere.agreed), (None, Agreed::default()));
        Ok(())
    }

    #[test]
    fn what_took_the_node_down_is_not_begun_with() -> Result<(), String> {
        let names = ["a", "b"].map(str::parse::<ModelName>);
        let names: Result<Vec<ModelName>, _> = names.into_iter().collect();
        let names = names.map_err(|error| error.to_string())?;
        let models = names.iter().map(|name| (name.clone(), String::new())).collect();
        let target = NodeTarget {
            generation: 7,
            models,
        };
        let resumed = |killed| resumed(target.clone(), killed);
        assert_eq!((resumed(None).generation, resumed(None).models.len()), (0, 2));
        let left: Vec<ModelName> = resumed(Some(&names[0])).models.into_keys().collect();
        assert_eq!(left, names[1..]);
        Ok(())
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("told.json"), "{\"target\":")?;
        let told = LastTold::open(folder.path(), ClusterId::from_bits(1))?;
        assert_eq!(told.written.target, None);
        Ok(())
    }
}
