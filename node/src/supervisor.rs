//! The engine process: started, watched, counted, restarted. Sequences that had not answered
//! when it died start again; the others end with an error.

mod actor;
mod instructed;
mod last_run;
mod machine_now;
mod process;
mod prompts;
mod sequences;
mod served;
mod watched;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pomona_api::{Enough, Unwanted, enough};
use pomona_common::generation::GenerationEvent;
use pomona_common::plan::NodeTarget;
use pomona_common::report::{EngineReport, MachineReport};
use pomona_common::signs::{FirstToken, Speeds};
use pomona_common::{
    Accounting, Class, EngineKnobs, Failure, Generation, ModelName, NodeId, Slo, SloSet, limits,
};
use pomona_decide::Strain;
use pomona_probe::KillCause;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::instructions::Instructions;
use crate::store::Store;
use crate::supervisor::last_run::{LastRun, Left};
use crate::supervisor::machine_now::MachineNow;
use crate::supervisor::prompts::Prompts;

pub(crate) use machine_now::Family;

/// What is run as engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EngineProgram {
    /// `pomona-engine` at this path.
    Mlx(PathBuf),
    /// This program's own echo engine.
    Echo {
        /// Milliseconds per step.
        step_ms: u64,
    },
    /// A go-between to a server of another program.
    Adopted,
    /// Nothing.
    None,
}

/// What the supervisor begins with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) node: NodeId,
    pub(crate) program: EngineProgram,
    pub(crate) knobs: EngineKnobs,
    pub(crate) slos: SloSet,
    /// The node's folder, where it is written down what runs.
    pub(crate) folder: PathBuf,
}

/// What the rest of the node sees of the engine.
#[derive(Debug, Clone, Default)]
pub(crate) struct EngineView {
    /// Process id while it runs.
    pub(crate) pid: Option<u32>,
    /// The process that does the work, where that is a server of another program.
    pub(crate) serves: Option<u32>,
    /// Its last report.
    pub(crate) report: Option<Arc<EngineReport>>,
    /// Models of the target.
    pub(crate) wanted: BTreeSet<ModelName>,
    /// Models that answer.
    pub(crate) loaded: BTreeSet<ModelName>,
    /// Models being loaded: bytes of weights read, and in all (0 when not known yet).
    pub(crate) loading: BTreeMap<ModelName, (u64, u64)>,
    /// Models that could not be loaded, and why.
    pub(crate) failed: BTreeMap<ModelName, String>,
    /// KV budget that the engine runs or will run with.
    pub(crate) kv_budget_bytes: u64,
    /// Exits by signal.
    pub(crate) kills: u64,
    /// Of those, the ones by the system, by the model that is to blame.
    pub(crate) kills_of: BTreeMap<ModelName, u64>,
    /// What was said of the latest of each.
    pub(crate) kill_causes: BTreeMap<ModelName, String>,
    /// Interactive answers that have ended.
    pub(crate) answers: u64,
    /// The latest of them, the newest last.
    pub(crate) first_tokens: VecDeque<FirstToken>,
    /// How fast they come.
    pub(crate) speeds: Speeds,
    /// Generation of the target that is being followed.
    pub(crate) generation: u64,
}

/// Whether how an answer came says something of this node: what began elsewhere does not.
fn is_judged(generation: &Generation) -> bool {
    generation.class == Class::Interactive && generation.resume.is_empty()
}

impl EngineView {
    /// An answer has ended, of which this was promised if it is an interactive one.
    fn note_answer(&mut self, generation: &Generation, accounting: &Accounting, slo: &Slo) {
        let is_slow = slo.is_slow(accounting.completion_tokens, accounting.decode_ms);
        // What other programs send at once may be more than a token.
        let has_speed = is_judged(generation) && generation.text.is_none();
        if let Some(is_slow) = is_slow.filter(|_| has_speed) {
            self.speeds.answers += 1;
            self.speeds.slow += u64::from(is_slow);
        }
        if accounting.completion_tokens > 0 {
            let ttft_ms = accounting.queue_ms + accounting.prefill_ms;
            let first = FirstToken {
                model: generation.model.clone(),
                uncached: accounting.prompt_tokens.saturating_sub(accounting.cached_tokens),
                ttft_ms: ttft_ms as f32,
                took_ms: (ttft_ms + accounting.decode_ms) as u32,
                given_up: false,
            };
            self.note_first_token(generation, first);
        }
    }

