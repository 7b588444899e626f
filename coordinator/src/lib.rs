//! The coordinator: it terminates the sessions of the nodes, keeps the replicated state, plans
//! while it leads, and serves the cluster's `/v1` with or without a leader.
#![forbid(unsafe_code)]

mod address;
mod admin;
mod audit;
mod backend;
mod certificate;
mod clouds;
mod connected;
mod dispatch;
mod inventory;
mod joining;
mod keys;
mod leader;
mod members;
mod peers;
mod raft_link;
mod requests;
mod sessions;
mod telemetry;
mod told;
mod wake;
mod weights;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pomona_api::{Access, HttpServer, UsageLog};
use pomona_cluster_config::Config;
use pomona_common::spending::EntryId;
use pomona_common::{ClusterId, limits};
use pomona_decide::Command;
use pomona_decide::gates::Choices;
use pomona_discovery::{Discovery, Sighting, Who};
use pomona_link::{Accepted, Authority, Endpoint, LinkError, Purpose, Role, Session, commission};
use pomona_raft::{RaftError, Replica, ReplicaConfig};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use audit::Chain;
use backend::CoordinatorBackend;
use clouds::Clouds;
use members::Announcement;
use peers::Peers;
use sessions::Sessions;
use weights::WeightsRelay;

/// The number of the coordinator that founds a cluster.
const FOUNDER: u64 = 1;
/// A cluster of one elects itself within the election timeout; longer means trouble.
const ELECTION: Duration = Duration::from_secs(10);

/// Why a coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
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
    #[error("cannot listen on http {address}; is another coordinator running?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Other machines would reach an endpoint that nobody can be let in at.
    #[error(
        "http.coordinator is {address}, which other machines reach, and there is no API key: start it on loopback first, and make a key with `pomona key create NAME`"
    )]
    NoKeys {
        /// The address.
        address: SocketAddr,
    },
    /// Keys or sockets of the cluster.
    #[error("cluster link")]
    Link(#[from] LinkError),
    /// The replicated state.
    #[error("replicated state")]
    Raft(#[from] RaftError),
    /// The system gives no randomness.
    #[error("the system gives no randomness: {0}")]
    Random(String),
}

/// A running coordinator.
pub struct Coordinator {
    replica: Replica,
    http: Option<HttpServer>,
    discovery: Option<Discovery>,
    endpoint: Arc<Endpoint>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    socket: PathBuf,
}

/// Opens the cluster's certificate authority below the state folder, or makes one.
///
/// # Errors
/// The files cannot be read or written.
pub fn open_authority(config: &Config, new_cluster: ClusterId) -> Result<Arc<Authority>, LinkError> {
    let folder = authority_folder(config);
    if commission::read_number(&folder)?.is_some() && !folder.join("ca.key").exists() {
        let why = "this machine has not finished joining: repeat `pomona join`";
        return Err(LinkError::Certificate(why.into()));
    }
    let authority = Authority::open_or_create(&folder, new_cluster)?;
    Ok(Arc::new(authority))
}

/// Where a coordinator keeps authority and number.
pub fn authority_folder(config: &Config) -> PathBuf {
    config.state.join("cluster")
}

fn state_error(path: &Path) -> impl FnOnce(io::Error) -> CoordinatorError + use<> {
    let path = path.to_owned();
    move |source| CoordinatorError::State { path, source }
}

/// 128 random bits.
fn random() -> Result<u128, CoordinatorError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| CoordinatorError::Random(error.to_string()))?;
    Ok(u128::from_le_bytes(bytes))
}

/// One that listens on loopback reaches nobody on the LAN, and is reached by nobody.
fn discover(
    config: &Config,
    cluster: ClusterId,
    number: u64,
    listens: SocketAddr,
    peers: &Peers,
) -> Option<Discovery> {
    if !config.mdns || listens.ip().is_loopback() {
        return None;
    }
    let port = listens.port();
    let own = pomona_discovery::Announcement {
        cluster,
        who: Who::Coordinator(number),
        port,
    };
    let peers = peers.clone();
    let found = move |sighting: Sighting| {
        if let Some(number) = sighting.coordinator() {
            peers.hint(number, sighting.address);
        }
    };
    Discovery::start(cluster, Some(own), found)
        .inspect_err(|error| tracing::warn!(%error, "no discovery"))
        .ok()
}

