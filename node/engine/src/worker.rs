//! The engine's one thread: commands in, steps, events out.

mod loads;
mod prefixes;
mod steps;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use pomona_common::engine::{EngineCommand, EngineEvent};
use pomona_common::failure::InvalidCode;
use pomona_common::generation::GenerationEvent;
use pomona_common::report::EngineBuild;
use pomona_common::{Class, EngineKnobs, Failure, FinishReason, Generation, ModelName};
use pomona_sched::{
    Kin, NewSequence, Prefixes, Refusal, Scheduler, SequenceId, Steadiness, with_prefix_share,
};

use crate::backend::Backend;
use crate::kv::SavedKv;
use crate::lane::{Lane, Sequence};
use crate::pace::Pace;
use crate::stats::Stats;
use crate::worker::loads::Loads;
use crate::worker::steps::Running;

/// How long the thread sleeps when it has nothing to do before it looks at expiries again.
const IDLE: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub struct Worker {
    backend: Backend,
    build: EngineBuild,
    scheduler: Scheduler,
    lanes: BTreeMap<ModelName, Lane>,
    prefixes: Prefixes<SavedKv>,
    sequences: BTreeMap<SequenceId, Sequence>,
    loads: Loads,
    /// What MLX keeps of memory that nobody uses is to go back to the system.
    frees: bool,
    /// Slices of steps and parts of loads that were done.
    progress: u64,
    /// Interactive steps since the last part of a load.
    interactive_steps: u32,
    /// Passes of interrupted steps.
    passes: BTreeMap<Class, Running>,
    pace: Pace,
    steadiness: Steadiness,
    stats: Stats,
    started: Instant,
    events: SyncSender<EngineEvent>,
}

/// The receiver of events is gone: the node has ended, and so does the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disconnected;

impl Worker {
    /// A worker without models; events go to `events`, which blocks when the node is slow.
    pub fn new(backend: Backend, events: SyncSender<EngineEvent>) -> Self {
        Self {
            build: backend.build(),
            scheduler: Scheduler::new(with_prefix_share(EngineKnobs::default())),
            lanes: BTreeMap::new(),
            prefixes: Prefixes::default(),
            sequences: BTreeMap::new(),
            loads: Loads::default(),
            frees: false,
            progress: 0,
            interactive_steps: 0,
            passes: BTreeMap::new(),
            pace: Pace::default(),
            steadiness: Steadiness::default(),
            stats: Stats::default(),
            started: Instant::now(),
            backend,
            events,
        }
    }

    /// Works until the commands end.
    pub fn run(mut self, commands: &Receiver<EngineCommand>) {
        let ready = EngineEvent::Ready(self.build.clone());
        if self.send(ready).is_err() {
            return;
        }
        loop {
            let worked = self.load_part().and_then(|()| self.work());
            let Ok(wait) = worked.map(|wait| {
                if self.loads.are_done() {
                    wait
                } else {
                    Duration::ZERO
                }
            }) else {
                return;
            };
            if self.take_commands(commands, wait).is_err() {
                return;
            }
        }
    }

