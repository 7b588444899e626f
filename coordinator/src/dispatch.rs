//! Where requests go, and how an answer goes on when its node is lost: the shell around
//! `pomona_decide`'s router and relay.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pomona_api::GenerationStream;
use pomona_common::control::StreamRequest;
use pomona_common::generation::GenerationEvent;
use pomona_common::{Failure, Generation, ModelName, NodeId, limits};
use pomona_decide::{Candidate, Next, Relay, route};
use pomona_link::{FrameReceiver, FrameSender, LinkError};
use pomona_raft::Replica;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::sessions::{Connected, InFlight, Sessions};

/// A node grants or refuses at once; the network gets the rest of this.
const GRANT: Duration = Duration::from_secs(5);
/// An answer whose node is lost waits this long for another replica. The client hears
/// keep-alives meanwhile.
const REPLACE: Duration = Duration::from_secs(12);
/// Between two looks for one.
const LOOK: Duration = Duration::from_millis(200);

/// Sends requests to nodes; clones share the sessions.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    replica: Replica,
    sessions: Arc<Sessions>,
}

/// A node's promise to answer.
struct Promise {
    node: NodeId,
    send: FrameSender,
    receive: FrameReceiver,
    _in_flight: InFlight,
}

impl Dispatcher {
    pub(crate) fn new(replica: Replica, sessions: Arc<Sessions>) -> Self {
        Self { replica, sessions }
    }

    /// Starts an answer; it moves to another replica by itself when its node is lost.
    pub(crate) async fn generate(&self, generation: Generation) -> Result<GenerationStream, Failure> {
        let promise = self.place(&generation, &[]).await?;
        let node = promise.node;
        let (sender, events) = mpsc::channel(limits::STREAM_EVENTS);
        let relay = Relay::new(generation, node);
        #[expect(clippy::disallowed_methods, reason = "ends with either end of the stream")]
        tokio::spawn(self.clone().carry(promise, relay, sender));
        Ok(GenerationStream { node, events })
    }

    /// Why no node can answer for a model now.
    pub(crate) fn not_loaded(&self, model: &ModelName) -> Failure {
        Failure::ModelNotLoaded {
            model: model.to_string(),
            detail: match self.sessions.all().len() {
                0 => "no node is connected".to_owned(),
                nodes => format!("{nodes} nodes are connected and none has it in its target"),
            },
        }
    }

    /// Asks replicas until one promises; those in `avoid` last.
    async fn place(&self, generation: &Generation, avoid: &[NodeId]) -> Result<Promise, Failure> {
        let mut candidates = self.candidates(&generation.model);
        if candidates.iter().all(|candidate| avoid.contains(&candidate.node)) {
            candidates.extend(self.planned(&generation.model));
        }
        let (others, fresh): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|candidate| avoid.contains(&candidate.node));
        let mut refusal = self.not_loaded(&generation.model);
        let tries = 1 + limits::RETRIES as usize;
        for route in route(&fresh).into_iter().chain(route(&others)).take(tries) {
            let Some(connected) = self.sessions.get(route.node) else {
                continue;
            };
            tracing::debug!(node = %route.node, reason = route.reason, request = %generation.request, "routed");
            match ask(connected, route.node, generation.clone()).await {
                Ok(promise) => return Ok(promise),
                Err(failure) => {
                    let last_word = is_last_word(&failure);
                    refusal = failure;
                    if last_word {
                        break;
                    }
                }
            }
        }
        Err(refusal)
    }

    fn candidates(&self, model: &ModelName) -> Vec<Candidate> {
        self.sessions
            .all()
            .iter()
            .filter_map(|(id, connected)| {
                let (age, report) = connected.report()?;
                let engine = report.engine.as_ref()?;
                let loaded = engine.models.get(model)?;
                Some(Candidate {
                    node: *id,
                    report_age_ms: age.as_millis() as u64,
                    queued: loaded.running + loaded.waiting,
                    in_flight: connected.in_flight.load(Ordering::Relaxed),
                })
            })
            .collect()
    }

    /// Nodes whose target holds the model, loaded or not: one that restarts its engine keeps
    /// the request until the model is back.
    fn planned(&self, model: &ModelName) -> Vec<Candidate> {
        let state = self.replica.state();
        let state = state.borrow();
        let nodes = state.plan.nodes.iter();
        nodes
            .filter(|(id, target)| target.models.contains_key(model) && self.sessions.get(**id).is_some())
            .map(|(id, _)| Candidate {
                node: *id,
                report_age_ms: 0,
                queued: 0,
                in_flight: 0,
            })
            .collect()
    }

    /// Passes an answer's events on, over as many replicas as it takes. When the client goes
    /// away, dropping the promise tells the node at once.
    async fn carry(self, mut promise: Promise, mut relay: Relay, sender: mpsc::Sender<GenerationEvent>) {
        loop {
            let next = tokio::select! {
                event = promise.receive.next::<GenerationEvent>() => match event {
                    Ok(Some(event)) => relay.on_event(event),
                    Ok(None) | Err(_) => relay.on_lost(),
                },
                () = sender.closed() => return,
            };
            match next {
                Next::Wait => {}
                Next::Pass(event) => {
                    if sender.try_send(event).is_err() {
                        return;
                    }
                }
                Next::Last(event) => {
                    // Fails when the client is gone as well.
                    let _ = sender.try_send(event);
                    promise.send.finish();
                    return;
                }
                Next::Move => {
                    let found = tokio::select! {
                        found = self.replace(&relay) => found,
                        () = sender.closed() => return,
                    };
                    match found {
                        Ok(found) => {
                            tracing::info!(
                                from = %promise.node, to = %found.node, request = %relay.rest().request,
                                tokens = relay.rest().resume.len(), "answer goes on elsewhere"
                            );
                            relay.moved(found.node);
                            promise = found;
                        }
                        Err(failure) => {
                            let _ = sender.try_send(GenerationEvent::Failed(failure));
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Another replica for an answer, or the same node again when there is no other and it
    /// comes back in time.
    async fn replace(&self, relay: &Relay) -> Result<Promise, Failure> {
        let deadline = Instant::now() + REPLACE;
        loop {
            match self.place(relay.rest(), relay.failed()).await {
                Ok(promise) => return Ok(promise),
                Err(failure) if is_last_word(&failure) || Instant::now() >= deadline => return Err(failure),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

/// Whether every replica would say the same.
fn is_last_word(failure: &Failure) -> bool {
    matches!(failure, Failure::Invalid { .. } | Failure::TooLarge { .. })
}

/// Asks a node; its first event is its answer.
async fn ask(connected: Arc<Connected>, node: NodeId, generation: Generation) -> Result<Promise, Failure> {
    let lost = |error: LinkError| {
        tracing::debug!(%error, "stream to node failed");
        Failure::NodeLost
    };
    let (mut send, mut receive) = connected.session.open().await.map_err(lost)?;
    let request = StreamRequest::Generate(Box::new(generation));
    send.send(&request).await.map_err(lost)?;
    match receive.expect::<GenerationEvent>(GRANT).await.map_err(lost)? {
        GenerationEvent::Granted => Ok(Promise {
            node,
            send,
            receive,
            _in_flight: InFlight::new(connected),
        }),
        GenerationEvent::Failed(failure) => Err(failure),
        GenerationEvent::Chunk(_) | GenerationEvent::Finished { .. } => Err(Failure::NodeLost),
    }
}
