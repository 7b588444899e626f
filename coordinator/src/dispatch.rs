//! Where requests go: the shell around `pomona_decide`'s router.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pomona_api::GenerationStream;
use pomona_clocks::wall_s;
use pomona_common::{
    Accounting, Class, Failure, Generation, ModelName, NodeId, Pools, Rung, Seek, TextAsk, limits,
};
use pomona_decide::{Affinity, Candidate, Command, Heard, Marks, Prefills, Warm, plan, route};
use pomona_dispatch::{Places, Promise, Waiting, hopeful, is_last_word};
use pomona_raft::Replica;
use tokio::sync::Semaphore;

use crate::clouds::Clouds;
use crate::connected::InFlight;
use crate::inventory::{inventory, is_stale};
use crate::sessions::Sessions;

/// A node grants or refuses at once; the network gets the rest of this.
const GRANT: Duration = Duration::from_secs(5);

/// Nodes dial a coordinator that was started anew within about a second; requests wait for them
/// at most this long.
const EXPECT: Duration = Duration::from_secs(5);
/// The leader plans every half second.
const PLACED: Duration = Duration::from_secs(2);
/// Why a model has no place is worked out this often at most.
const UNPLACED: Duration = Duration::from_millis(500);
/// Between two looks whether they are there.
const LOOK: Duration = Duration::from_millis(50);
/// Longest time between two looks.
const LOOK_LAST: Duration = Duration::from_millis(800);

/// Sends requests to nodes; clones share the sessions.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    replica: Replica,
    sessions: Arc<Sessions>,
    unplaced: Arc<Mutex<Option<Unplaced>>>,
    moves: Arc<Semaphore>,
    waiting: Arc<Waiting>,
    affinity: Arc<Mutex<Affinity>>,
    prefills: Arc<Mutex<Prefills>>,
    clouds: Arc<Clouds>,
    began: Instant,
    /// The node that asks, of which no better place is itself.
    asker: Option<NodeId>,
}

/// Models without a place and why, and when that was worked out.
type Unplaced = (Instant, Arc<BTreeMap<ModelName, String>>);

impl Dispatcher {
    pub(crate) fn new(replica: Replica, sessions: Arc<Sessions>, clouds: Arc<Clouds>) -> Self {
        Self {
            replica,
            sessions,
            unplaced: Arc::default(),
            moves: pomona_dispatch::moves(),
            waiting: Arc::default(),
            affinity: Arc::default(),
            prefills: Arc::default(),
            clouds,
            began: Instant::now(),
            asker: None,
        }
    }

    /// The same for what this node asks.
    pub(crate) fn of(&self, node: NodeId) -> Self {
        Self {
            asker: Some(node),
            ..self.clone()
        }
    }

    /// As [`generate`](Self::generate) for a client of this coordinator: what no machine answers a cloud may, and
    /// what finds no free place is held.
    pub(crate) async fn generate_held(
        &self,
        generation: Generation,
        text: Result<&TextAsk, &'static str>,
    ) -> Result<GenerationStream, Failure> {
        let list = self.replica.known().fallback(generation.class).into_owned();
        let machines = || self.generate(generation.clone());
        let clouds = text.map(|ask| || self.clouds.answer(&list, ask));
        self.waiting
            .hold_or_spill((generation.class, &list), machines, clouds)
            .await
    }

    /// Starts an answer; it moves to another replica by itself when its node is lost.
    pub(crate) async fn generate(&self, generation: Generation) -> Result<GenerationStream, Failure> {
        let (deadline, mut pause) = (Instant::now() + EXPECT, LOOK);
        loop {
            let outcome = pomona_dispatch::generate(self.clone(), generation.clone()).await;
            let is_final = !matches!(outcome, Err(Failure::ModelNotLoaded { .. }));
            // Its asker makes it meanwhile.
            if is_final || generation.seek == Seek::Better || Instant::now() >= deadline {
                return outcome;
            }
            // Reports lag behind: it may have been unloaded a moment ago, or the node hears of its
            // new target after this request.
            self.expect_replica(&generation.model).await;
            if self.planned(&generation).is_empty() {
                return outcome;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_LAST);
        }
    }

    /// Waits until a node that the plan gives the model to is connected. A catalogued model that the
    /// plan gives to none is asked for, which may bring it in; nothing is ever fetched for it.
    pub(crate) async fn expect_replica(&self, model: &ModelName) {
        if self.is_expected(model) {
            return;
        }
        let asked = self.demand(model).await;
        let patience = if self.is_planned(model) { EXPECT } else { asked };
        let wait = async {
            while !self.is_expected(model) {
                tokio::time::sleep(LOOK).await;
            }
        };
        // The refusal that follows says what is missing.
        let _ = tokio::time::timeout(patience, wait).await;
    }

