//! Brings the models that this node is to hold and does not store, from the nodes that a
//! coordinator names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pomona_common::{ModelDigests, ModelName, ModelRecord, NodeId};
use pomona_link::{Identity, Pace};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::credentials::Credentials;
use crate::neighbours::Neighbours;
use crate::store::fetch_folder;
use crate::vault::{State, Vault};
use crate::weights::{FetchError, Givers, fetch};

/// Wishes that wait; each coordinator repeats what changes.
const WISHES: usize = 64;
/// Coordinators that are asked to pass a model on; the last one that offered it first.
const COORDINATORS: usize = 5;
/// First and longest wait before a model is tried again.
const AGAIN_FIRST: Duration = Duration::from_secs(2);
const AGAIN_LONGEST: Duration = Duration::from_secs(120);
/// So often in a row those that are named may stop half-way before others are asked.
const BROKEN: u32 = 3;
/// How often is looked whether the store's volume is there.
const LOOK: Duration = Duration::from_millis(200);
/// After the start, whoever is on the LAN has been seen within this time.
const LAN_SEEN: Duration = Duration::from_secs(3);
/// Between two lines of the log about how far a model has come.
const SAY: Duration = Duration::from_secs(10);

/// A model that is to be brought, and who has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wish {
    pub(crate) record: ModelRecord,
    /// Nodes that give it.
    pub(crate) nodes: Vec<SocketAddr>,
    /// Coordinators that pass it on. Neither when it is not wanted any more.
    pub(crate) coordinators: Vec<SocketAddr>,
}

/// A handle on the fetcher; clones share it.
#[derive(Clone)]
pub(crate) struct Fetcher {
    wishes: mpsc::Sender<Wish>,
    /// Models that could not be brought lately.
    failed: watch::Receiver<BTreeSet<ModelName>>,
}

impl Fetcher {
    pub(crate) fn start(
        id: NodeId,
        (models, vault): (PathBuf, Arc<Vault>),
        neighbours: Neighbours,
        credentials: Arc<Credentials>,
        pace: Pace,
        tasks: &mut JoinSet<()>,
        stop: CancellationToken,
    ) -> Self {
        let (wishes, receiver) = mpsc::channel(WISHES);
        let (sender, failed) = watch::channel(BTreeSet::new());
        let work = Work {
            id,
            models,
            vault,
            neighbours,
            began: Instant::now(),
            credentials,
            pace,
            failed: sender,
            strange: BTreeMap::new(),
            broken: BTreeMap::new(),
        };
        tasks.spawn(async move {
            tokio::select! {
                () = work.run(receiver) => {}
                () = stop.cancelled() => {}
            }
        });
        Self { wishes, failed }
    }

    /// A coordinator names who has a model. A wish that finds no place is repeated by the next
    /// change.
    pub(crate) fn wish(&self, wish: Wish) {
        let _ = self.wishes.try_send(wish);
    }

    /// Models that could not be brought, and are tried again.
    pub(crate) fn failed(&self) -> watch::Receiver<BTreeSet<ModelName>> {
        self.failed.clone()
    }
}

struct Work {
    id: NodeId,
    models: PathBuf,
    vault: Arc<Vault>,
    neighbours: Neighbours,
    began: Instant,
    credentials: Arc<Credentials>,
    pace: Pace,
    failed: watch::Sender<BTreeSet<ModelName>>,
    /// Models that neighbours have with other contents.
    strange: BTreeMap<ModelName, ModelDigests>,
    /// How often in a row those that are named have stopped half-way.
    broken: BTreeMap<ModelName, u32>,
}

