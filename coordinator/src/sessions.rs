//! The nodes that are connected to this coordinator. Soft state: losing it costs seconds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pomona_common::control::{CoordinatorMessage, NodeMessage};
use pomona_common::report::NodeReport;
use pomona_common::{MachineRole, ModelRecord, NodeId, limits};
use pomona_decide::{Command, Presence, presence};
use pomona_link::{Authority, CERTIFICATE_LIFE, LinkError, Role, Session, join};
use pomona_raft::Replica;
use tokio::task::JoinSet;

use crate::backend::CoordinatorBackend;
use crate::requests::Requests;
use crate::telemetry::Collector;
use crate::told::Told;

/// A node introduces itself within this time.
const HELLO: Duration = Duration::from_secs(5);

/// A renewal may hold up a node's other messages for this long; it is asked for again.
const RENEWAL: Duration = Duration::from_millis(500);

/// How often is looked whether a node's certificate is still good.
const LOOK: Duration = Duration::from_secs(60);

/// A node that was heard of within this time is there: two reports, and some slack.
const ALIVE: Duration = Duration::from_millis(2500);

/// One connected node.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) session: Session,
    pub(crate) name: String,
    pub(crate) version: String,
    /// Drawn by its process.
    pub(crate) instance: u64,
    pub(crate) since: Instant,
    /// Requests of this coordinator that run there.
    pub(crate) in_flight: AtomicU32,
    soft: Mutex<Soft>,
}

#[derive(Debug, Clone, Default)]
struct Soft {
    stored: Vec<ModelRecord>,
    report: Option<(Instant, Arc<NodeReport>)>,
    /// Port on which it gives weights.
    serves: Option<u16>,
    /// How long its machine slept before this session, if that is why there is a new one.
    slept_ms: Option<u64>,
}

impl Connected {
    pub(crate) fn stored(&self) -> Vec<ModelRecord> {
        self.soft().stored.clone()
    }

    /// The last report and its age.
    pub(crate) fn report(&self) -> Option<(Duration, Arc<NodeReport>)> {
        let soft = self.soft();
        soft.report
            .as_ref()
            .map(|(at, report)| (at.elapsed(), report.clone()))
    }

    /// How long its machine slept before this session, in milliseconds, if it did.
    pub(crate) fn slept_ms(&self) -> Option<u64> {
        self.soft().slept_ms
    }

    /// Whether it is there.
    pub(crate) fn presence(&self, role: MachineRole) -> Presence {
        presence(role, Some(self.heard_ago().as_millis() as u64))
    }

    /// Where it gives weights to a node that is seen at `asker`.
    pub(crate) fn gives_at(&self, asker: SocketAddr) -> Option<SocketAddr> {
        let ip = self.session.remote_address().ip();
        // One that dialled over loopback is reached by nobody else there.
        let reachable = !ip.is_loopback() || asker.ip().is_loopback();
        let port = self.soft().serves.filter(|_| reachable)?;
        Some(SocketAddr::new(ip, port))
    }

    /// Whether it gives weights to others.
    pub(crate) fn serves(&self) -> bool {
        self.soft().serves.is_some()
    }

    /// Whether it was heard of so lately that it is certainly there.
    fn is_alive(&self) -> bool {
        self.session.is_open() && self.heard_ago() < ALIVE
    }

    /// Age of its last report, or of the session while there is none.
    fn heard_ago(&self) -> Duration {
        self.report().map_or(self.since.elapsed(), |(age, _)| age)
    }

    fn soft(&self) -> MutexGuard<'_, Soft> {
        self.soft.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All connected nodes.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    nodes: Mutex<BTreeMap<NodeId, Arc<Connected>>>,
    /// What they reported over time.
    pub(crate) collector: Collector,
    /// Something the planner should look at.
    pub(crate) changed: tokio::sync::Notify,
}