    /// A client gave up before the first token: editors do, and it would be the latest of all.
    fn note_given_up(&mut self, generation: &Generation, waited: Duration) {
        let waited_ms = waited.as_secs_f32() * 1e3;
        let first = FirstToken {
            model: generation.model.clone(),
            uncached: match &generation.text {
                Some(text) => text.prompt_tokens,
                None => u32::try_from(generation.prompt.len()).unwrap_or(u32::MAX),
            },
            ttft_ms: waited_ms,
            took_ms: waited_ms as u32,
            given_up: true,
        };
        self.note_first_token(generation, first);
    }

    fn note_first_token(&mut self, generation: &Generation, first: FirstToken) {
        if !is_judged(generation) {
            return;
        }
        self.answers += 1;
        self.first_tokens.push_back(first);
        if self.first_tokens.len() > limits::FIRST_TOKENS {
            self.first_tokens.pop_front();
        }
    }

    /// The system killed an engine with this model.
    fn blame(&mut self, model: ModelName, cause: String) {
        *self.kills_of.entry(model.clone()).or_default() += 1;
        self.kill_causes.insert(model, cause);
    }

    /// Which model an engine dies of nobody can tell for sure: the one that is being loaded grew last, else of
    /// those that work (where that counts), or at least are there, the heaviest is the likeliest.
    fn suspect(&self, by_work: bool) -> Option<&ModelName> {
        let report = self.report.as_ref();
        let model = |name: &ModelName| report.and_then(|report| report.models.get(name));
        let weight = |name: &&ModelName| {
            let model = model(name);
            let works = by_work && model.is_some_and(|model| model.running + model.waiting > 0);
            (works, model.map_or(0, |model| model.weight_bytes))
        };
        let began = |(_, (_, total)): &(&ModelName, &(u64, u64))| *total > 0;
        let loading = self.loading.iter().find(began).map(|(name, _)| name);
        let loaded = || self.loaded.iter().max_by_key(weight);
        // The first part of a load is not told.
        let first = || self.loading.keys().next();
        loading.or_else(loaded).or_else(first)
    }

    /// Why the target is not reached, if so.
    pub(crate) fn blocked(&self) -> Option<String> {
        let (model, why) = self.failed.first_key_value()?;
        Some(format!("{model}: {why}"))
    }
}

#[derive(Debug)]
pub(crate) enum Request {
    Start {
        generation: Box<Generation>,
        events: mpsc::Sender<GenerationEvent>,
        unwanted: Unwanted,
    },
    Target {
        generation: u64,
        models: BTreeMap<ModelName, PathBuf>,
    },
    /// The system killed the engine of an earlier process of this node.
    KilledBefore { model: ModelName, cause: KillCause },
    /// Why an engine was killed whose end was seen, and is counted: the model's so-manieth kill.
    KillExplained {
        model: ModelName,
        nth: u64,
        cause: KillCause,
    },
}

/// A handle on the supervisor; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Supervisor {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<EngineView>,
    machine: Arc<MachineNow>,
    prompts: Arc<Prompts>,
    /// The model that the system killed an earlier engine with, along with its node.
    pub(crate) killed_before: Option<ModelName>,
}

