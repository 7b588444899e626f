//! The cluster's `/v1`: requests go to a node that has the model, by the last plan and the last
//! reports, with or without a leader.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pomona_api::{Backend, FirstBytes, GenerationStream, TextCache};
use pomona_common::control::{StreamRequest, TextBundle};
use pomona_common::generation::GenerationEvent;
use pomona_common::report::NodeReport;
use pomona_common::{Failure, Generation, ModelName, ModelRecord, NodeId, limits};
use pomona_decide::{Candidate, route};
use pomona_link::{FrameReceiver, FrameSender, LinkError};
use pomona_raft::Replica;
use pomona_text::ModelText;
use tokio::sync::mpsc;

use crate::sessions::{Connected, InFlight, Sessions};

/// A node grants or refuses at once; the network gets the rest of this.
const GRANT: Duration = Duration::from_secs(5);
/// Tokenizers are megabytes.
const FETCH: Duration = Duration::from_secs(30);

pub(crate) struct CoordinatorBackend {
    pub(crate) replica: Replica,
    pub(crate) sessions: Arc<Sessions>,
    texts: TextCache,
    first_bytes: Arc<FirstBytes>,
}

impl CoordinatorBackend {
    pub(crate) fn new(replica: Replica, sessions: Arc<Sessions>) -> Self {
        Self {
            replica,
            sessions,
            texts: TextCache::default(),
            first_bytes: Arc::default(),
        }
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

    fn not_loaded(&self, model: &ModelName) -> Failure {
        Failure::ModelNotLoaded {
            model: model.to_string(),
            detail: match self.sessions.all().len() {
                0 => "no node is connected".to_owned(),
                nodes => format!("{nodes} nodes are connected and none has it in its target"),
            },
        }
    }

    async fn fetch_text(&self, model: &ModelRecord) -> Result<TextBundle, Failure> {
        for connected in self.sessions.all().into_values() {
            let has_it = connected
                .stored()
                .iter()
                .any(|stored| stored.digests == model.digests);
            if !has_it {
                continue;
            }
            match fetch_from(&connected, &model.name).await {
                Ok(bundle) => return Ok(bundle),
                Err(error) => tracing::warn!(node = connected.name, %error, "tokenizer not fetched"),
            }
        }
        Err(self.not_loaded(&model.name))
    }
}

async fn fetch_from(connected: &Connected, model: &ModelName) -> Result<TextBundle, LinkError> {
    let (mut send, mut receive) = connected.session.open().await?;
    send.send(&StreamRequest::FetchText(model.clone())).await?;
    let bundle = receive.expect(FETCH).await?;
    send.finish();
    Ok(bundle)
}

impl Backend for CoordinatorBackend {
    fn models(&self) -> Vec<ModelRecord> {
        self.replica
            .state()
            .borrow()
            .catalogue
            .values()
            .cloned()
            .collect()
    }

    async fn text(&self, model: &ModelRecord) -> Result<Arc<ModelText>, Failure> {
        self.texts.get(model, || self.fetch_text(model)).await
    }

    async fn generate(&self, generation: Generation) -> Result<GenerationStream, Failure> {
        let mut candidates = self.candidates(&generation.model);
        if candidates.is_empty() {
            candidates = self.planned(&generation.model);
        }
        let mut refusal = self.not_loaded(&generation.model);
        let tries = 1 + limits::RETRIES as usize;
        for route in route(&candidates).into_iter().take(tries) {
            let Some(connected) = self.sessions.get(route.node) else {
                continue;
            };
            tracing::debug!(node = %route.node, reason = route.reason, request = %generation.request, "routed");
            match start(connected, route.node, generation.clone()).await {
                Ok(stream) => return Ok(stream),
                Err(failure) => {
                    let final_word = matches!(failure, Failure::Invalid { .. } | Failure::TooLarge { .. });
                    refusal = failure;
                    if final_word {
                        break;
                    }
                }
            }
        }
        Err(refusal)
    }

    fn reports(&self) -> Vec<(NodeId, String, Arc<NodeReport>)> {
        self.sessions
            .all()
            .into_iter()
            .filter_map(|(id, connected)| {
                let (_, report) = connected.report()?;
                Some((id, connected.name.clone(), report))
            })
            .collect()
    }

    fn first_bytes(&self) -> &Arc<FirstBytes> {
        &self.first_bytes
    }

    fn not_ready(&self) -> Vec<String> {
        let nodes = self.sessions.all();
        let mut failing = Vec::new();
        if nodes.is_empty() {
            failing.push("no node is connected".to_owned());
        } else if self.loaded().is_empty() {
            let blocked = nodes.values().find_map(|node| node.report()?.1.blocked.clone());
            failing.push(blocked.unwrap_or_else(|| "no model is loaded yet".to_owned()));
        }
        failing
    }

    fn loaded(&self) -> Vec<ModelName> {
        let mut models: Vec<ModelName> = self
            .reports()
            .iter()
            .filter_map(|(_, _, report)| report.engine.as_ref())
            .flat_map(|engine| engine.models.keys().cloned())
            .collect();
        models.sort();
        models.dedup();
        models
    }
}

/// Asks a node; its first event is its answer.
async fn start(
    connected: Arc<Connected>,
    node: NodeId,
    generation: Generation,
) -> Result<GenerationStream, Failure> {
    let lost = |error: LinkError| {
        tracing::debug!(%error, "stream to node failed");
        Failure::NodeLost
    };
    let (mut send, mut receive) = connected.session.open().await.map_err(lost)?;
    let request = StreamRequest::Generate(Box::new(generation));
    send.send(&request).await.map_err(lost)?;
    match receive.expect::<GenerationEvent>(GRANT).await.map_err(lost)? {
        GenerationEvent::Granted => {}
        GenerationEvent::Failed(failure) => return Err(failure),
        GenerationEvent::Chunk(_) | GenerationEvent::Finished { .. } => return Err(Failure::NodeLost),
    }
    let (sender, events) = mpsc::channel(limits::STREAM_EVENTS);
    let in_flight = InFlight::new(connected);
    #[expect(clippy::disallowed_methods, reason = "ends with either end of the stream")]
    tokio::spawn(forward(send, receive, sender, in_flight));
    Ok(GenerationStream { node, events })
}

/// Passes events on. When the client goes away, dropping both halves of the stream tells the
/// node at once.
async fn forward(
    send: FrameSender,
    mut receive: FrameReceiver,
    sender: mpsc::Sender<GenerationEvent>,
    _in_flight: InFlight,
) {
    loop {
        let event = tokio::select! {
            event = receive.next::<GenerationEvent>() => event,
            () = sender.closed() => return,
        };
        let event = match event {
            Ok(Some(event)) => event,
            // The session is gone: the end of the channel says so.
            Ok(None) | Err(_) => return,
        };
        let last = matches!(
            event,
            GenerationEvent::Finished { .. } | GenerationEvent::Failed(_)
        );
        if sender.try_send(event).is_err() {
            return;
        }
        if last {
            send.finish();
            return;
        }
    }
}