/// One that is alone leads within an election.
async fn lead_alone(replica: &Replica, authority: &Authority) -> Result<(), CoordinatorError> {
    if !replica.wait_for_leader(ELECTION).await {
        return Err(RaftError::Stopped("no leader was elected".into()).into());
    }
    replica.write(Command::Found(authority.cluster())).await?;
    Ok(())
}

impl Coordinator {
    /// Starts everything. One that is alone in its cluster leads when this comes back; one of
    /// several serves from what it knows, with or without a leader. `machine` is what people call
    /// this machine, and whether it is carried about.
    ///
    /// # Errors
    /// A port is taken, or the state cannot be opened.
    pub async fn start(
        config: &Config,
        authority: Arc<Authority>,
        machine: (String, bool),
    ) -> Result<Self, CoordinatorError> {
        let cluster_folder = authority_folder(config);
        let number = commission::read_number(&cluster_folder)?;
        let folder = config.state.join("coordinator");
        fs::create_dir_all(&folder).map_err(state_error(&folder))?;
        let listener = TcpListener::bind(config.coordinator_http)
            .await
            .map_err(|source| CoordinatorError::Listen {
                address: config.coordinator_http,
                source,
            })?;
        let id = number.unwrap_or(FOUNDER);
        let identity = authority.issue(Role::Coordinator(id))?;
        let endpoint = Arc::new(Endpoint::server(config.quic, identity)?);
        let mut known = config.coordinators.clone();
        known.extend(commission::read_coordinators(&cluster_folder)?);
        let peers = Peers::new(id, endpoint.clone(), &known);
        let replica = Replica::start(ReplicaConfig { id, folder }, peers.clone()).await?;
        if number.is_none() {
            replica.found().await?;
            commission::write_number(&cluster_folder, FOUNDER)?;
        }
        let (name, laptop) = machine;
        let listens = endpoint.local_address()?;
        let announcement = Announcement {
            name,
            laptop,
            listens,
        };
        if replica.is_alone().await? {
            lead_alone(&replica, &authority).await?;
            members::announce_once(&replica, &announcement, &peers).await;
        }
        let http = config.coordinator_http;
        // One of several may only be behind: it lets nobody in until it knows keys.
        let has_keys = !replica.known().keys.keys.is_empty();
        if !http.ip().is_loopback() && !has_keys && replica.is_alone().await? {
            replica.stop().await;
            return Err(CoordinatorError::NoKeys { address: http });
        }
        let mut this = Self {
            replica,
            http: None,
            discovery: None,
            endpoint,
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            socket: config.state.join("admin.sock"),
        };
        this.spawn_tasks(config, authority, peers, announcement, listener)?;
        tracing::info!(number = id, http = %config.coordinator_http, quic = %listens, "coordinator is up");
        Ok(this)
    }

