//! One coordinator's copy of the replicated state.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, EmptyNode, Raft, RaftMetrics, SnapshotPolicy};
use pomona_common::limits;
use pomona_decide::ClusterState;
use redb::Database;
use tokio::sync::watch;

use crate::TypeConfig;
use crate::log_store::LogStore;
use crate::network::{Caller, Network, RpcKind, Transport};
use crate::state_machine::StateMachine;
use crate::tables::{decode, encode};

/// Memory for redb's page cache: the whole state is a few hundred kilobytes.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// How often a leader is heard of.
const HEARTBEAT_MS: u64 = 70;
/// A follower waits for this time twice, once for the leader's lease and once of its own, before it
/// stands for election: 460 ms for the first, in which six heartbeats may be lost. openraft draws the
/// time once a process, and two that drew nearly the same split the vote again and again; so it
/// is spaced by the coordinator's number instead, further apart than a vote takes.
const ELECTION_FIRST_MS: u64 = 230;
/// Two elections of coordinators with neighbouring numbers begin twice this apart.
const ELECTION_STEP_MS: u64 = 50;

/// How long a coordinator waits, twice, before it stands for election.
fn election_ms(id: u64) -> std::ops::Range<u64> {
    let step = id % limits::COORDINATORS as u64;
    let wait = ELECTION_FIRST_MS + step * ELECTION_STEP_MS;
    wait..wait + 1
}

/// Where a replica lives.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// Number of this coordinator.
    pub id: u64,
    /// Folder of its databases.
    pub folder: PathBuf,
}

/// Why a replica does not start or a command is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The databases cannot be opened.
    #[error("replicated state in {folder} cannot be opened")]
    Open {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// Raft refused to start or has stopped.
    #[error(
        "this coordinator has stopped writing: {0}; see that its disk has room and is sound, and start it again"
    )]
    Stopped(String),
    /// This coordinator does not lead, and only the leader can do this.
    #[error("coordinator {0:?} leads, ask it")]
    NotLeader(Option<u64>),
    /// Nothing was done.
    #[error(
        "no majority of the coordinators is in reach, nothing was changed; see `pomona coordinator list`"
    )]
    NoLeader,
    /// The leader was lost at the wrong moment, or so much was written meanwhile that nobody remembers.
    #[error(
        "whether this was done is not known: the leader was lost, or very busy; look, and repeat it if needed"
    )]
    Unknown,
    /// A message of Raft does not encode or decode.
    #[error("raft message does not decode")]
    Message(#[source] io::Error),
}

/// How a replica is, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Raft's term.
    pub term: u64,
    /// Index of the last command in the state.
    pub applied: u64,
    /// Who leads, as far as this replica knows.
    pub leader: Option<u64>,
}

/// See the module's documentation.
#[derive(Clone)]
pub struct Replica {
    pub(crate) raft: Raft<TypeConfig>,
    pub(crate) caller: Caller,
    pub(crate) config: ReplicaConfig,
    /// Where the state is published. Held here as well: readers go on when Raft has stopped.
    state: watch::Sender<Arc<ClusterState>>,
}

