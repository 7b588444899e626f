//! Steps: decided by the scheduler, run on the device whole or in slices, answered.

use std::collections::BTreeMap;
use std::time::Duration;

use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::argmax_axis;
use mlx_rs::transforms::eval;
use pomona_common::engine::EngineEvent;
use pomona_common::generation::{Chunk, GenerationEvent, TokenLogprob};
use pomona_common::{Failure, FinishReason};
use pomona_sched::{Decision, KvOp, RowWork, SequenceId, Step};

use crate::pass::{Feed, Pass};
use crate::sampler;
use crate::worker::{Disconnected, IDLE, Worker};

/// A step on its way: the pass, and whose feeds it has.
#[derive(Debug)]
pub(crate) struct Running {
    ids: Vec<SequenceId>,
    pass: Pass,
    /// Time in earlier slices.
    spent: Duration,
    /// Of that, what the device took.
    computed: Duration,
}

/// What a slice led to.
enum Outcome {
    /// The step is done; the next token of every row that emits, and what the device took.
    Done(Vec<Emitted>, Duration),
    /// Layers are left.
    Interrupted(Running),
}

struct Emitted {
    token: u32,
    logprob: Option<TokenLogprob>,
}

impl Worker {
    /// Runs one step, or one slice of one, if there is any. Gives how long to sleep for commands.
    pub(super) fn work(&mut self) -> Result<Duration, Disconnected> {
        let now = self.now();
        self.expire(now)?;
        let admitted = self.scheduler.admit(now);
        if let Err(error) = self.apply_kv_ops().and_then(|_| self.use_prefixes(&admitted)) {
            return Err(lost_rows(&error));
        }
        self.drop_ended_passes();
        if std::mem::take(&mut self.frees) {
            self.trim_prefixes(0);
            let _ = mlx_rs::memory::clear_cache();
        }
        let (step, running) = match self.scheduler.compose(now) {
            Decision::Idle => {
                self.interactive_steps = 0;
                return Ok(IDLE);
            }
            Decision::WaitUntil(at, _) => {
                self.interactive_steps = 0;
                return Ok(at.saturating_sub(now).min(IDLE));
            }
            Decision::Begin(step) => {
                let running = self.begin(&step);
                (step, running)
            }
            Decision::Resume(step) => {
                let running = self.resume(&step);
                (step, running)
            }
        };
        self.interactive_steps = if step.is_interruptible() {
            0
        } else {
            self.interactive_steps.saturating_add(1)
        };
        let spent = running.as_ref().map_or(Duration::ZERO, |running| running.spent);
        let outcome = running.and_then(|running| self.slice(&step, running));
        self.progress += u64::from(outcome.is_ok());
        match outcome {
            Ok(Outcome::Done(emitted, computed)) => {
                self.steadiness.note(&step, computed, self.now());
                if let Some(prompt) = step.prompt(computed) {
                    self.send(EngineEvent::Prompt(prompt))?;
                }
                self.finish_step(&step, emitted, spent + (self.now() - now))?;
            }
            Ok(Outcome::Interrupted(mut running)) => {
                running.spent += self.now() - now;
                self.passes.insert(step.class, running);
                self.scheduler.interrupt(step);
            }
            Err(error) => self.fail_step(&step, &error)?,
        }
        Ok(Duration::ZERO)
    }

    fn expire(&mut self, now: Duration) -> Result<(), Disconnected> {
        for id in self.scheduler.expire(now) {
            let class = self
                .sequences
                .remove(&id)
                .map_or(pomona_common::Class::Batch, |one| one.generation.class);
            let failure = Failure::Overloaded {
                detail: "no slot became free in time".into(),
                retry_after_s: self.scheduler.slot_comes_in(class, now),
            };
            self.tell(id, GenerationEvent::Failed(failure))?;
        }
        Ok(())
    }

    /// Interrupted steps whose last row has ended are not resumed.
    pub(super) fn drop_ended_passes(&mut self) {
        let scheduler = &self.scheduler;
        self.passes.retain(|class, _| scheduler.is_interrupted(*class));
    }