impl Work {
    /// One model after the other: together they would only share the link.
    async fn run(mut self, mut wishes: mpsc::Receiver<Wish>) {
        let mut open: BTreeMap<ModelName, Wish> = BTreeMap::new();
        let mut pause = AGAIN_FIRST;
        loop {
            while let Ok(wish) = wishes.try_recv() {
                self.note(&mut open, wish);
            }
            let Some(wish) = open.values().next().cloned() else {
                match wishes.recv().await {
                    Some(wish) => self.note(&mut open, wish),
                    None => return,
                }
                continue;
            };
            let name = wish.record.name.clone();
            match self.bring(&wish).await {
                Ok(()) => {
                    tracing::info!(model = %name, "model brought from other nodes");
                    self.broken.remove(&name);
                    self.failed.send_if_modified(|failed| failed.remove(&name));
                    open.remove(&name);
                    pause = AGAIN_FIRST;
                }
                Err(error) => {
                    tracing::warn!(model = %name, error = &error as &dyn std::error::Error, "model not brought");
                    self.failed.send_if_modified(|failed| failed.insert(name.clone()));
                    if matches!(error, FetchError::Broken(..)) {
                        pause = AGAIN_FIRST;
                    }
                    // Others get their turn, and sources may change meanwhile.
                    open.remove(&name);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN_LONGEST);
                    open.entry(name).or_insert(wish);
                }
            }
        }
    }

    fn note(&mut self, open: &mut BTreeMap<ModelName, Wish>, wish: Wish) {
        let name = wish.record.name.clone();
        if wish.nodes.is_empty() && wish.coordinators.is_empty() {
            open.remove(&name);
            self.strange.remove(&name);
            self.broken.remove(&name);
            self.failed.send_if_modified(|failed| failed.remove(&name));
            // What was brought of it would take room for good.
            let half = fetch_folder(&self.models, &name);
            if half.exists()
                && let Err(error) = std::fs::remove_dir_all(&half)
            {
                tracing::warn!(model = %name, %error, "what was brought of it is not removed");
            }
            return;
        }
        // Nodes and coordinators are named one after the other.
        let open = open.entry(name).or_insert_with(|| wish.clone());
        open.record = wish.record;
        if !wish.nodes.is_empty() {
            open.nodes = wish.nodes;
        }
        for coordinator in wish.coordinators {
            if !open.coordinators.contains(&coordinator) {
                open.coordinators.insert(0, coordinator);
                open.coordinators.truncate(COORDINATORS);
            }
        }
    }

    async fn bring(&mut self, wish: &Wish) -> Result<(), FetchError> {
        let (name, digests) = (&wish.record.name, &wish.record.digests);
        self.writable(name).await?;
        if self.models.join(name.as_folder()).exists() {
            return Ok(());
        }
        let identity = self
            .credentials
            .identity(self.id)
            .map_err(|error| FetchError::NoSource(name.to_string(), error.to_string()))?;
        let named = Givers::Nodes(wish.nodes.clone());
        // One that has other contents would cost what has come so far.
        let mut asks_neighbours = true;
        match self.bring_from(wish, named, &identity).await {
            Err(FetchError::NoSource(_, why)) => tracing::info!(model = %name, why, "no node named gives it"),
            Err(FetchError::Broken(_, why)) if self.is_broken_for_good(name) => {
                tracing::info!(model = %name, why, "those that are named stop half-way");
                asks_neighbours = false;
            }
            outcome => return outcome,
        }
        // Who has just started has not seen the LAN yet.
        tokio::time::sleep(LAN_SEEN.saturating_sub(self.began.elapsed())).await;
        if asks_neighbours && self.strange.get(name) != Some(digests) {
            let near = Givers::Nodes(self.neighbours.addresses());
            match self.bring_from(wish, near, &identity).await {
                Err(FetchError::NoSource(_, why)) => {
                    tracing::info!(model = %name, why, "no neighbour gives it")
                }
                // Nobody said that they have it.
                Err(FetchError::OtherContents(_)) => {
                    tracing::warn!(model = %name, "a neighbour's model of this name is another one");
                    self.strange.insert(name.clone(), digests.clone());
                }
                outcome => return outcome,
            }
        }
        if !wish.coordinators.is_empty() {
            tracing::warn!(model = %name, "no node is reached: weights come through a coordinator, which is slower");
        }
        let through = Givers::Coordinators(wish.coordinators.clone());
        self.bring_from(wish, through, &identity).await
    }

    /// Counts one more time that the named ones stopped half-way, and says whether others are asked now.
    fn is_broken_for_good(&mut self, name: &ModelName) -> bool {
        let times = self.broken.entry(name.clone()).or_default();
        *times += 1;
        *times > BROKEN
    }

    /// Comes back when models may be written: nothing is, beside an encrypted store.
    async fn writable(&self, name: &ModelName) -> Result<(), FetchError> {
        loop {
            match self.vault.state() {
                State::Closed | State::Open => return Ok(()),
                State::Opening => tokio::time::sleep(LOOK).await,
                State::Failed(why) => return Err(FetchError::NoSource(name.to_string(), why)),
                State::Ended => {
                    let why = "this node ends".to_owned();
                    return Err(FetchError::NoSource(name.to_string(), why));
                }
            }
        }
    }

    async fn bring_from(&self, wish: &Wish, givers: Givers, identity: &Identity) -> Result<(), FetchError> {
        let name = wish.record.name.to_string();
        let said = std::sync::Mutex::new(Instant::now());
        let progress = move |done: u64, total: u64| {
            let mut said = said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if said.elapsed() > SAY {
                *said = Instant::now();
                tracing::info!(model = name, done, total, "bytes of a model brought");
            }
        };
        fetch(
            &self.models,
            &wish.record,
            &givers,
            identity,
            &self.pace,
            progress,
        )
        .await
    }
}