    /// Whether a node is connected that is to have it.
    fn is_expected(&self, model: &ModelName) -> bool {
        let state = self.replica.known();
        let mut nodes = state.plan.nodes.iter();
        nodes.any(|(id, target)| target.models.contains_key(model) && self.sessions.get(*id).is_some())
    }

    fn is_planned(&self, model: &ModelName) -> bool {
        let state = self.replica.known();
        let mut targets = state.plan.nodes.values();
        targets.any(|target| target.models.contains_key(model))
    }

    /// Notes that a model was asked for, and says how long its place may take to be found.
    async fn demand(&self, model: &ModelName) -> Duration {
        let now_s = wall_s();
        if is_stale(&self.replica.known(), model, now_s) {
            let models = vec![model.clone()];
            if let Err(error) = self.replica.write(Command::UseModels { models, now_s }).await {
                tracing::warn!(%model, %error, "nobody knows that it was asked for");
            }
        }
        let asked_s = self.replica.known().placement.used_s(model);
        // Whoever asks later has no news to wait for.
        if now_s.saturating_sub(asked_s) <= PLACED.as_secs() {
            PLACED
        } else {
            Duration::ZERO
        }
    }

    /// Why no node can answer for a model now.
    pub(crate) fn not_loaded(&self, model: &ModelName) -> Failure {
        let unplaced = self.unplaced();
        let detail = match unplaced.get(model) {
            Some(why) => why.clone(),
            None if self.sessions.all().is_empty() => "no node is connected".to_owned(),
            None => "a node is loading it".to_owned(),
        };
        Failure::ModelNotLoaded {
            model: model.to_string(),
            detail,
        }
    }

    fn not_loaded_for(&self, generation: &Generation) -> Failure {
        let Generation {
            model, pools, class, ..
        } = generation;
        let state = self.replica.known();
        let list = state.fallback(*class);
        let has_it = |id: &NodeId| {
            let target = state.plan.nodes.get(id);
            target.is_some_and(|target| target.models.contains_key(model))
        };
        let may = |id: &NodeId| state.reaches(model, pools, *id);
        let holders: Vec<NodeId> = self.sessions.all().into_keys().filter(has_it).collect();
        let detail = if holders.iter().any(may) {
            if holders
                .iter()
                .any(|id| state.rank(&list, (model, pools), *id).is_some())
            {
                return self.not_loaded(model);
            }
            format!("no machine where {class} requests go has it ({list}; `pomona fallback show`)")
        } else if state.clouds.is_private(model) && !holders.is_empty() {
            "it is private, and the machines that have it are rented".to_owned()
        } else if !pools.is_any() {
            format!("no machine that this API key reaches has it ({pools})")
        } else {
            return self.not_loaded(model);
        };
        Failure::ModelNotLoaded {
            model: model.to_string(),
            detail,
        }
    }