    fn spawn_tasks(
        &mut self,
        config: &Config,
        authority: Arc<Authority>,
        peers: Peers,
        announcement: Announcement,
        listener: TcpListener,
    ) -> Result<(), CoordinatorError> {
        let (replica, stop) = (&self.replica, &self.stop);
        let tasks = &mut self.tasks;
        let sessions = Arc::new(Sessions::default());
        let access = Access::new(config.needs_keys(config.coordinator_http), random()? as u64);
        let audit = Chain::changes(&config.state, authority.cluster());
        let spills = Chain::spills(&config.state, authority.cluster());
        for chain in [&audit, &spills] {
            tasks.spawn(chain.clone().keep(replica.clone(), stop.clone()));
        }
        keys::learn(&access, &replica.known(), EntryId::Coordinator(replica.number()));
        tasks.spawn(keys::follow(replica.clone(), access.clone(), stop.clone()));
        tasks.spawn(keys::tell(replica.clone(), access.clone(), stop.clone()));
        let usage = config.state.join("coordinator/usage");
        let usage = UsageLog::start(&usage).map_err(state_error(&usage))?;
        let clouds = Arc::new(Clouds::open(&config.clouds, replica.clone()));
        let backend = CoordinatorBackend::new(replica.clone(), sessions.clone(), (access, usage), clouds);
        let backend = Arc::new(backend);
        let weights = Arc::new(WeightsRelay::new(sessions.clone(), replica.clone()));
        let reception = Reception {
            backend: backend.clone(),
            endpoint: self.endpoint.clone(),
            peers: peers.clone(),
            replica: replica.clone(),
            authority: authority.clone(),
            weights,
            approve_manually: config.approve_manually,
        };
        tasks.spawn(reception.run(stop.clone()));
        tasks.spawn(peers.clone().run(replica.clone(), stop.clone()));
        self.discovery = discover(
            config,
            authority.cluster(),
            replica.number(),
            announcement.listens,
            &peers,
        );
        let own = announcement.clone();
        tasks.spawn(members::announce(
            replica.clone(),
            own,
            peers.clone(),
            stop.clone(),
        ));
        tasks.spawn(members::follow_records(replica.clone(), stop.clone()));
        let endpoint = self.endpoint.clone();
        tasks.spawn(certificate::keep_current(
            endpoint.clone(),
            authority.clone(),
            replica.number(),
            stop.clone(),
        ));
        let all = (sessions.clone(), peers.clone());
        tasks.spawn(wake::watch(endpoint, authority.clone(), all, stop.clone()));
        let choices = Choices {
            literal_swap: config.literal_swap,
        };
        tasks.spawn(leader::run(replica.clone(), sessions, choices, stop.clone()));
        self.http = Some(HttpServer::start(listener, pomona_api::router(backend.clone())));
        let admin = admin::Admin {
            backend,
            choices,
            audit,
            spills,
            authority,
            peers,
            quic: announcement.listens,
        };
        admin::serve(&self.socket, admin, tasks, stop.clone()).map_err(state_error(&self.socket))
    }

    /// Accepts no more requests over HTTP, and lets the running answers finish for a moment.
    pub async fn drain(&mut self) {
        if let Some(http) = &mut self.http {
            http.stop().await;
        }
    }

    /// Ends the coordinator; what was acknowledged is on disk.
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
        self.replica.stop().await;
        self.endpoint.close().await;
        let _ = fs::remove_file(&self.socket);
    }
}

/// Takes in who comes over QUIC.
struct Reception {
    endpoint: Arc<Endpoint>,
    backend: Arc<CoordinatorBackend>,
    peers: Peers,
    replica: Replica,
    authority: Arc<Authority>,
    weights: Arc<WeightsRelay>,
    approve_manually: bool,
}

impl Reception {
    async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let joins = Arc::new(Semaphore::new(limits::JOINS));
        let mut peers = JoinSet::new();
        loop {
            let incoming = tokio::select! {
                incoming = this.endpoint.accept() => incoming,
                _ = peers.join_next(), if !peers.is_empty() => continue,
                () = stop.cancelled() => return,
            };
            let Some(incoming) = incoming else {
                return;
            };
            let (this, joins) = (this.clone(), joins.clone());
            peers.spawn(async move {
                match incoming.finish().await {
                    Ok(Accepted::Session(session)) => this.serve(session).await,
                    Ok(Accepted::Joining(joining)) => {
                        joining::serve(joining, &this, &joins).await;
                    }
                    Ok(Accepted::Renewing(renewing)) => {
                        certificate::renew(renewing, &this, &joins).await;
                    }
                    Err(error) => tracing::info!(%error, "session refused"),
                }
            });
        }
    }

    async fn serve(&self, session: Session) {
        match session.purpose() {
            Purpose::Control => {
                let sessions = &self.backend.sessions;
                sessions.serve(session, &self.backend, &self.authority).await;
            }
            Purpose::Raft => self.peers.serve(session, &self.replica).await,
            Purpose::Relay => self.weights.serve(session).await,
            Purpose::Give => self.weights.take(session).await,
            // Nodes have these with each other; joining and renewing have no session.
            Purpose::Join | Purpose::Renew | Purpose::Weights => {}
        }
    }
}
