//! Passes weights on between nodes that do not reach each other. Both dial this coordinator: who wants
//! a model opens streams as it would with a node, who has it is asked over the control session to
//! come. Chunks are checked where they arrive; here is checked who asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pomona_common::weights::{CHUNK_BYTES, WeightsRequest};
use pomona_common::{ModelName, NodeId, limits};
use pomona_link::{FrameReceiver, FrameSender, LinkError, Pace, Session};
use pomona_raft::Replica;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use crate::connected::Connected;
use crate::sessions::{Sessions, refusal};

/// Chunks of all nodes that are passed on at once: 64 MiB at most are on their way.
const STREAMS: usize = 16;
/// Streams of one node that wait for their turn.
const WAITING: usize = 64;
/// A node says what it wants within this time.
const REQUEST: Duration = Duration::from_secs(5);
/// A node that has the model comes within this time, and is asked that often.
const COMING: Duration = Duration::from_secs(1);
const ASKED: usize = 8;
/// A chunk makes progress within this time; a first manifest takes as long as reading the model.
const PATIENCE: Duration = Duration::from_secs(300);
/// A session on which nothing was asked for so long is ended.
const IDLE: Duration = Duration::from_secs(60);
/// No session lasts longer: whoever still needs one dials anew, with a certificate of now.
const LONGEST: Duration = Duration::from_secs(3600);

/// See the module's documentation.
pub(crate) struct WeightsRelay {
    sessions: Arc<Sessions>,
    replica: Replica,
    /// Sessions of nodes that came to give, by node: the newest.
    open: Mutex<BTreeMap<NodeId, Open>>,
    came: Notify,
    slots: Semaphore,
    pace: Pace,
    turn: AtomicUsize,
}

struct Open {
    session: Session,
    /// Held by every stream that is passed on from there.
    in_use: Arc<()>,
    used: Instant,
}

impl Open {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.in_use) == 1 && self.used.elapsed() >= IDLE
    }
}

impl WeightsRelay {
    pub(crate) fn new(sessions: Arc<Sessions>, replica: Replica) -> Self {
        // As long as answers pass through here, weights leave them the line.
        let others = sessions.clone();
        let pace = Pace::new(move || others.any_in_flight());
        Self {
            sessions,
            replica,
            open: Mutex::default(),
            came: Notify::new(),
            slots: Semaphore::new(STREAMS),
            pace,
            turn: AtomicUsize::new(0),
        }
    }

    /// Serves a node that wants weights, until the session ends.
    pub(crate) async fn serve(self: &Arc<Self>, session: Session) {
        let Some(node) = session.peer().role.node() else {
            return;
        };
        self.guard(node, &session, self.answer(node, &session)).await;
    }

    /// Keeps a node that gives weights as long as somebody asks for them.
    pub(crate) async fn take(&self, session: Session) {
        let Some(node) = session.peer().role.node() else {
            return;
        };
        let open = Open {
            session: session.clone(),
            in_use: Arc::new(()),
            used: Instant::now(),
        };
        if let Some(older) = self.open().insert(node, open) {
            older.session.close("replaced by a newer session");
        }
        self.came.notify_waiters();
        let kept = async {
            tokio::select! {
                _ = session.ended() => "the node has left",
                () = self.idle(node) => "nothing was asked",
            }
        };
        self.guard(node, &session, kept).await;
        let mut open = self.open();
        if open
            .get(&node)
            .is_some_and(|now| now.session.stable_id() == session.stable_id())
        {
            open.remove(&node);
        }
    }

    /// Lets a session last until `work` says why it ends, the cluster refuses the node, or it has lasted
    /// long enough; then ends it.
    async fn guard(&self, node: NodeId, session: &Session, work: impl Future<Output = &'static str>) {
        let why = tokio::select! {
            // Beside everything else, so that a node which reads nothing cannot outlive it.
            biased;
            why = refusal(&self.replica, node, session.peer().key) => why,
            () = tokio::time::sleep(LONGEST) => "dial anew",
            why = work => why,
        };
        session.close(why);
    }

