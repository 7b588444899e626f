//! Where requests go: the shell around `pomona_decide`'s router.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pomona_api::GenerationStream;
use pomona_common::{Failure, Generation, ModelName, NodeId, limits};
use pomona_decide::{Candidate, route};
use pomona_dispatch::{Places, Promise, is_last_word};
use pomona_raft::Replica;

use crate::sessions::{InFlight, Sessions};

/// A node grants or refuses at once; the network gets the rest of this.
const GRANT: Duration = Duration::from_secs(5);

/// Nodes dial a coordinator that was started anew within about a second; requests wait for them
/// at most this long.
const EXPECT: Duration = Duration::from_secs(5);
/// Between two looks whether they are there.
const LOOK: Duration = Duration::from_millis(50);

/// Sends requests to nodes; clones share the sessions.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    replica: Replica,
    sessions: Arc<Sessions>,
}

impl Dispatcher {
    pub(crate) fn new(replica: Replica, sessions: Arc<Sessions>) -> Self {
        Self { replica, sessions }
    }

    /// Starts an answer; it moves to another replica by itself when its node is lost.
    pub(crate) async fn generate(&self, generation: Generation) -> Result<GenerationStream, Failure> {
        self.expect_replica(&generation.model).await;
        pomona_dispatch::generate(self.clone(), generation).await
    }

    /// Waits until a node that the plan gives the model to is connected; not at all when the plan
    /// gives it to none.
    pub(crate) async fn expect_replica(&self, model: &ModelName) {
        let is_planned = || {
            let state = self.replica.state();
            let state = state.borrow();
            let mut targets = state.plan.nodes.values();
            targets.any(|target| target.models.contains_key(model))
        };
        let wait = async {
            while is_planned() && self.planned(model).is_empty() {
                tokio::time::sleep(LOOK).await;
            }
        };
        // The refusal that follows says what is missing.
        let _ = tokio::time::timeout(EXPECT, wait).await;
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
}

impl Places for Dispatcher {
    type Place = NodeId;

    async fn place(&self, generation: &Generation, avoid: &[NodeId]) -> Result<(NodeId, Promise), Failure> {
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
            match pomona_dispatch::ask(&connected.session, route.node, generation.clone(), GRANT).await {
                Ok(promise) => return Ok((route.node, promise.holding(InFlight::new(connected)))),
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
}