    /// Takes all waiting commands, after sleeping for at most `wait` for the first.
    fn take_commands(
        &mut self,
        commands: &Receiver<EngineCommand>,
        wait: Duration,
    ) -> Result<(), Disconnected> {
        if !wait.is_zero() {
            match commands.recv_timeout(wait) {
                Ok(command) => self.obey(command)?,
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Disconnected),
            }
        }
        loop {
            match commands.try_recv() {
                Ok(command) => self.obey(command)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Disconnected),
            }
        }
    }

    fn obey(&mut self, command: EngineCommand) -> Result<(), Disconnected> {
        match command {
            EngineCommand::Load { model, folder } => self.load(model, folder),
            EngineCommand::Unload(model) => self.unload(model),
            EngineCommand::Start { sequence, generation } => self.start(sequence, *generation),
            EngineCommand::StartText { sequence, .. } => {
                let detail = "this engine takes token ids".to_owned();
                self.tell(sequence, GenerationEvent::Failed(Failure::Internal { detail }))
            }
            EngineCommand::Cancel { sequence } => self.cancel(sequence),
            EngineCommand::Knobs(knobs) => {
                self.frees |= knobs.batch.max_slots == 0;
                self.scheduler.set_knobs(with_prefix_share(knobs));
                Ok(())
            }
            EngineCommand::Pace(percent) => {
                self.scheduler.set_pace(percent);
                Ok(())
            }
            EngineCommand::Short(is_short) => {
                self.scheduler.set_short(is_short);
                Ok(())
            }
            EngineCommand::Slos(slos) => {
                self.scheduler.set_slos(&slos);
                Ok(())
            }
            EngineCommand::Report => {
                self.send(EngineEvent::Progress(self.progress))?;
                let weights = self
                    .lanes
                    .iter()
                    .map(|(model, lane)| (model.clone(), lane.weight_bytes))
                    .collect();
                let canary = self.sequences.values().find(|sequence| sequence.is_canary());
                let canary = canary.map(|canary| (canary.generation.class, &canary.generation.model));
                let report = self
                    .stats
                    .report(&self.build, &mut self.scheduler, &weights, canary);
                self.send(EngineEvent::Report(Box::new(report)))?;
                let percent = self.steadiness.percent(self.now());
                self.send(EngineEvent::Steadiness(percent))
            }
        }
    }

    fn start(&mut self, id: SequenceId, generation: Generation) -> Result<(), Disconnected> {
        match self.accept(id, &generation) {
            Ok(()) => {
                self.sequences.insert(id, Sequence::new(generation, self.now()));
                self.tell(id, GenerationEvent::Granted)
            }
            Err(failure) => self.tell(id, GenerationEvent::Failed(failure)),
        }
    }

    fn accept(&mut self, id: SequenceId, generation: &Generation) -> Result<(), Failure> {
        let Some(lane) = self.lanes.get(&generation.model) else {
            return Err(Failure::ModelNotLoaded {
                model: generation.model.to_string(),
                detail: "this engine does not hold it".into(),
            });
        };
        let known = generation.prompt.len() + generation.resume.len();
        let invalid =
            |parameter, message: &str| Failure::invalid(parameter, InvalidCode::InvalidValue, message);
        if generation.prompt.is_empty() {
            return Err(invalid("prompt", "the prompt has no tokens"));
        }
        if generation
            .prompt
            .iter()
            .chain(&generation.resume)
            .any(|token| *token >= lane.vocab)
        {
            return Err(invalid("prompt", "the prompt has a token beyond the vocabulary"));
        }
        if known as u64 >= u64::from(lane.llama.config.context) {
            return Err(Failure::invalid(
                "prompt",
                InvalidCode::ContextLengthExceeded,
                format!(
                    "the prompt has {known} tokens, the context {}",
                    lane.llama.config.context
                ),
            ));
        }
        let now = self.started.elapsed();
        let new = NewSequence {
            id,
            model: generation.model.clone(),
            class: generation.class,
            prompt: known as u32,
            max_new: generation
                .max_tokens
                .saturating_sub(generation.resume.len() as u32),
            begun: !generation.resume.is_empty(),
            kept: self.prefixes.kept(Kin::of(generation), &generation.prompt),
        };
        if new.max_new == 0 {
            return Err(invalid("max_tokens", "nothing is left to generate"));
        }
        self.scheduler.submit(new, now).map_err(|refusal| match refusal {
            Refusal::UnknownModel => Failure::EngineLost,
            Refusal::TooLarge { needed, budget } => Failure::TooLarge { needed, budget },
            Refusal::QueueFull {
                capacity,
                retry_after_s,
            } => Failure::Overloaded {
                detail: format!("{capacity} requests are waiting on this node"),
                retry_after_s,
            },
        })?;
        self.prefixes
            .await_use(Kin::of(generation), &generation.prompt, now);
        Ok(())
    }

    fn cancel(&mut self, id: SequenceId) -> Result<(), Disconnected> {
        self.keep_answer(id)?;
        self.scheduler.end(id);
        let Some(sequence) = self.sequences.remove(&id) else {
            return Ok(());
        };
        if !sequence.is_canary() {
            self.stats.class(sequence.generation.class).cancelled += 1;
        }
        let accounting = sequence.accounting(self.now(), self.scheduler.knobs().version, &self.build.build);
        let reason = FinishReason::Cancelled;
        self.tell(id, GenerationEvent::Finished { reason, accounting })
    }

    fn tell(&self, sequence: SequenceId, event: GenerationEvent) -> Result<(), Disconnected> {
        self.send(EngineEvent::Sequence { sequence, event })
    }

    fn send(&self, event: EngineEvent) -> Result<(), Disconnected> {
        self.events.send(event).map_err(|_| Disconnected)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}