    /// Whether there was anything to do.
    pub(super) fn apply_kv_ops(&mut self) -> Result<bool, Exception> {
        let ops = self.scheduler.kv_ops();
        let any = !ops.is_empty();
        if any {
            // What rows take, prefixes have no longer.
            self.trim_prefixes(self.scheduler.prefix_budget());
        }
        for op in ops {
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
        Ok(any)
    }

    fn begin(&self, step: &Step) -> Result<Running, Exception> {
        let lane = self.lanes.get(&step.model);
        let lane = lane.ok_or_else(|| Exception::custom("step of a model that is not loaded"))?;
        let feed = |row: &RowWork| Feed {
            capacity: row.place.capacity,
            row: row.place.row,
            start: row.start,
            tokens: self.sequences[&row.id].span(row.start, row.len),
            wants_logits: row.emits,
        };
        Ok(Running {
            ids: step.rows.iter().map(|row| row.id).collect(),
            pass: lane.llama.begin(step.rows.iter().map(feed).collect())?,
            spent: Duration::ZERO,
            computed: Duration::ZERO,
        })
    }

    fn resume(&mut self, step: &Step) -> Result<Running, Exception> {
        let running = self.passes.remove(&step.class);
        let mut running = running.ok_or_else(|| Exception::custom("an interrupted step has no pass"))?;
        let places: BTreeMap<SequenceId, (u32, u32)> = step
            .rows
            .iter()
            .map(|row| (row.id, (row.place.capacity, row.place.row)))
            .collect();
        let of_feeds: Vec<_> = running.ids.iter().map(|id| places.get(id).copied()).collect();
        running.pass.relocate(&of_feeds, &self.backend)?;
        running.ids.retain(|id| places.contains_key(id));
        Ok(running)
    }

    /// Runs the step on the device, to its end or for a slice.
    fn slice(&mut self, step: &Step, mut running: Running) -> Result<Outcome, Exception> {
        let began = self.now();
        let Some(lane) = self.lanes.get_mut(&step.model) else {
            return Err(Exception::custom("step of a model that is not loaded"));
        };
        let pass = &mut running.pass;
        let tokens = pass.tokens();
        let left = lane.llama.layers_left(pass);
        let layers = if step.is_interruptible() {
            let slice = Duration::from_millis(self.scheduler.knobs().slice_ms.into());
            self.pace.layers(&step.model, tokens, slice).min(left)
        } else {
            left
        };
        let is_first_slice = pass.is_fresh();
        lane.llama.advance(pass, &mut lane.kv, layers)?;
        // The head weighs as much as some layers: after more than one slice it is its own.
        let head_is_next = layers > 0 && !is_first_slice && pass.wants_logits();
        let rests = layers < left || (step.is_interruptible() && head_is_next);
        let logits = if rests { None } else { lane.llama.logits(pass)? };
        let greedy = logits
            .as_ref()
            .map(|logits| argmax_axis(logits, -1, false))
            .transpose()?;
        let slabs = pass.capacities();
        let outputs = slabs.iter().flat_map(|slab| lane.kv.arrays_of(*slab));
        eval(outputs.chain([pass.x()]).chain(&logits).chain(&greedy))?;
        running.computed += self.now() - began;
        if layers > 0 {
            // With the head, where the whole step fitted one slice: that errs on the safe side.
            self.pace
                .record(&step.model, tokens, layers, self.started.elapsed() - began);
        }
        if rests {
            return Ok(Outcome::Interrupted(running));
        }
        let emitted = match (logits, greedy) {
            (Some(logits), Some(greedy)) => self.sample(step, &logits, &greedy),
            _ => Vec::new(),
        };
        Ok(Outcome::Done(emitted, running.computed))
    }

    /// Chooses the next token of every row that emits, from `[emitting, vocab]` logits.
    fn sample(&self, step: &Step, logits: &Array, greedy: &Array) -> Vec<Emitted> {
        let greedy = greedy.as_slice::<u32>();
        let numbers = logits.as_slice::<f32>();
        let vocab = logits.dim(-1) as usize;
        let emitting = step.rows.iter().filter(|row| row.emits);
        let choose = |(i, row): (usize, &RowWork)| {
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
        };
        emitting.enumerate().map(choose).collect()
    }

    fn finish_step(
        &mut self,
        step: &Step,
        emitted: Vec<Emitted>,
        took: Duration,
    ) -> Result<(), Disconnected> {
        let now = self.now();
        self.scheduler.complete(step);
        self.count_step(step, took);
        let mut emitted = emitted.into_iter();
        for row in &step.rows {
            self.keep_prefix(row)?;
            if row.emits
                && let Some(emitted) = emitted.next()
            {
                self.emit(row, emitted, now)?;
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

    fn emit(&mut self, row: &RowWork, emitted: Emitted, now: Duration) -> Result<(), Disconnected> {
        let id = row.id;
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return Ok(());
        };
        let class = sequence.generation.class;
        let counts = !sequence.is_canary();
        if counts {
            self.stats.token(class, &sequence.generation.model);
        }
        if sequence.first_token.is_none() {
            sequence.first_token = Some(now);
            let ttft = (now - sequence.arrived).as_secs_f64() * 1e3;
            if counts {
                self.stats.class(class).ttft_ms.record(ttft);
            }
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
            self.keep_answer(id)?;
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
        if !sequence.is_canary() {
            self.stats.finished(sequence.generation.class, &accounting);
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
}

/// Rows would no longer be where the scheduler thinks: the node starts a new engine.
pub(super) fn lost_rows(error: &Exception) -> Disconnected {
    tracing::error!(error = %error.what(), "kv cache cannot be rearranged, engine ends");
    Disconnected
}
