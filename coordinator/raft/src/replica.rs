//! One coordinator's copy of the replicated state.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::{BasicNode, Config, Raft, SnapshotPolicy};
use pomona_common::limits;
use pomona_decide::{ClusterState, Command, Reply};
use redb::Database;
use tokio::sync::watch;

use crate::TypeConfig;
use crate::log_store::LogStore;
use crate::network::{Network, RpcKind, Transport};
use crate::state_machine::StateMachine;
use crate::tables::{decode, encode};

/// Memory for redb's page cache: the whole state is a few hundred kilobytes.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// Where a replica lives.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// Number of this coordinator.
    pub id: u64,
    /// Address under which the others reach it.
    pub address: String,
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
    #[error("raft stopped: {0}")]
    Stopped(String),
    /// This coordinator does not lead.
    #[error("coordinator {0:?} leads, ask it")]
    NotLeader(Option<u64>),
    /// A call of another coordinator does not decode.
    #[error("raft message does not decode")]
    Message(#[source] io::Error),
}

/// See the module's documentation.
#[derive(Clone)]
pub struct Replica {
    raft: Raft<TypeConfig>,
    state: watch::Receiver<Arc<ClusterState>>,
    config: ReplicaConfig,
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
        let raft_config = Config {
            cluster_name: "pomona".into(),
            heartbeat_interval: 250,
            election_timeout_min: 800,
            election_timeout_max: 1600,
            install_snapshot_timeout: 5000,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(limits::RAFT_LOG_ENTRIES),
            ..Config::default()
        };
        let raft_config = raft_config
            .validate()
            .map_err(|error| RaftError::Stopped(error.to_string()))?;
        let raft = Raft::new(
            config.id,
            Arc::new(raft_config),
            Network { transport },
            log,
            machine,
        )
        .await
        .map_err(|error| RaftError::Stopped(error.to_string()))?;
        Ok(Self { raft, state, config })
    }

    /// Forms a cluster of this replica alone, unless it belongs to one already.
    ///
    /// # Errors
    /// Raft has stopped.
    pub async fn found(&self) -> Result<(), RaftError> {
        let stopped = |error: &dyn std::fmt::Display| RaftError::Stopped(error.to_string());
        let initialized = self.raft.is_initialized().await;
        if initialized.map_err(|error| stopped(&error))? {
            return Ok(());
        }
        let member = BasicNode::new(&self.config.address);
        self.raft
            .initialize(BTreeMap::from([(self.config.id, member)]))
            .await
            .map_err(|error| stopped(&error))
    }

    /// Commits a command and gives what it did.
    ///
    /// # Errors
    /// Another coordinator leads, or Raft has stopped.
    pub async fn write(&self, command: Command) -> Result<Reply, RaftError> {
        match self.raft.client_write(command).await {
            Ok(response) => Ok(response.data),
            Err(error) => match error.forward_to_leader::<BasicNode>() {
                Some(forward) => Err(RaftError::NotLeader(forward.leader_id)),
                None => Err(RaftError::Stopped(error.to_string())),
            },
        }
    }

    /// Waits until this replica knows a leader, at most so long.
    pub async fn wait_for_leader(&self, at_most: Duration) -> bool {
        self.raft
            .wait(Some(at_most))
            .metrics(|metrics| metrics.current_leader.is_some(), "a leader is known")
            .await
            .is_ok()
    }

    /// Whether this replica leads and its state is current: a round of messages to a quorum
    /// (ReadIndex).
    pub async fn confirm_leadership(&self) -> bool {
        self.raft.ensure_linearizable().await.is_ok()
    }

    /// Whether this replica believes that it leads.
    pub fn is_leader(&self) -> bool {
        self.raft.metrics().borrow().current_leader == Some(self.config.id)
    }

    /// The state as applied here, and news of it.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.clone()
    }

    /// Term, last applied index and leader, for `status`.
    pub fn summary(&self) -> (u64, u64, Option<u64>) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        (metrics.current_term, applied, metrics.current_leader)
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
        };
        answer.map_err(RaftError::Message)
    }

    /// Stops Raft; what was acknowledged is on disk.
    pub async fn stop(&self) {
        // Fails only when the core has stopped already.
        let _ = self.raft.shutdown().await;
    }
}
