//! The nodes that are connected to this coordinator. Soft state: losing it costs seconds.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pomona_common::control::{CoordinatorMessage, NodeMessage};
use pomona_common::{KeyPrint, MachineRole, NodeId, limits};
use pomona_decide::Command;
use pomona_link::{Authority, CERTIFICATE_LIFE, FrameReceiver, FrameSender, LinkError, Role, Session, join};
use pomona_raft::Replica;
use tokio::task::JoinSet;

use crate::backend::CoordinatorBackend;
use crate::certificate::trust_again;
use crate::connected::{Connected, Hello};
use crate::requests::Requests;
use crate::telemetry::Collector;
use crate::told::Told;

/// A node introduces itself within this time.
const HELLO: Duration = Duration::from_secs(5);

/// A renewal may hold up a node's other messages for this long; it is asked for again.
const RENEWAL: Duration = Duration::from_millis(500);

/// How often is looked whether a node's certificate is still good.
const LOOK: Duration = Duration::from_secs(60);

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

    /// Whether an answer of any node passes through here.
    pub(crate) fn any_in_flight(&self) -> bool {
        let nodes = self.lock();
        nodes
            .values()
            .any(|node| node.in_flight.load(Ordering::Relaxed) > 0)
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
        // One that says nothing has only measured the line.
        let hello = match tokio::time::timeout(HELLO, greeted(&session)).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(error)) => return tracing::debug!(node = %id, %error, "no hello"),
            Err(_) => return session.close("no hello"),
        };
        let outcome = tokio::select! {
            // Beside everything else, so that a node which reads nothing cannot outlive it.
            biased;
            why = refusal(&backend.replica, id, session.peer().key) => Err(LinkError::Refused(why.to_owned())),
            outcome = self.converse(id, session.clone(), hello, backend, authority) => outcome,
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
        (hello, mut send, mut receive): (Hello, FrameSender, FrameReceiver),
        backend: &Arc<CoordinatorBackend>,
        authority: &Authority,
    ) -> Result<(), LinkError> {
        let replica = &backend.replica;
        let key = session.peer().key;
        let mut state = replica.state();
        let connected = Arc::new(Connected::new(session.clone(), hello));
        let _guard = self.register(id, connected.clone())?;
        let welcome = CoordinatorMessage::Welcome {
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        send.send(&welcome).await?;
        let role = replica.known().nodes.get(&id).map(|record| record.role);
        if role == Some(MachineRole::Rented) {
            let key = authority.store_key(id, key)?;
            send.send(&CoordinatorMessage::StoreKey(key)).await?;
        }
        tracing::info!(node = %id, name = connected.name, "node connected");
        let mut told = Told::default();
        let asked = Arc::new(Requests::new(id, backend.clone()));
        let mut requests = JoinSet::new();
        if replica.known().late.contains(&id) {
            requests.spawn(trust_again(replica.clone(), id));
        }
        let mut renewed: Option<Instant> = None;
        let mut looks = tokio::time::interval(LOOK);
        loop {
            let seen = state.borrow_and_update().clone();
            let mut news = told.news(&seen, id, replica.number());
            let report = connected
                .report()
                .filter(|_| !seen.has_removed_coordinator(replica.number()));
            news.extend(report.and_then(|(_, report)| told.comfort(&seen, id, &report.machine.chip)));
            let wishes = told.wishes(&seen, id, &connected, self);
            for message in news.into_iter().chain(wishes) {
                send.send(&message.known_to(session.version())).await?;
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
                    told.repeat_relief();
                    let is_fresh = renewed.is_some_and(|at| at.elapsed() < CERTIFICATE_LIFE);
                    if !is_fresh && !authority.vouches_for(&session) {
                        return Err(LinkError::Refused("its certificate has run out".into()));
                    }
                }
                () = connected.give.notified() => send.send(&CoordinatorMessage::Give).await?,
                changed = state.changed() => if changed.is_err() {
                    return Ok(());
                },
            }
        }
    }

    fn on_message(&self, id: NodeId, connected: &Connected, message: NodeMessage) {
        match message {
            NodeMessage::Hello { models, .. } | NodeMessage::Store { models } => {
                connected.set_stored(models);
                self.changed.notify_one();
            }
            // Answered where the sender is.
            NodeMessage::Renew { .. } | NodeMessage::Evicted => {}
            NodeMessage::Woke { slept_ms } => {
                tracing::info!(node = %id, name = connected.name, seconds = slept_ms / 1000, "node woke");
                connected.set_slept(slept_ms);
            }
            NodeMessage::Serves { port } => {
                connected.set_serves(port);
                self.changed.notify_one();
            }
            NodeMessage::Room { free_bytes } => {
                connected.set_disk_free(free_bytes);
                self.changed.notify_one();
            }
            NodeMessage::Signs(signs) => connected.set_signs(*signs),
            NodeMessage::Speeds(speeds) => connected.set_speeds(speeds),
            NodeMessage::KillCauses(causes) => connected.set_kill_causes(causes),
            NodeMessage::Configured(knobs) => connected.set_configured(*knobs),
            NodeMessage::Spent(batch) => connected.set_spent(batch),
            NodeMessage::Report(mut report) => {
                self.collector.ingest(id, &mut report);
                if connected.set_report(*report) {
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

/// A node's control stream, and what it says first on it.
async fn greeted(session: &Session) -> Result<(Hello, FrameSender, FrameReceiver), LinkError> {
    let (send, mut receive) = session.accept().await?;
    match receive.expect(HELLO).await? {
        NodeMessage::Hello {
            name,
            version,
            instance,
            models,
        } => {
            let hello = Hello {
                name,
                version,
                instance,
                models,
            };
            Ok((hello, send, receive))
        }
        _ => Err(LinkError::Closed("no hello".into())),
    }
}

/// Waits until the cluster refuses this node, and says why.
pub(crate) async fn refusal(replica: &Replica, id: NodeId, key: KeyPrint) -> &'static str {
    let mut state = replica.state();
    let refused = state.wait_for(|state| state.refuses(id, key).is_some()).await;
    let why = refused.ok().and_then(|state| state.refuses(id, key));
    why.unwrap_or("the coordinator stops")
}

/// A node says that it has destroyed what it held, as it was told to. One that was not told so stays.
async fn shut_out_evicted(replica: &Replica, node: NodeId) {
    let lease = replica.known().leases.of_nodes.get(&node).copied();
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
