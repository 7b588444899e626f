//! What coordinators said last about this node's work, kept on disk: a machine that starts where none is in
//! reach goes on with it, so that a laptop on a train still answers.

use std::io;
use std::path::{Path, PathBuf};

use pomona_common::plan::NodeTarget;
use pomona_common::{ClusterId, Fallbacks, KnobSet, Versioned};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::files::{read_json, write_json};
use crate::instructions::Instructed;
use crate::store::Store;
use crate::supervisor::Supervisor;

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    cluster: Option<ClusterId>,
    /// What to hold.
    target: Option<NodeTarget>,
    /// The cluster's knobs.
    knobs: Option<KnobSet>,
    /// Where the cluster's requests go.
    #[serde(default)]
    fallbacks: Option<Fallbacks>,
}

/// See the module's documentation. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct LastTold {
    now: watch::Sender<Told>,
    /// It has seen what is on disk.
    news: watch::Receiver<Told>,
    path: PathBuf,
}

impl LastTold {
    /// What the node whose state is in `folder` heard last in this cluster.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(crate) fn open(folder: &Path, cluster: ClusterId) -> io::Result<Self> {
        let path = folder.join("told.json");
        let told: Told = read_json(&path)?;
        let told = if told.cluster == Some(cluster) {
            told
        } else {
            Told {
                cluster: Some(cluster),
                ..Told::default()
            }
        };
        let (now, news) = watch::channel(told);
        Ok(Self { now, news, path })
    }

    /// Goes on as it was told, until a coordinator says something newer.
    pub(crate) async fn resume(&self, instructed: &Instructed, supervisor: &Supervisor, store: &Store) {
        let Told {
            target,
            knobs,
            fallbacks,
            ..
        } = self.now();
        if let Some(fallbacks) = fallbacks {
            instructed.set_fallbacks(fallbacks);
        }
        if let Some(knobs) = knobs {
            instructed.set_knobs(knobs);
        }
        if let Some(target) = target {
            tracing::info!(
                models = target.models.len(),
                "begins with what the cluster wanted here last"
            );
            supervisor.follow(target, store).await;
        }
    }

    /// As it is now.
    fn now(&self) -> Told {
        self.now.borrow().clone()
    }

    /// A coordinator says what to hold; of several targets the newest counts.
    pub(crate) fn learn_target(&self, target: &NodeTarget) {
        self.now.send_if_modified(|told| {
            let is_news = told
                .target
                .as_ref()
                .is_none_or(|known| known.generation < target.generation);
            if is_news {
                told.target = Some(target.clone());
            }
            is_news
        });
    }

    /// A coordinator says what the knobs are, likewise.
    pub(crate) fn learn_knobs(&self, knobs: &KnobSet) {
        self.now
            .send_if_modified(|told| knobs.replace_in(&mut told.knobs));
    }

    /// A coordinator says where requests go, likewise.
    pub(crate) fn learn_fallbacks(&self, fallbacks: &Fallbacks) {
        self.now
            .send_if_modified(|told| fallbacks.replace_in(&mut told.fallbacks));
    }

    /// Writes down what is new, until the stop. What is lost with a machine that dies meanwhile is told again.
    pub(crate) async fn run(self, stopped: CancellationToken) {
        let mut news = self.news;
        loop {
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = stopped.cancelled() => return,
            }
            let (path, told) = (self.path.clone(), news.borrow_and_update().clone());
            // Disks may be slow, and sessions go on.
            let written = tokio::task::spawn_blocking(move || write_json(&path, &told)).await;
            if let Ok(Err(error)) = written {
                tracing::error!(%error, "what coordinators said is not on disk: the next start waits for one");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use pomona_common::EngineKnobs;

    use super::*;

    fn target(generation: u64) -> NodeTarget {
        NodeTarget {
            generation,
            models: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn the_newest_is_there_again_and_another_clusters_is_not() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let (cluster, other) = (ClusterId::from_bits(1), ClusterId::from_bits(2));
        let told = LastTold::open(folder.path(), cluster)?;
        assert_eq!(told.now().target, None);
        let stop = CancellationToken::new();
        for generation in [3, 7, 5] {
            told.learn_target(&target(generation));
        }
        let knobs = KnobSet {
            version: 2,
            ..KnobSet::of(&EngineKnobs::default())
        };
        told.learn_knobs(&knobs);
        let again = || LastTold::open(folder.path(), cluster).map(|told| told.now());
        let is_there = async {
            while !again().is_ok_and(|again| again == told.now()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            stop.cancel();
        };
        let both = async { tokio::join!(told.clone().run(stop.clone()), is_there) };
        assert!(tokio::time::timeout(Duration::from_secs(10), both).await.is_ok());
        assert_eq!(again()?.target, Some(target(7)));
        assert_eq!(again()?.knobs, Some(knobs));
        let elsewhere = LastTold::open(folder.path(), other)?.now();
        assert_eq!((elsewhere.target, elsewhere.knobs), (None, None));
        Ok(())
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("told.json"), "{\"target\":")?;
        let told = LastTold::open(folder.path(), ClusterId::from_bits(1))?;
        assert_eq!(told.now().target, None);
        Ok(())
    }
}