impl Replica {
    /// Opens the databases in `config.folder`, which must exist, and starts Raft.
    ///
    /// # Errors
    /// A database is damaged beyond its own recovery, or in use by another process.
    pub async fn start(config: ReplicaConfig, transport: impl Transport) -> Result<Self, RaftError> {
        let open = |name: &str| -> Result<Arc<Database>, redb::Error> {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES);
            Ok(Arc::new(builder.create(config.folder.join(name))?))
        };
        let failed = |source: redb::Error| RaftError::Open {
            folder: config.folder.clone(),
            source: Box::new(source),
        };
        let log = open("log.redb").map_err(failed)?;
        let machine = open("state.redb").map_err(failed)?;
        Self::start_on(config.clone(), log, machine, transport).await
    }

    /// Starts Raft on databases that are open already.
    ///
    /// # Errors
    /// What they hold cannot be read.
    pub async fn start_on(
        config: ReplicaConfig,
        log: Arc<Database>,
        machine: Arc<Database>,
        transport: impl Transport,
    ) -> Result<Self, RaftError> {
        let failed = |source: redb::Error| RaftError::Open {
            folder: config.folder.clone(),
            source: Box::new(source),
        };
        let log = LogStore::new(log).map_err(failed)?;
        let (machine, state) = StateMachine::open(machine).map_err(failed)?;
        let election = election_ms(config.id);
        let raft_config = Config {
            cluster_name: "pomona".into(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: election.start,
            election_timeout_max: election.end,
            install_snapshot_timeout: 5000,
            snapshot_max_chunk_size: limits::RAFT_SNAPSHOT_CHUNK_BYTES,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(limits::RAFT_LOG_ENTRIES),
            ..Config::default()
        };
        let raft_config = raft_config
            .validate()
            .map_err(|error| RaftError::Stopped(error.to_string()))?;
        let caller = Caller::new(transport);
        let raft = Raft::new(
            config.id,
            Arc::new(raft_config),
            Network {
                caller: caller.clone(),
            },
            log,
            machine,
        )
        .await
        .map_err(|error| RaftError::Stopped(error.to_string()))?;
        Ok(Self {
            raft,
            caller,
            config,
            state,
        })
    }

    /// Whether this replica belongs to a cluster already.
    ///
    /// # Errors
    /// Raft has stopped.
    pub async fn is_initialized(&self) -> Result<bool, RaftError> {
        let initialized = self.raft.is_initialized().await;
        initialized.map_err(|error| RaftError::Stopped(error.to_string()))
    }

    /// Whether this replica is the only voter.
    ///
    /// # Errors
    /// Raft has stopped.
    pub async fn is_alone(&self) -> Result<bool, RaftError> {
        let id = self.config.id;
        let alone = self.raft.with_raft_state(move |state| {
            let mut voters = state.membership_state.effective().voter_ids();
            (voters.next(), voters.next()) == (Some(id), None)
        });
        alone.await.map_err(|error| RaftError::Stopped(error.to_string()))
    }

    /// Forms a cluster of this replica alone, unless it belongs to one already.
    ///
    /// # Errors
    /// Raft has stopped.
    pub async fn found(&self) -> Result<(), RaftError> {
        if self.is_initialized().await? {
            return Ok(());
        }
        self.raft
            .initialize(BTreeMap::from([(self.config.id, EmptyNode::new())]))
            .await
            .map_err(|error| RaftError::Stopped(error.to_string()))
    }

    /// Waits until this replica knows a leader, at most so long.
    pub async fn wait_for_leader(&self, at_most: Duration) -> bool {
        self.raft
            .wait(Some(at_most))
            .metrics(|metrics| metrics.current_leader.is_some(), "a leader is known")
            .await
            .is_ok()
    }

    /// Who leads, as far as this replica knows.
    pub fn leader(&self) -> Option<u64> {
        self.metrics().current_leader
    }

    /// Whether this replica believes that it leads.
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.config.id) && self.stopped().is_none()
    }

    /// The number of this coordinator.
    pub fn number(&self) -> u64 {
        self.config.id
    }

    /// The state as applied here. A handle, not a borrow: whoever holds it keeps nobody from applying.
    pub fn known(&self) -> Arc<ClusterState> {
        self.state.borrow().clone()
    }

    /// What Raft says of itself. A copy: Raft stands still while one borrows, and whoever borrows twice
    /// waits for it forever.
    pub(crate) fn metrics(&self) -> RaftMetrics<u64, EmptyNode> {
        self.raft.metrics().borrow().clone()
    }

    /// The state as applied here, and news of it.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        let mut state = self.state.subscribe();
        // What is there is news to whoever begins to look.
        state.mark_changed();
        state
    }

    /// Term, last applied index and leader.
    pub fn summary(&self) -> Summary {
        let metrics = self.metrics();
        Summary {
            term: metrics.current_term,
            applied: metrics.last_applied.map_or(0, |id| id.index),
            leader: metrics.current_leader,
        }
    }

    /// Answers a call of another coordinator.
    ///
    /// # Errors
    /// The call does not decode.
    pub async fn serve(&self, kind: RpcKind, body: &[u8]) -> Result<Vec<u8>, RaftError> {
        let answer = match kind {
            RpcKind::Append => encode(
                &self
                    .raft
                    .append_entries(decode(body).map_err(RaftError::Message)?)
                    .await,
            ),
            RpcKind::Vote => encode(&self.raft.vote(decode(body).map_err(RaftError::Message)?).await),
            RpcKind::Snapshot => encode(
                &self
                    .raft
                    .install_snapshot(decode(body).map_err(RaftError::Message)?)
                    .await,
            ),
            RpcKind::Write => self.serve_write(body).await,
            RpcKind::ReadIndex => self.serve_read_index().await,
        };
        answer.map_err(RaftError::Message)
    }

    /// Takes a snapshot of what is applied, and drops the log before it; comes back when both are done.
    /// Happens by itself as well, every `limits::RAFT_LOG_ENTRIES` commands.
    ///
    /// # Errors
    /// Raft has stopped, or it took longer than `at_most`.
    pub async fn compact(&self, at_most: Duration) -> Result<(), RaftError> {
        let stopped = |error: &dyn std::fmt::Display| RaftError::Stopped(error.to_string());
        let Some(applied) = self.metrics().last_applied else {
            return Ok(());
        };
        let trigger = self.raft.trigger();
        trigger.snapshot().await.map_err(|error| stopped(&error))?;
        self.raft
            .wait(Some(at_most))
            .metrics(|metrics| metrics.snapshot >= Some(applied), "a snapshot is taken")
            .await
            .map_err(|error| stopped(&error))?;
        trigger
            .purge_log(applied.index)
            .await
            .map_err(|error| stopped(&error))?;
        self.raft
            .wait(Some(at_most))
            .metrics(|metrics| metrics.purged >= Some(applied), "the log is dropped")
            .await
            .map_err(|error| stopped(&error))?;
        Ok(())
    }

    /// Why Raft has stopped on this coordinator, if it has: its disk failed, or is full. It goes on
    /// answering from what it knows, and takes no part in the cluster until it is started again.
    pub fn stopped(&self) -> Option<String> {
        self.metrics().running_state.err().map(|error| error.to_string())
    }

    /// Stops Raft; what was acknowledged is on disk.
    pub async fn stop(&self) {
        // Fails only when the core has stopped already.
        let _ = self.raft.shutdown().await;
    }
}