impl Supervisor {
    pub(crate) fn start(
        setup: Setup,
        (store, instructions): (Store, watch::Receiver<Instructions>),
        tasks: &mut JoinSet<()>,
        stopped: CancellationToken,
    ) -> Self {
        // As many as may wait in a queue; more are refused before they come here.
        let (requests, receiver) = mpsc::channel(limits::QUEUE.capacity);
        let (publish, view) = watch::channel(EngineView {
            kv_budget_bytes: setup.knobs.kv_budget_bytes,
            ..EngineView::default()
        });
        let (last_run, left) = LastRun::open(&setup.folder);
        let mut killed_before = None;
        match left {
            Left::Nothing => {}
            Left::Killed(model, cause) => {
                killed_before = Some(model.clone());
                // The first request, with room for it.
                let _ = requests.try_send(Request::KilledBefore { model, cause });
            }
            Left::Unknown(run) => {
                let (requests, stopped) = (requests.downgrade(), stopped.clone());
                let folder = setup.folder.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        () = last_run::find_kill(run, folder, requests) => {}
                        () = stopped.cancelled() => {}
                    }
                });
            }
        }
        let (machine, prompts) = (Arc::new(MachineNow::new()), Arc::new(Prompts::of(setup.node)));
        let shared = actor::Shared {
            publish,
            requests: requests.downgrade(),
            machine: machine.clone(),
            prompts: prompts.clone(),
        };
        let actor = actor::Actor::new(setup, last_run, (store, instructions), shared);
        tasks.spawn(actor.run(receiver, stopped));
        Self {
            requests,
            view,
            machine,
            prompts,
            killed_before,
        }
    }

    /// Starts a sequence. The first event, a grant or a refusal, comes at once.
    pub(crate) async fn generate(
        &self,
        generation: Generation,
    ) -> Result<(mpsc::Receiver<GenerationEvent>, Enough), Failure> {
        let (events, mut receiver) = mpsc::channel(limits::STREAM_EVENTS);
        let (enough, unwanted) = enough();
        let request = Request::Start {
            generation: Box::new(generation),
            events,
            unwanted,
        };
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Failure::Overloaded {
                detail: "this node's queue is full".into(),
                retry_after_s: 5,
            },
            mpsc::error::TrySendError::Closed(_) => Failure::NodeLost,
        })?;
        match receiver.recv().await {
            Some(GenerationEvent::Granted) => Ok((receiver, enough)),
            Some(GenerationEvent::Failed(failure)) => Err(failure),
            Some(_) | None => Err(Failure::NodeLost),
        }
    }

    /// Sets what should be loaded.
    pub(crate) async fn set_target(&self, generation: u64, models: BTreeMap<ModelName, PathBuf>) {
        // Fails only when the node is stopping.
        let _ = self.requests.send(Request::Target { generation, models }).await;
    }

    /// Follows what coordinators want this node to hold.
    pub(crate) async fn follow(&self, target: NodeTarget, store: &Store) {
        let models = target.models.into_keys();
        let models = models.map(|name| (name.clone(), store.path(&name))).collect();
        self.set_target(target.generation, models).await;
    }

    /// The machine was read.
    pub(crate) fn note_machine(&self, machine: &MachineReport, family: Family) {
        self.machine.note(machine, family);
        self.prompts.note_strain(Strain::of(machine));
    }

    /// An answer to a request that came to this node has ended, wherever it was made.
    pub(crate) fn note_answer(&self, generation: &Generation, accounting: &Accounting) {
        self.prompts.note_answer(generation, accounting);
    }

    /// Whether a prompt that came so long ago comes later here than promised because the machine is slowed down, and sooner
    /// elsewhere.
    pub(crate) fn is_late(&self, generation: &Generation, waited: Duration, slo: &Slo) -> bool {
        self.prompts.is_late((generation, waited), slo)
    }

    /// Comes back when a prompt that came then does: steps tell how fast they are. Cancel-safe.
    pub(crate) async fn comes_late(&self, generation: &Generation, asked: Instant, slo: &Slo) {
        let mut steps = self.prompts.steps();
        // The sender lives as long as this does.
        while steps.changed().await.is_ok() && !self.is_late(generation, asked.elapsed(), slo) {}
    }

    /// The engine as it is, and news of it.
    pub(crate) fn view(&self) -> watch::Receiver<EngineView> {
        self.view.clone()
    }

    /// Without a cluster: everything in the store is the target.
    pub(crate) fn follow_store(&self, store: Store, tasks: &mut JoinSet<()>, stopped: CancellationToken) {
        let supervisor = self.clone();
        tasks.spawn(async move {
            let mut models = store.models();
            let mut generation = 0;
            loop {
                generation += 1;
                let records = models.borrow_and_update().clone();
                let target = records
                    .iter()
                    .map(|record| (record.name.clone(), store.path(&record.name)))
                    .collect();
                supervisor.set_target(generation, target).await;
                tokio::select! {
                    changed = models.changed() => if changed.is_err() { return },
                    () = stopped.cancelled() => return,
                }
            }
        });
    }
}
