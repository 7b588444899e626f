//! The task that owns the engine.

mod ended;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pomona_api::Unwanted;
use pomona_common::engine::{EngineCommand, EngineEvent};
use pomona_common::generation::GenerationEvent;
use pomona_common::plan::NodeTarget;
use pomona_common::{Class, EngineKnobs, Failure, Generation, ModelName, NodeId, SloSet, limits};
use pomona_decide::{Pacer, Watchdog};
use pomona_probe::KillTally;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::adopted::GpuLease;
use crate::instructions::Instructions;
use crate::store::Store;
use crate::supervisor::last_run::LastRun;
use crate::supervisor::machine_now::MachineNow;
use crate::supervisor::process::EngineProcess;
use crate::supervisor::prompts::Prompts;
use crate::supervisor::sequences::Sequences;
use crate::supervisor::served::Served;
use crate::supervisor::{EngineProgram, EngineView, Request, Setup};
use ended::RESTART_FIRST;

/// How often the engine is asked for its report.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// What it has in common with its handles.
pub(super) struct Shared {
    pub(super) publish: watch::Sender<EngineView>,
    pub(super) requests: mpsc::WeakSender<Request>,
    pub(super) machine: Arc<MachineNow>,
    pub(super) prompts: Arc<Prompts>,
}

pub(super) struct Actor {
    node: NodeId,
    program: EngineProgram,
    /// The node's folder.
    folder: PathBuf,
    /// The server that the GPU is lent to.
    lent: Option<GpuLease>,
    /// The engine has been told to end, because it is another one's turn.
    closing: bool,
    pub(super) knobs: EngineKnobs,
    pub(super) slos: SloSet,
    store: Store,
    pub(super) instructions: watch::Receiver<Instructions>,
    publish: watch::Sender<EngineView>,
    pub(super) view: EngineView,
    pub(super) engine: Option<EngineProcess>,
    born: Instant,
    restart_at: Instant,
    restart_wait: Duration,
    target: BTreeMap<ModelName, PathBuf>,
    pub(super) sequences: Sequences,
    pub(super) watchdog: Watchdog,
    /// The engine was killed because it was wedged.
    pub(super) wedged: bool,
    /// What the system had counted when the engine began.
    tally: KillTally,
    /// The process that answers in its place, and reports of earlier ones that are waited for.
    served: Option<Served>,
    reports: JoinSet<()>,
    requests: mpsc::WeakSender<Request>,
    last_run: LastRun,
    /// What the last reading of the machine said.
    pub(super) machine: Arc<MachineNow>,
    prompts: Arc<Prompts>,
    pub(super) pacer: Pacer,
    /// The pace that the engine was told, percent.
    pub(super) pace: u32,
    /// Whether it was told that the system is short of memory.
    pub(super) is_short: bool,
}