    /// Models without a place, and why. Worked out anew after a while only: refusals may be many.
    fn unplaced(&self) -> Arc<BTreeMap<ModelName, String>> {
        let mut known = self.unplaced.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((at, unplaced)) if at.elapsed() < UNPLACED => unplaced.clone(),
            _ => {
                let state = self.replica.known();
                let outcome = plan(&state, &inventory(&self.sessions), wall_s());
                let unplaced = Arc::new(outcome.unplaced);
                *known = Some((Instant::now(), unplaced.clone()));
                unplaced
            }
        }
    }

    fn affinity(&self) -> MutexGuard<'_, Affinity> {
        self.affinity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prefills(&self) -> MutexGuard<'_, Prefills> {
        self.prefills.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn candidates(&self, generation: &Generation, marks: &Marks) -> Vec<Candidate> {
        let now_s = wall_s();
        let state = self.replica.known();
        let list = state.fallback(generation.class);
        let now = self.began.elapsed();
        let warm = self.affinity().warm(marks, now);
        let prefills = self.prefills();
        self.sessions
            .all()
            .iter()
            .filter_map(|(id, connected)| {
                let asked = (&generation.model, &generation.pools);
                let rank = state.rank(&list, asked, *id)?;
                let (_, report) = connected.report()?;
                let engine = report.engine.as_ref()?;
                let loaded = engine.models.get(&generation.model)?;
                let in_flight = connected.in_flight.load(Ordering::Relaxed);
                let class = engine.classes.get(&generation.class);
                let of_class = class.map_or(0, |class| class.running + class.waiting);
                let slots = engine.knobs.class(generation.class).max_slots;
                let rung = state.relief(*id).rung;
                Some(Candidate {
                    node: *id,
                    heard: connected.heard(),
                    queued: loaded.running + loaded.waiting,
                    in_flight,
                    draining: state.availability(*id, now_s).is_draining()
                        || state.gates.relocates(*id, &generation.model, now_s),
                    spared: rung.spares(generation.class),
                    rank,
                    is_personal: state.is_personal(*id),
                    slots,
                    full: of_class >= slots,
                    warm: Candidate::warmth(warm.get(id), generation.class, rung, of_class >= slots, slots),
                    prefill_ms: prefills.ms_per_token(&generation.model, *id, now),
                })
            })
            .collect()
    }

    /// Nodes that may be asked for an answer.
    async fn worth_asking(&self, generation: &Generation, marks: &Marks, avoid: &[NodeId]) -> Vec<Candidate> {
        let mut candidates = self.candidates(generation, marks);
        if generation.seek == Seek::Better {
            // Who would have it wait, or stand still, is no better.
            let is_asked = |node: NodeId| self.asker != Some(node) && !avoid.contains(&node);
            candidates.retain(|one| one.is_better(generation.class) && is_asked(one.node));
            return candidates;
        }
        if candidates.is_empty() {
            self.expect_replica(&generation.model).await;
        }
        // Batch is refused where a node is spared; other work is only asked elsewhere first.
        let is_batch = generation.class == Class::Batch;
        let is_no_use = |one: &Candidate| avoid.contains(&one.node) || (is_batch && one.spared);
        if candidates.iter().all(is_no_use) {
            let known: Vec<NodeId> = candidates.iter().map(|one| one.node).collect();
            let planned = self.planned(generation).into_iter();
            candidates.extend(planned.filter(|one| !known.contains(&one.node)));
        }
        candidates
    }

    /// Nodes whose target holds the model, loaded or not: one that restarts its engine keeps
    /// the request until the model is back.
    fn planned(&self, generation: &Generation) -> Vec<Candidate> {
        let model = &generation.model;
        let now_s = wall_s();
        let state = self.replica.known();
        let list = state.fallback(generation.class);
        let nodes = state.plan.nodes.iter();
        nodes
            .filter(|(id, target)| target.models.contains_key(model) && self.sessions.get(**id).is_some())
            .filter_map(|(id, _)| Some((id, state.rank(&list, (model, &generation.pools), *id)?)))
            .map(|(id, rank)| Candidate {
                node: *id,
                heard: Heard::NOW,
                queued: 0,
                in_flight: 0,
                draining: state.availability(*id, now_s).is_draining(),
                spared: state.relief(*id).rung.spares(generation.class),
                rank,
                is_personal: state.is_personal(*id),
                slots: 0,
                full: false,
                warm: Warm::default(),
                prefill_ms: None,
            })
            .collect()
    }
}

impl Places for Dispatcher {
    type Place = NodeId;

    async fn place(&self, generation: &Generation, avoid: &[NodeId]) -> Result<(NodeId, Promise), Failure> {
        let marks = Marks::of(generation);
        let candidates = self.worth_asking(generation, &marks, avoid).await;
        let (others, fresh): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|candidate| avoid.contains(&candidate.node));
        let mut refusal = None;
        // The machines are chosen here: no node has to know of pools.
        let chosen = Generation {
            pools: Pools::default(),
            seek: Seek::Any,
            ..generation.clone()
        };
        let tries = 1 + limits::RETRIES as usize;
        let class = generation.class;
        let order = route(&fresh, class).into_iter().chain(route(&others, class));
        for route in order.take(tries) {
            let Some(connected) = self.sessions.get(route.node) else {
                continue;
            };
            tracing::debug!(node = %route.node, reason = route.reason, request = %generation.request, "routed");
            // Counted before it is asked: requests that come at the same moment spread.
            let in_flight = InFlight::new(connected.clone());
            match pomona_dispatch::ask(&connected.session, route.node, chosen.clone(), GRANT).await {
                Ok(promise) => {
                    self.affinity().note(&marks, route.node, self.began.elapsed());
                    // A node answers for itself, whoever it names.
                    let promise = promise.made_by(route.node).holding(in_flight);
                    return Ok((route.node, promise));
                }
                Err(failure) => {
                    if is_last_word(&failure) {
                        return Err(failure);
                    }
                    refusal = Some(refusal.map_or(failure.clone(), |before| hopeful(before, failure)));
                }
            }
        }
        Err(refusal.unwrap_or_else(|| self.not_loaded_for(generation)))
    }

    fn tries_others(_node: NodeId) -> bool {
        false
    }

    async fn leaving(&self, node: NodeId, from: Rung) {
        let mut state = self.replica.state();
        // Fails only when this coordinator ends.
        let _ = state.wait_for(|state| state.relief(node).rung >= from).await;
    }

    fn ended(&self, generation: &Generation, accounting: &Accounting) {
        self.prefills().note(generation, accounting, self.began.elapsed());
    }

    fn moves(&self) -> &Semaphore {
        &self.moves
    }
}
