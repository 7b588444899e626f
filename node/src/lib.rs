//! The agent on each machine: it owns the store, the engine process and the slots, reports every
//! second, follows its target, and serves `/v1` on loopback, with or without a coordinator.
#![forbid(unsafe_code)]

pub mod adopted;
mod backend;
mod coordinators;
mod credentials;
pub mod echo;
mod entry;
mod fetcher;
mod files;
mod giver;
mod instructions;
mod keys;
mod last_told;
mod lease;
mod neighbours;
mod paths;
mod pipes;
pub mod pull;
pub mod reach;
mod reporter;
mod session;
mod sharing;
pub mod store;
mod supervisor;
mod vault;
pub mod weights;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pomona_api::{Access, EntryStats, HttpServer, UsageLog};
use pomona_clocks::SleepWatch;
use pomona_cluster_config::{Config, EngineKind};
use pomona_common::{ClusterId, KnobSet, MachineRole, ModelName, NodeId};
use pomona_discovery::{Announcement, Discovery, Sighting, Who};
use pomona_link::join::{self, Joined};
use pomona_link::{Authority, Dialler, JoinToken, LinkError, Membership};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use backend::NodeBackend;
use coordinators::Coordinators;
use credentials::Credentials;
use entry::Entry;
use instructions::Instructed;
use keys::Keys;
use last_told::LastTold;
use lease::Lease;
use neighbours::Neighbours;
use reporter::Reporter;
use session::Drain;
use sharing::Sharing;
use store::Store;
use supervisor::{EngineProgram, EngineView, Setup, Supervisor};
use vault::Vault;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The state folder cannot be used.
    #[error("cannot use {path}")]
    State {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The HTTP port is taken.
    #[error("cannot listen on http {address}; is another node running?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `pomona-engine` is not where it is looked for.
    #[error(
        "pomona-engine is not beside this program; build it with `cargo xtask up`, or set engine.program"
    )]
    NoEngine,
    /// Other machines would reach an endpoint that nobody can be let in at.
    #[error(
        "http.node is {address}, which other machines reach, and this node knows of no API key: make one with `pomona key create NAME`, and start it on loopback until it has heard of it from a coordinator"
    )]
    NoKeys {
        /// The address.
        address: SocketAddr,
    },
    /// The system gives no randomness.
    #[error("the system gives no randomness: {0}")]
    Random(String),
    /// A machine that founded a cluster does not join another one by the way.
    #[error(
        "this machine has a cluster of its own in {0}: remove its folder `cluster` if nobody needs it, or set POMONA_STATE to another folder"
    )]
    OwnCluster(PathBuf),
    /// Keys or sockets of the cluster.
    #[error("cluster link")]
    Link(#[from] LinkError),
}

/// How long coordinators have to hear that the node has left.
const GOODBYE: Duration = Duration::from_secs(3);
/// How long running answers may go on after the stop.
const GRACE: Duration = Duration::from_secs(5);

/// Joins the cluster of a token at a coordinator, and keeps what came of it below the state
/// folder, where the next start finds it.
///
/// # Errors
/// The coordinator is not reached or refuses, or this machine belongs to a cluster already.
pub async fn join_cluster(
    config: &Config,
    token: &JoinToken,
    coordinator: SocketAddr,
    name: &str,
) -> Result<Joined, NodeError> {
    let folder = config.state.join("node");
    fs::create_dir_all(&folder).map_err(state_error(&folder))?;
    let authority = config.state.join("cluster");
    if authority.join("ca.key").exists() {
        return Err(NodeError::OwnCluster(config.state.clone()));
    }
    let place = credentials::membership_folder(&folder);
    let own = Membership::open(&place)?;
    join::check_cluster(token, own.as_ref().map(Membership::cluster))?;
    let id = match &own {
        Some(membership) => membership.node(),
        None => node_id(&folder.join("id"))?,
    };
    // The key is on disk before anybody hears of it: a lost answer can be asked for again.
    let applicant = join::Applicant::open(&folder.join("join.key"), id, name.to_owned())?;
    let joined = join::join(coordinator, token, &applicant).await?;
    match &joined {
        Joined::Node { membership, .. } => {
            lease::forget(&folder).map_err(state_error(&folder))?;
            membership.save(&place)?;
        }
        Joined::Coordinator(commission) => {
            commission.save(&authority)?;
        }
    }
    Ok(joined)
}