    /// Comes back when a node was asked for nothing for a while.
    async fn idle(&self, node: NodeId) {
        let mut looks = tokio::time::interval(IDLE);
        loop {
            looks.tick().await;
            if self.open().get(&node).is_none_or(Open::is_idle) {
                return;
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<NodeId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(self: &Arc<Self>, node: NodeId, session: &Session) -> &'static str {
        let mut streams = JoinSet::new();
        let mut looks = tokio::time::interval(IDLE);
        let mut asked = Instant::now();
        loop {
            tokio::select! {
                stream = session.accept() => {
                    let Ok((send, receive)) = stream else {
                        return "the node has left";
                    };
                    asked = Instant::now();
                    if streams.len() >= WAITING {
                        continue;
                    }
                    let this = self.clone();
                    streams.spawn(async move {
                        if let Err(error) = this.pass(node, send, receive).await {
                            tracing::info!(%node, %error, "weights not passed on");
                        }
                    });
                }
                _ = streams.join_next(), if !streams.is_empty() => {}
                _ = looks.tick() => if streams.is_empty() && asked.elapsed() >= IDLE {
                    return "nothing was asked";
                }
            }
        }
    }

    /// Passes one request to a node that has the model, and its answer back.
    async fn pass(
        &self,
        asker: NodeId,
        mut send: FrameSender,
        mut receive: FrameReceiver,
    ) -> Result<(), LinkError> {
        let request = receive.expect::<WeightsRequest>(REQUEST).await?;
        let model = match &request {
            WeightsRequest::Manifest(model) | WeightsRequest::Chunk { model, .. } => model.clone(),
        };
        let _slot = self.slots.acquire().await;
        let mut failed = BTreeSet::new();
        loop {
            let (source, node, _in_use) = self.source(asker, &model, &failed).await?;
            let (mut ask, mut answer) = source.open().await?;
            ask.send(&request).await?;
            ask.finish();
            let limit = limits::MANIFEST_FRAME_BYTES.max(CHUNK_BYTES as usize);
            match answer.pass_on(&mut send, &self.pace, (limit, PATIENCE)).await {
                Ok(()) => {
                    send.finish();
                    return Ok(());
                }
                // It has nothing, or cannot read it: the asker need not know.
                Err((0, error)) => {
                    tracing::info!(%node, %error, %model, "this node does not give what it has said it stores");
                    failed.insert(node);
                }
                Err((_, error)) => return Err(error),
            }
        }
    }

    /// A session with a node that has the model: one that is there, each in its turn, else whoever comes
    /// first when asked.
    async fn source(
        &self,
        asker: NodeId,
        model: &ModelName,
        failed: &BTreeSet<NodeId>,
    ) -> Result<(Session, NodeId, Arc<()>), LinkError> {
        for _ in 0..ASKED {
            let came = self.came.notified();
            let mut holders = self.holders(asker, model);
            holders.retain(|id, _| !failed.contains(id));
            if holders.is_empty() {
                break;
            }
            if let Some(there) = self.next_of(&holders) {
                return Ok(there);
            }
            for holder in holders.values() {
                holder.give.notify_one();
            }
            let _ = tokio::time::timeout(COMING, came).await;
        }
        Err(LinkError::Closed(format!("no node gives `{model}` through here")))
    }

    /// The next of those that are there.
    fn next_of(&self, holders: &BTreeMap<NodeId, Arc<Connected>>) -> Option<(Session, NodeId, Arc<()>)> {
        let mut open = self.open();
        let is_there = |id: &&NodeId| open.get(id).is_some_and(|open| open.session.is_open());
        let there: Vec<NodeId> = holders.keys().filter(is_there).copied().collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let id = *there.get(turn.checked_rem(there.len())?)?;
        let next = open.get_mut(&id)?;
        next.used = Instant::now();
        Some((next.session.clone(), id, next.in_use.clone()))
    }

    /// Connected nodes that have what the catalogue knows under this name.
    fn holders(&self, asker: NodeId, model: &ModelName) -> BTreeMap<NodeId, Arc<Connected>> {
        let state = self.replica.known();
        let Some(record) = state.catalogue.get(model) else {
            return BTreeMap::new();
        };
        let mut nodes = self.sessions.all();
        nodes.retain(|id, node| *id != asker && node.stores(record) && node.gives_through());
        nodes
    }
}