impl Actor {
    pub(super) fn new(
        setup: Setup,
        last_run: LastRun,
        (store, instructions): (Store, watch::Receiver<Instructions>),
        shared: Shared,
    ) -> Self {
        let Setup {
            node,
            program,
            knobs,
            slos,
            folder,
        } = setup;
        Self {
            node,
            view: EngineView {
                kv_budget_bytes: knobs.kv_budget_bytes,
                ..EngineView::default()
            },
            program,
            // What is not readable is lent, to be safe, until it is.
            lent: GpuLease::read(&folder).unwrap_or_else(|error| {
                tracing::error!(%error, "who has the GPU is not readable");
                Some(GpuLease::default())
            }),
            closing: false,
            folder,
            knobs,
            slos,
            store,
            instructions,
            publish: shared.publish,
            engine: None,
            born: Instant::now(),
            restart_at: Instant::now(),
            restart_wait: RESTART_FIRST,
            target: BTreeMap::new(),
            sequences: Sequences::default(),
            watchdog: Watchdog::default(),
            wedged: false,
            tally: KillTally::default(),
            served: None,
            reports: JoinSet::new(),
            requests: shared.requests,
            last_run,
            machine: shared.machine,
            prompts: shared.prompts,
            pacer: Pacer::default(),
            pace: 100,
            is_short: false,
        }
    }

    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>, stopped: CancellationToken) {
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let may_start =
                self.engine.is_none() && self.program_now() != EngineProgram::None && !self.target.is_empty();
            tokio::select! {
                () = stopped.cancelled() => break,
                request = requests.recv() => match request {
                    Some(request) => self.on_request(request),
                    None => break,
                },
                event = next_event(&mut self.engine) => match event {
                    Some(event) => self.on_event(event),
                    None => self.on_engine_end().await,
                },
                sequence = self.sequences.next_unwanted() => self.cancel(sequence),
                Ok(()) = self.instructions.changed() => self.instruct(),
                () = tokio::time::sleep_until(self.restart_at), if may_start => self.start_engine(),
                _ = ticks.tick() => {
                    self.on_tick();
                    if self.wedged {
                        // Its pipe may stay open for as long as the kernel holds it.
                        self.on_engine_end().await;
                    }
                }
            }
        }
        // Closing the pipe ends the engine; kill_on_drop makes sure of it.
        if let Some(engine) = self.engine.take() {
            drop(engine);
        }
        self.last_run.forget();
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Start {
                generation,
                events,
                unwanted,
            } => self.start(*generation, events, unwanted),
            Request::Target { generation, models } => {
                if NodeTarget::replaces(generation, self.view.generation) {
                    self.view.generation = generation;
                    self.view.wanted = models.keys().cloned().collect();
                    self.target = models;
                    self.view.failed.clear();
                    self.give_up_parked();
                    self.reconcile();
                    self.publish();
                }
            }
            Request::KillExplained { model, nth, cause } => {
                tracing::warn!(%model, %cause, "why the engine was killed");
                // It may have been killed again since.
                if self.view.kills_of.get(&model) == Some(&nth) {
                    self.view.kill_causes.insert(model, cause.to_string());
                    self.publish();
                }
            }
            Request::KilledBefore { model, cause } => {
                tracing::warn!(%model, %cause, "an earlier engine was killed");
                self.view.kills += 1;
                self.view.blame(model, cause.to_string());
                self.publish();
            }
        }
    }

    /// Requests that wait for a model which could not be loaded go elsewhere.
    fn give_back_parked(&mut self, model: &ModelName, reason: &str) {
        for sequence in self.sequences.parked(|of| of == model) {
            let failure = Failure::ModelNotLoaded {
                model: model.to_string(),
                detail: reason.to_owned(),
            };
            self.sequences.fail(sequence, failure);
        }
    }

    /// Requests that wait for a model which is not wanted here any more go elsewhere.
    fn give_up_parked(&mut self) {
        let target = &self.target;
        for sequence in self.sequences.parked(|model| !target.contains_key(model)) {
            let Some(active) = self.sequences.remove(sequence) else {
                continue;
            };
            let failure = Failure::ModelNotLoaded {
                model: active.generation.model.to_string(),
                detail: "it is not among this node's models any more".into(),
            };
            let _ = active.events.try_send(GenerationEvent::Failed(failure));
        }
    }

    fn start(&mut self, generation: Generation, events: mpsc::Sender<GenerationEvent>, unwanted: Unwanted) {
        let model = &generation.model;
        let why_not = match self.view.failed.get(model) {
            _ if !self.target.contains_key(model) => Some("it is not among this node's models".to_owned()),
            why => why.cloned(),
        };
        let refused = match why_not {
            None if let Some(spared) = self.spared(&generation) => spared,
            Some(detail) => Failure::ModelNotLoaded {
                model: model.to_string(),
                detail,
            },
            None => match self.sequences.add(generation, &events, unwanted) {
                Some(sequence) => {
                    self.served.iter_mut().for_each(Served::works);
                    return self.submit(sequence);
                }
                None => Failure::Overloaded {
                    detail: "the engine is starting and this node's queue is full".into(),
                    retry_after_s: 5,
                },
            },
        };
        let _ = events.try_send(GenerationEvent::Failed(refused));
    }

    /// Gives a sequence to the engine, or parks it until its model is loaded.
    fn submit(&mut self, sequence: u64) {
        let Some(active) = self.sequences.get_mut(sequence) else {
            return;
        };
        let ready = self.view.loaded.contains(&active.generation.model);
        if let Some(engine) = self.engine.as_ref().filter(|_| ready)
            && engine.send(EngineCommand::start(sequence, &active.generation))
        {
            return active.is_submitted();
        }
        active.grant();
    }

    /// Nobody wants more of it. What had begun is still there for its last event, by which its time counts.
    fn cancel(&mut self, sequence: u64) {
        let Some(active) = self.sequences.get_mut(sequence) else {
            return;
        };
        if std::mem::replace(&mut active.unwanted, true) {
            return;
        }
        if let Some(waited) = active.waited_in_vain() {
            self.view.note_given_up(&active.generation, waited);
        }
        let answered = active.answered;
        let engine = self.engine.as_ref();
        let is_told = engine.is_some_and(|engine| engine.send(EngineCommand::Cancel { sequence }));
        if !is_told || !answered {
            self.sequences.remove(sequence);
        }
    }

    /// One program computes on the GPU, never two.
    fn program_now(&self) -> EngineProgram {
        match self.lent {
            Some(_) => EngineProgram::Adopted,
            None => self.program.clone(),
        }
    }

    /// Looks who has the GPU; whoever does not any more ends.
    fn look_at_lease(&mut self) {
        let lent = match GpuLease::read(&self.folder) {
            Ok(lent) if lent != self.lent => lent,
            // What is not readable changes nothing.
            Ok(_) | Err(_) => return,
        };
        tracing::info!(
            to = lent.as_ref().map(|lease| lease.server.as_str()),
            "the GPU is lent, or back"
        );
        self.lent = lent;
        self.view.failed.clear();
        if let Some(engine) = &mut self.engine {
            engine.close();
            self.closing = true;
        }
    }

    fn start_engine(&mut self) {
        self.born = Instant::now();
        match EngineProcess::spawn(&self.program_now()) {
            Ok(engine) => {
                tracing::info!(pid = engine.pid(), "engine started");
                (self.pace, self.is_short) = (100, false);
                self.view.pid = engine.pid();
                self.tally = engine.pid().map(KillTally::of).unwrap_or_default();
                self.engine = Some(engine);
                self.instruct();
                self.spare_memory();
                self.watchdog = Watchdog::default();
                self.view.loading.clear();
                self.reconcile();
            }
            Err(error) => {
                tracing::error!(%error, "engine cannot be started");
                self.wait_before_restart();
            }
        }
        self.publish();
    }

    /// Moves what is loaded towards the target.
    fn reconcile(&mut self) {
        let Some(engine) = &self.engine else {
            return;
        };
        let stored = self.store.models();
        let stored = stored.borrow();
        // What is not here yet comes from other nodes; the next tick looks again.
        let is_here = |model: &ModelName| stored.iter().any(|record| record.name == *model);
        for (model, folder) in self.target.iter().filter(|(model, _)| is_here(model)) {
            let settled = self.view.loaded.contains(model)
                || self.view.loading.contains_key(model)
                || self.view.failed.contains_key(model);
            if !settled {
                let command = EngineCommand::Load {
                    model: model.clone(),
                    folder: folder.to_string_lossy().into_owned(),
                };
                if engine.send(command) {
                    self.view.loading.insert(model.clone(), (0, 0));
                }
            }
        }
        let present = self.view.loaded.iter().chain(self.view.loading.keys());
        for model in present.filter(|model| !self.target.contains_key(*model)) {
            engine.send(EngineCommand::Unload(model.clone()));
        }
        // Where nothing is wanted any more nothing is written either: the folder may be on its way out.
        let suspect = self.view.suspect(false).filter(|_| !self.target.is_empty());
        self.last_run.note(&self.tally, suspect);
    }

    fn on_event(&mut self, event: EngineEvent) {
        self.watchdog.heard();
        match event {
            EngineEvent::Progress(done) => self.watchdog.progress(done),
            EngineEvent::Ready(build) => {
                tracing::info!(
                    backend = build.backend,
                    precision = build.precision,
                    threads = build.threads,
                    blas = build.blas,
                    mlx = build.mlx_version,
                    build = build.build,
                    "engine is ready"
                );
            }
            EngineEvent::Loading { model, done, total } => {
                if let Some(progress) = self.view.loading.get_mut(&model) {
                    *progress = (done, total);
                    self.publish();
                }
            }
            EngineEvent::Loaded { model } => {
                self.prompts.forget(&model);
                tracing::info!(%model, "model loaded");
                self.view.loading.remove(&model);
                self.view.failed.remove(&model);
                self.view.loaded.insert(model.clone());
                self.resume_parked(&model);
                // The target may have changed while it loaded.
                self.reconcile();
                self.publish();
            }
            EngineEvent::LoadFailed { model, reason } => {
                tracing::error!(%model, reason, "model not loaded");
                self.view.loading.remove(&model);
                self.give_back_parked(&model, &reason);
                self.view.failed.insert(model, reason);
                self.publish();
            }
            EngineEvent::Unloaded(model) => {
                self.view.loaded.remove(&model);
                self.view.loading.remove(&model);
                self.reconcile();
                self.publish();
            }
            EngineEvent::Steadiness(percent) => self.view.speeds.steps_percent = percent,
            EngineEvent::Prompt(step) => self.prompts.note_step(&step),
            EngineEvent::Serves(pid) => self.on_serves(pid),
            EngineEvent::Sequence { sequence, event } => self.on_sequence_event(sequence, event),
            EngineEvent::Report(report) => {
                self.view.report = Some(Arc::new(*report));
                self.publish();
            }
        }
    }

    fn on_sequence_event(&mut self, sequence: u64, mut event: GenerationEvent) {
        if self.watchdog.is_canary(sequence) {
            return self.on_canary(&event);
        }
        let Some(active) = self.sequences.get_mut(sequence) else {
            return;
        };
        let last = match &mut event {
            // An engine knows of no watts.
            GenerationEvent::GrantedBy(_)
            | GenerationEvent::GrantedByCloud(_)
            | GenerationEvent::Energy(_) => return,
            GenerationEvent::Granted if active.granted => return,
            GenerationEvent::Granted => {
                active.granted = true;
                false
            }
            GenerationEvent::Chunk(_) | GenerationEvent::Text(_) => {
                active.answered = true;
                false
            }
            GenerationEvent::Finished { accounting, .. } => {
                accounting.node = Some(self.node);
                let agreed = &self.instructions.borrow().agreed;
                let slo = SloSet::in_force(agreed.slos.as_ref(), Class::Interactive);
                self.view.note_answer(&active.generation, accounting, &slo);
                // Who has no room for both is told of the end.
                let energy = self.machine.energy(accounting.step_share_ms);
                if let Some(energy) = energy.filter(|_| active.events.capacity() > 1) {
                    let _ = active.events.try_send(GenerationEvent::Energy(energy));
                }
                true
            }
            GenerationEvent::Failed(_) => true,
        };
        let sent = active.events.try_send(event);
        if last {
            self.sequences.remove(sequence);
        } else if sent.is_err() {
            // The client is gone, or so slow that every buffer is full.
            tracing::debug!(sequence, "stream given up");
            self.cancel(sequence);
            if let Some(active) = self.sequences.get_mut(sequence) {
                active.tells_nobody();
            }
        }
    }

    fn resume_parked(&mut self, model: &ModelName) {
        for sequence in self.sequences.parked(|of| of == model) {
            self.submit(sequence);
        }
    }

    fn on_tick(&mut self) {
        self.look_at_lease();
        self.keep_pace();
        self.spare_memory();
        if let Some(engine) = &self.engine {
            engine.send(EngineCommand::Report);
            // What was killed in its group and was not this engine.
            self.tally = self.tally.again();
            self.look_at_served();
            self.watch();
        }
        for (sequence, model) in self.sequences.parked_longer_than(limits::QUEUE.wait) {
            let failure = Failure::ModelNotLoaded {
                model: model.to_string(),
                detail: "the engine did not come back in time".to_owned(),
            };
            self.sequences.fail(sequence, failure);
        }
        // A folder that was repaired is tried again when the store tells of it.
        let store = self.store.models();
        let known = store.borrow();
        self.view
            .failed
            .retain(|model, _| known.iter().any(|record| record.name == *model));
        drop(known);
        self.reconcile();
    }

    fn publish(&self) {
        self.publish.send_replace(self.view.clone());
    }
}

/// The next event of a running engine, `None` at its end; never completes without an engine.
async fn next_event(engine: &mut Option<EngineProcess>) -> Option<EngineEvent> {
    match engine {
        Some(engine) => engine.events.recv().await,
        None => std::future::pending().await,
    }
}