/// A running node; dropping it ends its tasks and its engine.
pub struct Node {
    id: NodeId,
    http: HttpServer,
    drain: Drain,
    lease: Lease,
    vault: Arc<Vault>,
    view: watch::Receiver<EngineView>,
    discovery: Option<Discovery>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Node {
    /// Starts everything. `authority` issues this node's certificates; without it the node is a
    /// member if it joined, else it serves its own machine only.
    ///
    /// # Errors
    /// A port is taken, or the state folder or engine is missing.
    pub async fn start(config: &Config, authority: Option<Arc<Authority>>) -> Result<Self, NodeError> {
        let folder = config.state.join("node");
        let vault = Arc::new(Vault::at(&folder));
        lease::finish(&folder).map_err(state_error(&folder))?;
        let models = folder.join("models");
        fs::create_dir_all(&models).map_err(state_error(&models))?;
        let on_coordinator = authority.is_some();
        let credentials = Credentials::find(authority, &config.state.join("cluster"), &folder)?;
        let id = match credentials.as_ref().and_then(Credentials::node) {
            Some(id) => id,
            None => node_id(&folder.join("id"))?,
        };
        let listener = TcpListener::bind(config.node_http)
            .await
            .map_err(|source| NodeError::Listen {
                address: config.node_http,
                source,
            })?;
        let instance = random()? as u64;
        let usage_folder = folder.join("usage");
        let usage = UsageLog::start(&usage_folder).map_err(state_error(&usage_folder))?;
        let cluster = credentials.as_ref().map(Credentials::cluster);
        let keys = open_keys(config, &folder, cluster, instance)?;
        let program = engine_program(config)?;
        let name = default_name(config);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let mut tasks = JoinSet::new();
        let store = Store::open(models.clone(), &mut tasks, stopped.clone());
        let instructed = Instructed::new();
        let supervisor = Supervisor::start(
            Setup {
                node: id,
                program,
                knobs: config.knobs.clone(),
                slos: config.slos.clone(),
                folder: folder.clone(),
            },
            (store.clone(), instructed.watch()),
            &mut tasks,
            stopped.clone(),
        );
        let credentials = credentials.map(Arc::new);
        let lease = Lease::open(&folder, vault.clone());
        // What writes to the folder ends before it is destroyed.
        let working = stop.child_token();
        let share = |credentials: &Arc<Credentials>, tasks: &mut JoinSet<()>| {
            let place = (&store, models.clone(), vault.clone());
            Sharing::start(config, id, credentials, place, &supervisor, tasks, &working)
        };
        let sharing = credentials
            .as_ref()
            .map(|credentials| share(credentials, &mut tasks))
            .transpose()?;
        let entry_stats = Arc::new(EntryStats::default());
        let reporter = Reporter::start(
            config,
            &supervisor,
            sharing.as_ref().map(|sharing| sharing.fetcher.failed()),
            entry_stats.clone(),
            &mut tasks,
            stopped.clone(),
        );
        let mut known = config.coordinators.clone();
        if let Some(credentials) = &credentials {
            // What the configuration says goes first: addresses change.
            known.extend(credentials.coordinators()?);
            if known.is_empty() || on_coordinator {
                known.push(config.own_coordinator());
            }
        }
        let coordinators = Coordinators::new(&known);
        let entry = Entry::new(
            id,
            store.clone(),
            (supervisor.clone(), instructed.watch()),
            coordinators.clone(),
            keys.clone(),
        );
        let backend = Arc::new(NodeBackend::new(
            id,
            name.clone(),
            store.clone(),
            supervisor.clone(),
            entry.clone(),
            reporter.clone(),
            (entry_stats, keys.access().clone(), usage),
        ));
        let router = pomona_api::router(backend);
        let http = HttpServer::start(listener, router);
        let view = supervisor.view();
        let drain = Drain::default();
        let mut discovery = None;
        match credentials.zip(sharing) {
            Some((credentials, sharing)) => {
                let cluster = credentials.cluster();
                let mut last_told = LastTold::open(&folder, cluster).map_err(state_error(&folder))?;
                last_told.resume(&instructed, &supervisor, &store).await;
                let context = session::SessionContext {
                    configured: KnobSet::of(&config.knobs),
                    id,
                    name,
                    instance,
                    credentials,
                    renewing: tokio::sync::Mutex::default(),
                    entry,
                    store,
                    supervisor: supervisor.clone(),
                    fetcher: sharing.fetcher,
                    giver: sharing.giver,
                    members: sharing.members,
                    serves: sharing.port,
                    reporter,
                    drain: drain.clone(),
                    lease: lease.clone(),
                    vault: vault.clone(),
                    instructed: instructed.clone(),
                    last_told: last_told.clone(),
                    keys: keys.clone(),
                    dialler: Dialler::default(),
                };
                let own = (id, context.serves);
                discovery = discover(config, cluster, own, &coordinators, &sharing.neighbours);
                let role = keys.clone();
                let is_rented = move || role.role() == Some(MachineRole::Rented);
                tasks.spawn(last_told.run(instructed.watch(), is_rented, working.clone()));
                tasks.spawn(keys.run(working.clone()));
                tasks.spawn(lease.clone().run(supervisor, working, stopped.clone()));
                tasks.spawn(notice_sleep(coordinators.clone(), stopped.clone()));
                let reach = coordinators.clone();
                tasks.spawn(instructed.run(move || reach.any(), stopped.clone()));
                tasks.spawn(coordinators.run(context, stopped));
            }
            None => supervisor.follow_store(store, &mut tasks, stopped),
        }
        tracing::info!(node = %id, http = %config.node_http, "node is up");
        Ok(Self {
            id,
            http,
            drain,
            lease,
            vault,
            view,
            discovery,
            tasks,
            stop,
        })
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Calls `show` with the models being loaded, bytes done and in all, whenever that changes;
    /// comes back when the node has ended.
    pub async fn follow_loads(&self, mut show: impl FnMut(&BTreeMap<ModelName, (u64, u64)>)) {
        let mut view = self.view.clone();
        loop {
            // A copy: the supervisor does not wait for a terminal.
            let loading = view.borrow_and_update().loading.clone();
            show(&loading);
            if view.changed().await.is_err() {
                return;
            }
        }
    }

    /// Comes back when a rented node has left: nothing of the cluster is on this machine, and the
    /// coordinators had a moment to hear of it.
    pub async fn departed(&self) {
        // It ends with this node only.
        let _ = self.lease.gone().wait_for(|gone| *gone).await;
        tokio::time::sleep(GOODBYE).await;
    }

    /// Accepts no more requests, and lets the running answers finish for a moment.
    pub async fn drain(&mut self) {
        tokio::join!(self.http.stop(), self.drain.run(GRACE));
    }

    /// Ends the node and its engine; answers that still run are cut.
    pub async fn stop(mut self) {
        self.stop.cancel();
        drop(self.discovery.take());
        let finish = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(8), finish)
            .await
            .is_err()
        {
            self.tasks.shutdown().await;
        }
        let vault = self.vault;
        let closed = tokio::task::spawn_blocking(move || vault.close()).await;
        if let Ok(Err(error)) = closed {
            tracing::error!(%error, "the encrypted store stays open");
        }
    }
}

async fn notice_sleep(coordinators: Coordinators, stopped: CancellationToken) {
    let mut watch = SleepWatch::default();
    loop {
        tokio::select! {
            slept = pomona_clocks::next_wake(&mut watch) => {
                tracing::info!(seconds = slept.as_secs(), "the machine slept");
                coordinators.woke(slept);
            }
            () = stopped.cancelled() => return,
        }
    }
}

/// Looks for coordinators and other nodes on the LAN, and is seen there if this node gives weights to it.
fn discover(
    config: &Config,
    cluster: ClusterId,
    (id, port): (NodeId, u16),
    coordinators: &Coordinators,
    neighbours: &Neighbours,
) -> Option<Discovery> {
    if !config.mdns {
        return None;
    }
    let own = Announcement {
        cluster,
        who: Who::Node(id),
        port,
    };
    let own = Some(own).filter(|_| !config.node_quic.ip().is_loopback());
    let (coordinators, neighbours) = (coordinators.clone(), neighbours.clone());
    let found = move |sighting: Sighting| match sighting.who {
        Who::Coordinator(number) => coordinators.hint(number, sighting.address),
        Who::Node(node) => neighbours.hint(node, sighting.address),
    };
    Discovery::start(cluster, own, found)
        .inspect_err(|error| tracing::warn!(%error, "no discovery"))
        .ok()
}

/// What people call this machine: the configured name, or the host's.
pub fn default_name(config: &Config) -> String {
    if config.node_name.is_empty() {
        pomona_probe::host_name()
    } else {
        config.node_name.clone()
    }
}

pub use pomona_probe::{disk_free, is_laptop, listener, process_memory};

/// Where the engine's program is, if it is anywhere.
pub fn engine_path(config: &Config) -> Option<PathBuf> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("pomona-engine"));
    let found = config.engine_program.clone().or_else(beside);
    found.filter(|path| path.exists())
}