impl Sessions {
    pub(crate) fn all(&self) -> BTreeMap<NodeId, Arc<Connected>> {
        self.lock().clone()
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<Arc<Connected>> {
        self.lock().get(&id).cloned()
    }

    /// Ends all sessions; the nodes dial anew.
    pub(crate) fn close_all(&self, why: &str) {
        for connected in self.all().into_values() {
            connected.session.close(why);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Connected>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a node until its session ends.
    pub(crate) async fn serve(
        &self,
        session: Session,
        backend: &Arc<CoordinatorBackend>,
        authority: &Authority,
    ) {
        let Role::Node(id) = session.peer().role else {
            return;
        };
        let key = session.peer().key;
        let mut state = backend.replica.state();
        let refused = state.wait_for(|state| state.refuses(id, key).is_some());
        let outcome = tokio::select! {
            // Beside everything else, so that a node which reads nothing cannot outlive it.
            biased;
            refused = refused => {
                let why = refused.ok().and_then(|state| state.refuses(id, key)).unwrap_or("the coordinator stops");
                Err(LinkError::Refused(why.to_owned()))
            }
            outcome = self.converse(id, session.clone(), backend, authority) => outcome,
        };
        // Answers that still run there hold handles of the session.
        match &outcome {
            Err(LinkError::Refused(why)) => session.close(why),
            _ => session.close("session ended"),
        }
        match outcome {
            Ok(()) => tracing::info!(node = %id, "node left"),
            Err(error) => tracing::info!(node = %id, %error, "node lost"),
        }
    }

    async fn converse(
        &self,
        id: NodeId,
        session: Session,
        backend: &Arc<CoordinatorBackend>,
        authority: &Authority,
    ) -> Result<(), LinkError> {
        let replica = &backend.replica;
        let key = session.peer().key;
        let mut state = replica.state();
        let (mut send, mut receive) = tokio::time::timeout(HELLO, session.accept())
            .await
            .map_err(|_| LinkError::Deadline(HELLO))??;
        let NodeMessage::Hello {
            name,
            version,
            instance,
            models,
        } = receive.expect(HELLO).await?
        else {
            return Err(LinkError::Closed("no hello".into()));
        };
        let connected = Arc::new(Connected {
            session: session.clone(),
            name: name.chars().take(limits::NODE_NAME_CHARS).collect(),
            version,
            instance,
            since: Instant::now(),
            in_flight: AtomicU32::new(0),
            soft: Mutex::new(Soft {
                stored: bounded(models),
                ..Soft::default()
            }),
        });
        let _guard = self.register(id, connected.clone())?;
        let welcome = CoordinatorMessage::Welcome {
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        send.send(&welcome).await?;
        tracing::info!(node = %id, name = connected.name, "node connected");
        let mut told = Told::default();
        let asked = Arc::new(Requests::new(backend.clone()));
        let mut requests = JoinSet::new();
        let mut renewed: Option<Instant> = None;
        let mut looks = tokio::time::interval(LOOK);
        loop {
            let applied = replica.summary().applied;
            // A copy of what is new: the state is not held while it is sent.
            let news = told.news(&state.borrow_and_update(), id, replica.number(), applied);
            let wishes = told.wishes(&state.borrow(), id, &connected, self);
            for message in news.into_iter().chain(wishes) {
                send.send(&message).await?;
            }
            tokio::select! {
                // Streams say nothing that the node would have to be told for.
                ended = serve_streams(&session, &asked, &mut requests) => return Err(ended),
                message = receive.next::<NodeMessage>() => match message? {
                    Some(NodeMessage::Renew { public_key }) => {
                        if join::print_of(&public_key) != key {
                            return Err(LinkError::Refused("a certificate is renewed for the same key".into()));
                        }
                        // Cut off from the others, nobody here knows whether it was revoked.
                        let current = tokio::time::timeout(RENEWAL, replica.read()).await;
                        match current {
                            Ok(Ok(state)) if state.refuses(id, key).is_none() => {
                                let certificate = authority.certify_node(id, &public_key)?;
                                renewed = Some(Instant::now());
                                send.send(&CoordinatorMessage::Renewed { certificate }).await?;
                            }
                            _ => tracing::warn!(node = %id, "certificate not renewed: no majority, or shut out"),
                        }
                    }
                    Some(NodeMessage::Evicted) => shut_out_evicted(replica, id).await,
                    Some(message) => self.on_message(id, &connected, message),
                    None => return Ok(()),
                },
                // Cut off from the others, a coordinator serves nobody for longer than a certificate.
                _ = looks.tick() => {
                    let is_fresh = renewed.is_some_and(|at| at.elapsed() < CERTIFICATE_LIFE);
                    if !is_fresh && !authority.vouches_for(&session) {
                        return Err(LinkError::Refused("its certificate has run out".into()));
                    }
                }
                changed = state.changed() => if changed.is_err() {
                    return Ok(());
                },
            }
        }
    }

    fn on_message(&self, id: NodeId, connected: &Connected, message: NodeMessage) {
        match message {
            NodeMessage::Hello { models, .. } | NodeMessage::Store { models } => {
                connected.soft().stored = bounded(models);
                self.changed.notify_one();
            }
            // Answered where the sender is.
            NodeMessage::Renew { .. } | NodeMessage::Evicted => {}
            NodeMessage::Woke { slept_ms } => {
                tracing::info!(node = %id, name = connected.name, seconds = slept_ms / 1000, "node woke");
                connected.soft().slept_ms = Some(slept_ms);
            }
            NodeMessage::Serves { port } => {
                connected.soft().serves = (port > 0).then_some(port);
                self.changed.notify_one();
            }
            NodeMessage::Report(mut report) => {
                self.collector.ingest(id, &mut report);
                let first = connected
                    .soft()
                    .report
                    .replace((Instant::now(), Arc::new(*report)))
                    .is_none();
                if first {
                    self.changed.notify_one();
                }
            }
        }
    }

    /// Puts a node on the list; the newest session of a node wins over an older one of the same
    /// process, or one that is silent. A second process under a living node's identity is a copy
    /// of its disk, and is refused.
    fn register(&self, id: NodeId, connected: Arc<Connected>) -> Result<Registered<'_>, LinkError> {
        let mut nodes = self.lock();
        if nodes.len() >= limits::NODES && !nodes.contains_key(&id) {
            return Err(LinkError::Closed(format!(
                "{} nodes are connected, the limit",
                limits::NODES
            )));
        }
        if let Some(older) = nodes.get(&id)
            && older.instance != connected.instance
            && older.is_alive()
        {
            tracing::warn!(node = %id, name = older.name, "a second process uses this node's identity");
            return Err(LinkError::Refused(
                "another process uses this node's identity; if its disk was copied, remove `node` from the state folder here and join anew".into(),
            ));
        }
        if let Some(older) = nodes.insert(id, connected.clone()) {
            older.session.close("replaced by a newer session");
        }
        self.changed.notify_one();
        Ok(Registered {
            sessions: self,
            id,
            connected,
        })
    }
}

/// A node says that it has destroyed what it held, as it was told to. One that was not told so stays.
async fn shut_out_evicted(replica: &Replica, node: NodeId) {
    let lease = replica.state().borrow().leases.of_nodes.get(&node).copied();
    if !lease.is_some_and(|lease| lease.evicting) {
        return;
    }
    let now_s = pomona_clocks::wall_s();
    let revoked = replica.write(Command::RevokeNode { node, now_s }).await;
    match revoked {
        Ok(_) => tracing::info!(%node, "the rented node has left"),
        // The end of its lease does it.
        Err(error) => tracing::warn!(%node, %error, "a node that has left is not shut out yet"),
    }
}

/// Serves the streams that a node opens; comes back when its session has ended. Cancel-safe.
async fn serve_streams(session: &Session, asked: &Arc<Requests>, requests: &mut JoinSet<()>) -> LinkError {
    loop {
        tokio::select! {
            stream = session.accept() => match stream {
                Ok((send, receive)) => {
                    requests.spawn(asked.clone().serve(send, receive));
                }
                Err(error) => return error,
            },
            _ = requests.join_next(), if !requests.is_empty() => {}
        }
    }
}

/// Takes a node off the list when its session ends.
struct Registered<'a> {
    sessions: &'a Sessions,
    id: NodeId,
    connected: Arc<Connected>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut nodes = self.sessions.lock();
        if nodes
            .get(&self.id)
            .is_some_and(|now| Arc::ptr_eq(now, &self.connected))
        {
            nodes.remove(&self.id);
        }
        self.sessions.changed.notify_one();
    }
}

/// Counts a request while it runs on a node.
pub(crate) struct InFlight(Arc<Connected>);

impl InFlight {
    pub(crate) fn new(connected: Arc<Connected>) -> Self {
        connected.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(connected)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn bounded(mut models: Vec<ModelRecord>) -> Vec<ModelRecord> {
    models.truncate(limits::MODELS);
    models.retain(ModelRecord::is_plausible);
    models
}
