//! The engine's one thread: commands in, steps, events out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::argmax_axis;
use mlx_rs::transforms::eval;
use pomona_common::engine::{EngineCommand, EngineEvent};
use pomona_common::failure::InvalidCode;
use pomona_common::generation::{Chunk, GenerationEvent};
use pomona_common::report::EngineBuild;
use pomona_common::{EngineKnobs, Failure, FinishReason, Generation, ModelName};
use pomona_sched::{Decision, KvOp, NewSequence, Refusal, RowWork, Scheduler, SequenceId, Step};
use pomona_store::ModelFolder;

use crate::backend::Backend;
use crate::kv::KvSlabs;
use crate::lane::{Lane, Sequence};
use crate::llama::Feed;
use crate::loader;
use crate::prefix::PrefixCache;
use crate::sampler;
use crate::stats::Stats;

/// Share of the KV budget that kept prefixes may take, as a divisor.
const PREFIX_SHARE: u64 = 8;
/// How long the thread sleeps when it has nothing to do before it looks at expiries again.
const IDLE: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub struct Worker {
    backend: Backend,
    build: EngineBuild,
    scheduler: Scheduler,
    lanes: BTreeMap<ModelName, Lane>,
    sequences: BTreeMap<SequenceId, Sequence>,
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
            sequences: BTreeMap::new(),
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
            let wait = match self.work() {
                Ok(wait) => wait,
                Err(Disconnected) => return,
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
            EngineCommand::Load { model, folder } => self.load(model, &folder),
            EngineCommand::Unload(model) => self.unload(model),
            EngineCommand::Start { sequence, generation } => self.start(sequence, *generation),
            EngineCommand::Cancel { sequence } => self.cancel(sequence),
            EngineCommand::Knobs(knobs) => {
                self.scheduler.set_knobs(with_prefix_share(knobs));
                Ok(())
            }
            EngineCommand::Report => {
                let weights = self
                    .lanes
                    .iter()
                    .map(|(model, lane)| (model.clone(), lane.weight_bytes))
                    .collect();
                let report = self.stats.report(&self.build, &mut self.scheduler, &weights);
                self.send(EngineEvent::Report(Box::new(report)))
            }
        }
    }

    fn load(&mut self, model: ModelName, folder: &str) -> Result<(), Disconnected> {
        if self.lanes.contains_key(&model) {
            return self.send(EngineEvent::Loaded { model });
        }
        let before = mlx_rs::memory::active_memory().unwrap_or(0);
        let events = self.events.clone();
        let mut progress = |done, total| {
            // Progress is a courtesy: dropped when the node is busy.
            let _ = events.try_send(EngineEvent::Loading {
                model: model.clone(),
                done,
                total,
            });
        };
        let loaded = ModelFolder::open(Path::new(folder))
            .map_err(anyhow::Error::from)
            .and_then(|folder| Ok(loader::load(&folder, &self.backend, &mut progress)?));
        match loaded {
            Ok(llama) => {
                let config = &llama.config;
                let kv_bytes = config.kv_numbers_per_token() * self.backend.kv_number_bytes();
                self.scheduler.add_model(model.clone(), kv_bytes, config.context);
                let prefix_bytes = self.scheduler.knobs().kv_budget_bytes / PREFIX_SHARE;
                let lane = Lane {
                    kv: KvSlabs::new(config, self.backend.dtype),
                    prefixes: PrefixCache::new((prefix_bytes / kv_bytes.max(1)) as usize),
                    weight_bytes: mlx_rs::memory::active_memory()
                        .unwrap_or(0)
                        .saturating_sub(before) as u64,
                    vocab: config.vocab_size,
                    llama,
                };
                self.lanes.insert(model.clone(), lane);
                self.send(EngineEvent::Loaded { model })
            }
            Err(error) => self.send(EngineEvent::LoadFailed {
                model,
                reason: format!("{error:#}"),
            }),
        }
    }

    fn unload(&mut self, model: ModelName) -> Result<(), Disconnected> {
        for id in self.scheduler.remove_model(&model) {
            self.sequences.remove(&id);
            let failure = Failure::ModelNotLoaded {
                model: model.to_string(),
                detail: "it was unloaded".into(),
            };
            self.tell(id, GenerationEvent::Failed(failure))?;
        }
        self.lanes.remove(&model);
        let _ = mlx_rs::memory::clear_cache();
        self.send(EngineEvent::Unloaded(model))
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
        let new = NewSequence {
            id,
            model: generation.model.clone(),
            class: generation.class,
            prompt: known as u32,
            max_new: generation
                .max_tokens
                .saturating_sub(generation.resume.len() as u32),
        };
        if new.max_new == 0 {
            return Err(invalid("max_tokens", "nothing is left to generate"));
        }
        self.scheduler
            .submit(new, self.started.elapsed())
            .map_err(|refusal| match refusal {
                Refusal::UnknownModel => Failure::EngineLost,
                Refusal::TooLarge { needed, budget } => Failure::TooLarge { needed, budget },
                Refusal::QueueFull(capacity) => Failure::Overloaded {
                    detail: format!("{capacity} requests are waiting on this node"),
                    retry_after_s: 5,
                },
            })
    }

    fn cancel(&mut self, id: SequenceId) -> Result<(), Disconnected> {
        self.scheduler.end(id);
        let Some(sequence) = self.sequences.remove(&id) else {
            return Ok(());
        };
        self.stats.class(sequence.generation.class).cancelled += 1;
        let accounting = sequence.accounting(self.now(), self.scheduler.knobs().version, &self.build.build);
        let reason = FinishReason::Cancelled;
        self.tell(id, GenerationEvent::Finished { reason, accounting })
    }

    /// Runs one step if there is one. Gives how long to sleep for commands.
    fn work(&mut self) -> Result<Duration, Disconnected> {
        let now = self.now();
        for id in self.scheduler.expire(now) {
            self.sequences.remove(&id);
            let failure = Failure::Overloaded {
                detail: "no slot became free in time".into(),
                retry_after_s: 10,
            };
            self.tell(id, GenerationEvent::Failed(failure))?;
        }
        let admitted = self.scheduler.admit(now);
        if let Err(error) = self.apply_kv_ops() {
            // Rows would no longer be where the scheduler thinks: the node starts a new engine.
            tracing::error!(error = %error.what(), "kv cache cannot be rearranged, engine ends");
            return Err(Disconnected);
        }
        let outcome = self.use_prefixes(&admitted);
        let decision = self.scheduler.compose(now, admitted);
        let step = match decision {
            Decision::Idle => return Ok(IDLE),
            Decision::WaitUntil(at, _) => return Ok(at.saturating_sub(now).min(IDLE)),
            Decision::Step(step) => step,
        };
        let outcome = outcome.and_then(|()| self.step(&step));
        match outcome {
            Ok(emitted) => self.finish_step(&step, emitted, now)?,
            Err(error) => self.fail_step(&step, &error)?,
        }
        Ok(Duration::ZERO)
    }

    fn apply_kv_ops(&mut self) -> Result<(), Exception> {
        for op in self.scheduler.kv_ops() {
            match op {
                KvOp::Resize {
                    model,
                    capacity,
                    rows,
                } => {
                    if let Some(lane) = self.lanes.get_mut(&model) {
                        lane.kv.resize(capacity, rows)?;
                    }
                }
                KvOp::Move {
                    model,
                    capacity,
                    from,
                    to,
                } => {
                    if let Some(lane) = self.lanes.get_mut(&model) {
                        lane.kv.copy_row(capacity, from, to, capacity)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives just admitted sequences what is kept of their prompts.
    fn use_prefixes(&mut self, admitted: &[SequenceId]) -> Result<(), Exception> {
        let now = self.now();
        for id in admitted {
            let (Some(sequence), Some(place)) = (self.sequences.get_mut(id), self.scheduler.place(*id))
            else {
                continue;
            };
            let Some(lane) = self.lanes.get_mut(&place.model) else {
                continue;
            };
            sequence.prefill_started.get_or_insert(now);
            let known = sequence.known();
            let salt = sequence.generation.cache_salt;
            let mut found = 0;
            if let Some((len, saved)) = lane.prefixes.find(salt, &known) {
                lane.kv.restore(place.capacity, place.row, saved, len)?;
                self.scheduler.skip_prefix(*id, len);
                found = len;
            }
            if !sequence.admitted_before {
                sequence.cached = found;
                sequence.keep = lane.prefixes.remember(salt, &sequence.generation.prompt, found);
                sequence.admitted_before = true;
            }
        }
        Ok(())
    }

    /// Runs the step on the device; gives the next token of every row that emits.
    fn step(&mut self, step: &Step) -> Result<Vec<Emitted>, Exception> {
        let Some(lane) = self.lanes.get_mut(&step.model) else {
            return Err(Exception::custom("step of a model that is not loaded"));
        };
        let feeds: Vec<Feed> = step
            .rows
            .iter()
            .filter_map(|row| {
                let sequence = self.sequences.get(&row.id)?;
                Some(Feed {
                    capacity: row.place.capacity,
                    row: row.place.row,
                    start: row.start,
                    tokens: sequence.span(row.start, row.len),
                    wants_logits: row.emits,
                })
            })
            .collect();
        assert_eq!(feeds.len(), step.rows.len(), "every scheduled sequence is known");
        let logits = lane.llama.step(&feeds, &mut lane.kv)?;
        let slabs: Vec<u32> = feeds.iter().map(|feed| feed.capacity).collect();
        let mut outputs: Vec<&Array> = slabs.iter().flat_map(|slab| lane.kv.arrays_of(*slab)).collect();
        let Some(logits) = logits else {
            eval(outputs)?;
            return Ok(Vec::new());
        };
        let greedy = argmax_axis(&logits, -1, false)?;
        outputs.extend([&logits, &greedy]);
        eval(outputs)?;
        let greedy = greedy.as_slice::<u32>();
        let numbers = logits.as_slice::<f32>();
        let vocab = lane.vocab as usize;
        let emitting = step.rows.iter().filter(|row| row.emits);
        Ok(emitting
            .enumerate()
            .map(|(i, row)| {
                let sequence = &self.sequences[&row.id];
                let sampling = &sequence.generation.sampling;
                if sampling.is_plain_greedy() {
                    return Emitted {
                        token: greedy[i],
                        logprob: None,
                    };
                }
                let mut row_logits = numbers[i * vocab..(i + 1) * vocab].to_vec();
                let (token, logprob) = sampler::choose(
                    &mut row_logits,
                    sampling,
                    &sequence.generation.prompt,
                    &sequence.answer,
                    sequence.answer.len() as u32,
                );
                Emitted { token, logprob }
            })
            .collect())
    }

    fn finish_step(
        &mut self,
        step: &Step,
        emitted: Vec<Emitted>,
        began: Duration,
    ) -> Result<(), Disconnected> {
        let now = self.now();
        let took = now - began;
        self.scheduler.complete(step);
        self.count_step(step, took);
        let mut emitted = emitted.into_iter();
        for row in &step.rows {
            self.keep_prefix(row);
            if row.emits
                && let Some(emitted) = emitted.next()
            {
                self.emit(row.id, emitted, now)?;
            }
        }
        Ok(())
    }

    fn count_step(&mut self, step: &Step, took: Duration) {
        let tokens: u32 = step.rows.iter().map(|row| row.len).sum();
        let mut rows = BTreeMap::new();
        for row in &step.rows {
            if let Some(sequence) = self.sequences.get_mut(&row.id) {
                let share = f64::from(row.len) / f64::from(tokens.max(1));
                sequence.step_share_ms += took.as_secs_f64() * 1e3 * share;
                *rows.entry(sequence.generation.class).or_default() += 1;
            }
        }
        let mut paused = BTreeMap::new();
        for id in &step.paused {
            if let Some(sequence) = self.sequences.get(id) {
                *paused.entry(sequence.generation.class).or_default() += 1;
            }
        }
        self.stats.step(took, &rows, paused);
    }

    /// Keeps the shared beginning of a prompt as soon as it is in the cache.
    fn keep_prefix(&mut self, row: &RowWork) {
        let Some(sequence) = self.sequences.get_mut(&row.id) else {
            return;
        };
        let Some(keep) = sequence.keep.filter(|keep| row.start + row.len >= *keep) else {
            return;
        };
        sequence.keep = None;
        let Some(lane) = self.lanes.get_mut(&row.place.model) else {
            return;
        };
        // Failing to keep a prefix costs time, never an answer.
        if let Ok(saved) = lane.kv.save(row.place.capacity, row.place.row, keep) {
            let tokens = &sequence.generation.prompt[..keep as usize];
            lane.prefixes.keep(sequence.generation.cache_salt, tokens, saved);
        }
    }

    fn emit(&mut self, id: SequenceId, emitted: Emitted, now: Duration) -> Result<(), Disconnected> {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return Ok(());
        };
        let class = sequence.generation.class;
        self.stats.token(class, &sequence.generation.model);
        if sequence.first_token.is_none() {
            sequence.first_token = Some(now);
            let ttft = (now - sequence.arrived).as_secs_f64() * 1e3;
            self.stats.class(class).ttft_ms.record(ttft);
        }
        let stops = sequence.generation.stop_tokens.contains(&emitted.token);
        let position = sequence.answer.len() as u32;
        sequence.answer.push(emitted.token);
        sequence.last_token = Some(now);
        let full = sequence.answer.len() as u32 >= sequence.generation.max_tokens
            || sequence.known().len() as u32 >= self.lanes[&sequence.generation.model].llama.config.context;
        if !stops {
            let chunk = Chunk {
                position,
                tokens: vec![emitted.token],
                logprobs: emitted.logprob.into_iter().collect(),
            };
            self.tell(id, GenerationEvent::Chunk(chunk))?;
        }
        if stops || full {
            let reason = if stops {
                FinishReason::Stop
            } else {
                FinishReason::Length
            };
            self.finish(id, reason, now)?;
        }
        Ok(())
    }

    fn finish(&mut self, id: SequenceId, reason: FinishReason, now: Duration) -> Result<(), Disconnected> {
        self.scheduler.end(id);
        let Some(sequence) = self.sequences.remove(&id) else {
            return Ok(());
        };
        let accounting = sequence.accounting(now, self.scheduler.knobs().version, &self.build.build);
        let class = self.stats.class(sequence.generation.class);
        class.finished += 1;
        if accounting.decode_ms > 0.0 {
            let tokens = f64::from(accounting.completion_tokens.saturating_sub(1));
            class.slot_tok_s.record(tokens * 1e3 / accounting.decode_ms);
        }
        self.tell(id, GenerationEvent::Finished { reason, accounting })
    }

    /// MLX refused the step: its sequences end, the others go on.
    fn fail_step(&mut self, step: &Step, error: &Exception) -> Result<(), Disconnected> {
        tracing::error!(model = %step.model, error = %error.what(), rows = step.rows.len(), "step failed");
        for row in &step.rows {
            self.scheduler.end(row.id);
            self.sequences.remove(&row.id);
            let failure = Failure::Internal {
                detail: "the engine could not compute this step".into(),
            };
            self.tell(row.id, GenerationEvent::Failed(failure))?;
        }
        Ok(())
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

struct Emitted {
    token: u32,
    logprob: Option<pomona_common::generation::TokenLogprob>,
}

/// The scheduler gets what prefixes leave of the KV budget.
fn with_prefix_share(mut knobs: EngineKnobs) -> EngineKnobs {
    knobs.kv_budget_bytes -= knobs.kv_budget_bytes / PREFIX_SHARE;
    knobs
}