fn engine_program(config: &Config) -> Result<EngineProgram, NodeError> {
    match &config.engine {
        EngineKind::None => Ok(EngineProgram::None),
        EngineKind::Echo { step_ms } => Ok(EngineProgram::Echo { step_ms: *step_ms }),
        EngineKind::Mlx => match engine_path(config) {
            Some(path) => Ok(EngineProgram::Mlx(path)),
            None => Err(NodeError::NoEngine),
        },
    }
}

/// The node's id: drawn once, kept in a file.
fn node_id(path: &Path) -> Result<NodeId, NodeError> {
    if let Ok(text) = fs::read_to_string(path)
        && let Ok(id) = text.trim().parse()
    {
        return Ok(id);
    }
    let id = NodeId::from_bits(random()?);
    files::write_whole(path, &id.to_string()).map_err(state_error(path))?;
    Ok(id)
}

fn open_keys(
    config: &Config,
    folder: &Path,
    cluster: Option<ClusterId>,
    instance: u64,
) -> Result<Keys, NodeError> {
    let address = config.node_http;
    let access = Access::new(config.needs_keys(address), instance);
    let keys = Keys::open(folder, access, cluster).map_err(state_error(folder))?;
    if !address.ip().is_loopback() && keys.is_empty() {
        return Err(NodeError::NoKeys { address });
    }
    Ok(keys)
}

fn random() -> Result<u128, NodeError> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(|error| NodeError::Random(error.to_string()))?;
    Ok(u128::from_le_bytes(bits))
}

fn state_error(path: &Path) -> impl FnOnce(io::Error) -> NodeError + use<> {
    let path = path.to_owned();
    move |source| NodeError::State { path, source }
}
