//! A node's engine: the product's scheduler, with steps that take the time and the energy that the node's Mac
//! needs for them, and tokens that are a function of prompt and position.
//!
//! It lives in its own time, which stands still while its machine does, and works lazily: between two
//! moments at which somebody else has a say, it does all steps at once.

mod copies;
mod making;
mod prefixes;
mod reported;
mod wedged;

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::engine::PromptStep;
use pomona_common::generation::GenerationEvent;
use pomona_common::signs::FirstToken;
use pomona_common::{
    Accounting, Class, EngineKnobs, Failure, FinishReason, Generation, ModelName, ModelRecord, limits,
};
use pomona_sched::{
    Decision, Kin, NewSequence, Prefixes, Refusal, Scheduler, SequenceId, Steadiness, Step, with_prefix_share,
};
use pomona_tests::Random;

use crate::mac::{Mac, Work};
use crate::tokens;
use copies::Copies;
use making::Making;
pub use wedged::Wedged;

/// Tokens in the middle of answers are told at least so often, in microseconds: each step would be an event.
const TELL: u64 = 100_000;
/// How often an engine with nothing to do looks at who waited too long.
const IDLE: u64 = 1_000_000;

/// Who asked an engine for an answer: one of the coordinators, or the node's own endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asker {
    Coordinator(u64),
    Here,
}

/// An event for whoever asked for this answer.
pub type Out = ((Asker, u64), GenerationEvent);

/// What somebody asked for.
type Ask = ((Asker, u64), Generation);

struct Running {
    step: Step,
    began: u64,
    ends: u64,
    watts: f64,
    /// What all of it takes, in microseconds.
    whole: u64,
    /// What is left of it, in microseconds, when it stops for more urgent work.
    left: Option<u64>,
}

/// See the module's documentation. Times are in microseconds.
pub struct Engine {
    scheduler: Scheduler,
    prefixes: Prefixes<()>,
    copies: Copies,
    sequences: BTreeMap<SequenceId, Making>,
    ids: BTreeMap<(Asker, u64), SequenceId>,
    models: BTreeMap<ModelName, ModelRecord>,
    last_id: SequenceId,
    now: u64,
    due: u64,
    running: Option<Running>,
    /// What is left of interrupted steps, and what all of it takes.
    parked: BTreeMap<Class, (u64, u64)>,
    steadiness: Steadiness,
    /// Energy taken since it was asked for last, in joules.
    joules: f64,
    /// Knobs that are obeyed when the slice is over that runs.
    next_knobs: Option<EngineKnobs>,
    /// Seconds in which batch rows ran, since it was asked for last.
    batch_s: f64,
    /// Tokens made, by class.
    pub tokens: [u64; 3],
    /// Prompt tokens worked on, by class.
    pub prefilled: [u64; 3],
    /// Prompt tokens taken from what was kept, by class.
    pub cached: [u64; 3],
    answers: u64,
    first_tokens: Vec<FirstToken>,
    prompts: Vec<PromptStep>,
    noise: Random,
    /// Steps that were done.
    pub steps: u64,
    /// It does nothing any more and answers nobody; what it was asked for meanwhile.
    wedged: Option<(Wedged, Vec<Ask>)>,
}

fn not_begun(generation: &Generation) -> GenerationEvent {
    GenerationEvent::Failed(Failure::ModelNotLoaded {
        model: generation.model.to_string(),
        detail: "the engine is started anew".into(),
    })
}

impl Engine {
    pub fn new(knobs: EngineKnobs, now: u64) -> Self {
        Self {
            scheduler: Scheduler::new(with_prefix_share(knobs)),
            prefixes: Prefixes::default(),
            copies: Copies::default(),
            sequences: BTreeMap::new(),
            ids: BTreeMap::new(),
            models: BTreeMap::new(),
            last_id: 0,
            now,
            due: u64::MAX,
            running: None,
            parked: BTreeMap::new(),
            steadiness: Steadiness::default(),
            joules: 0.0,
            next_knobs: None,
            batch_s: 0.0,
            tokens: [0; 3],
            prefilled: [0; 3],
            cached: [0; 3],
            answers: 0,
            first_tokens: Vec::new(),
            prompts: Vec::new(),
            noise: Random::new(now),
            steps: 0,
            wedged: None,
        }
    }

    /// When it wants to be called again.
    pub fn due(&self) -> u64 {
        if self.is_wedged() { u64::MAX } else { self.due }
    }

    pub fn add_model(&mut self, record: &ModelRecord) {
        self.models.insert(record.name.clone(), record.clone());
        let kv = record.kv_bytes_per_token;
        self.scheduler.add_model(record.name.clone(), kv, record.context);
        self.prefixes.add_model(record.name.clone(), kv);
    }

    pub fn has(&self, model: &ModelName) -> bool {
        self.models.contains_key(model)
    }

    pub fn models(&self) -> impl Iterator<Item = &ModelRecord> {
        self.models.values()
    }

    /// Unloads a model; what it made for others ends.
    pub fn remove_model(&mut self, model: &ModelName) -> Vec<Out> {
        if self.is_wedged() || self.models.remove(model).is_none() {
            return Vec::new();
        }
        let ended = self.scheduler.remove_model(model);
        self.prefixes.remove_model(model);
        self.copies.forget(model);
        self.steadiness.forget(model);
        let failed = |making: Making| {
            let failure = Failure::ModelNotLoaded {
                model: model.to_string(),
                detail: "unloaded".into(),
            };
            (making.asked, GenerationEvent::Failed(failure))
        };
        let ended: Vec<Out> = ended
            .into_iter()
            .filter_map(|id| self.forget(id))
            .map(failed)
            .collect();
        self.look_again();
        ended
    }

    /// Knobs are obeyed between two slices.
    pub fn set_knobs(&mut self, knobs: EngineKnobs) {
        if self.is_wedged() {
            return;
        }
        if self.running.is_some() {
            self.stop_at_slice();
            self.next_knobs = Some(knobs);
            return;
        }
        if knobs.batch.max_slots == 0 {
            self.trim_prefixes(0);
        }
        let knobs = with_prefix_share(knobs);
        if *self.scheduler.knobs() != knobs {
            self.scheduler.set_knobs(knobs);
            self.look_again();
        }
    }

    pub fn set_pace(&mut self, percent: u32) {
        if self.is_wedged() {
            return;
        }
        self.scheduler.set_pace(percent);
        // A rest may be over by it.
        if !self.sequences.is_empty() {
            self.look_again();
        }
    }

    pub fn set_short(&mut self, is_short: bool) {
        self.scheduler.set_short(is_short);
        if !self.sequences.is_empty() && !self.is_wedged() {
            self.look_again();
        }
    }

    /// What interrupted steps have left is there as long as the scheduler has them.
    fn look_again(&mut self) {
        let scheduler = &self.scheduler;
        self.parked.retain(|class, _| scheduler.is_interrupted(*class));
        if self.running.is_none() {
            self.due = self.now;
        }
    }

    /// Takes a request, or says why not; says nothing while it is wedged.
    pub fn start(&mut self, asked: (Asker, u64), generation: Generation) -> Option<GenerationEvent> {
        match &mut self.wedged {
            Some((_, waiting)) => {
                waiting.push((asked, generation));
                None
            }
            None => Some(self.take(asked, generation)),
        }
    }

    fn take(&mut self, asked: (Asker, u64), generation: Generation) -> GenerationEvent {
        // Some begin with what was said already.
        let again = (asked.1 % 3) as u32;
        let emitted = (generation.resume.len() as u32).saturating_sub(again);
        let id = self.last_id + 1;
        let now = Duration::from_micros(self.now);
        let new = NewSequence {
            id,
            model: generation.model.clone(),
            class: generation.class,
            prompt: generation.prompt.len() as u32 + emitted,
            max_new: generation.max_tokens.saturating_sub(emitted),
            begun: !generation.resume.is_empty(),
            kept: self.kept(&generation),
        };
        if let Err(refusal) = self.scheduler.submit(new, now) {
            return GenerationEvent::Failed(match refusal {
                Refusal::UnknownModel => Failure::ModelNotLoaded {
                    model: generation.model.to_string(),
                    detail: "not here".into(),
                },
                Refusal::TooLarge { needed, budget } => Failure::TooLarge { needed, budget },
                Refusal::QueueFull { retry_after_s, .. } => Failure::Overloaded {
                    detail: "queue is full".into(),
                    retry_after_s,
                },
            });
        }
        self.prefixes
            .await_use(Kin::of(&generation), &generation.prompt, now);
        self.last_id = id;
        self.interrupt_for(generation.class);
        let making = Making {
            asked,
            seed: tokens::seed(&generation.prompt),
            emitted,
            arrived: self.now,
            started: None,
            began: None,
            cached: None,
            keep: None,
            untold: Vec::new(),
            generation,
        };
        self.sequences.insert(id, making);
        self.ids.insert(asked, id);
        self.look_again();
        GenerationEvent::Granted
    }

    /// Microseconds after which a step of less urgent work looks for more urgent one.
    fn slice(&self) -> u64 {
        u64::from(self.scheduler.knobs().slice_ms) * 1000
    }

    /// A step of less urgent work stops at the end of its slice.
    fn interrupt_for(&mut self, class: Class) {
        if self
            .running
            .as_ref()
            .is_some_and(|running| running.step.class > class)
        {
            self.stop_at_slice();
        }
    }

    fn stop_at_slice(&mut self) {
        let slice = self.slice();
        let Some(running) = &mut self.running else {
            return;
        };
        // Somebody waits for its end now.
        self.due = self.due.min(running.ends);
        if !running.step.is_interruptible() || running.left.is_some() {
            return;
        }
        let slices = (self.now - running.began).div_ceil(slice).max(1);
        let stops = running.began + slices * slice;
        if stops < running.ends {
            running.left = Some(running.ends - stops);
            running.ends = stops;
            self.due = self.due.min(stops);
        }
    }

    /// Nobody waits for this answer any more.
    pub fn cancel(&mut self, asked: (Asker, u64)) {
        self.forget_waiting(|one| one == asked);
        if let Some(id) = self.ids.get(&asked).copied() {
            self.keep_answer(id);
            self.scheduler.end(id);
            if let Some(making) = self.forget(id).filter(|making| making.began.is_none()) {
                self.note(making.first(self.now, true));
            }
            self.look_again();
        }
    }

    /// It is killed: whoever waits is told.
    pub fn die(&mut self) -> Vec<Out> {
        let ended = std::mem::take(&mut self.sequences).into_values();
        let ended = ended.map(|making| match making.began.is_some() {
            true => (making.asked, GenerationEvent::Failed(Failure::EngineLost)),
            false => (making.asked, not_begun(&making.generation)),
        });
        let waiting = self.wedged.take().into_iter().flat_map(|(_, waiting)| waiting);
        let waiting = waiting.map(|(asked, generation)| (asked, not_begun(&generation)));
        ended.chain(waiting).collect()
    }

    /// A coordinator is gone, and what it asked for with it.
    pub fn cancel_all_of(&mut self, asker: Asker) {
        self.forget_waiting(|(one, _)| one == asker);
        let of_it = self.ids.range((asker, 0)..=(asker, u64::MAX));
        let of_it: Vec<(Asker, u64)> = of_it.map(|(asked, _)| *asked).collect();
        of_it.into_iter().for_each(|asked| self.cancel(asked));
    }

    fn forget(&mut self, id: SequenceId) -> Option<Making> {
        let making = self.sequences.remove(&id)?;
        self.ids.remove(&making.asked);
        Some(making)
    }

    /// Everything that somebody asked this engine for.
    pub fn asked(&self) -> impl Iterator<Item = ((Asker, u64), &Generation)> {
        self.sequences
            .values()
            .map(|making| (making.asked, &making.generation))
    }

    /// What it makes, unless it only seems to.
    pub fn makes(&self, asked: (Asker, u64)) -> Option<&Generation> {
        if self.is_wedged() {
            return None;
        }
        let id = self.ids.get(&asked)?;
        self.sequences.get(id).map(|making| &making.generation)
    }

    /// Prompt tokens of an answer that were taken from a kept beginning, if it came into a slot.
    pub fn cached_of(&self, asked: (Asker, u64)) -> Option<u32> {
        self.sequences.get(self.ids.get(&asked)?)?.cached
    }

    pub fn is_empty(&self) -> bool {
        let waiting = self.wedged.as_ref().map(|(_, waiting)| waiting);
        self.sequences.is_empty() && waiting.is_none_or(Vec::is_empty)
    }

    /// Works until this time.
    pub fn advance(&mut self, mac: &Mac, to: u64) -> Vec<Out> {
        let mut out = Vec::new();
        if self.is_wedged() {
            return out;
        }
        loop {
            if let Some(running) = self.running.take() {
                if running.ends > to {
                    self.spend(&running, self.now, to);
                    self.now = to;
                    self.due = self.next_due(&running);
                    self.running = Some(running);
                    break;
                }
                self.spend(&running, self.now, running.ends);
                self.now = running.ends;
                self.end_step(running, &mut out);
                if let Some(knobs) = self.next_knobs.take() {
                    self.set_knobs(knobs);
                }
            }
            let now = Duration::from_micros(self.now);
            self.expire(now, &mut out);
            let admitted = self.scheduler.admit(now);
            if self.follow_kv_ops() {
                self.trim_prefixes(self.scheduler.prefix_budget());
            }
            self.use_prefixes(&admitted);
            match self.scheduler.compose(now) {
                Decision::Idle => {
                    self.now = to.max(self.now);
                    self.due = if self.sequences.is_empty() {
                        u64::MAX
                    } else {
                        self.now + IDLE
                    };
                    break;
                }
                Decision::WaitUntil(at, _) => {
                    let at = at.as_nanos().div_ceil(1000) as u64;
                    if at > to {
                        (self.now, self.due) = (to, at);
                        break;
                    }
                    self.now = at;
                }
                Decision::Begin(step) => {
                    let mut work = self.work_of(&step);
                    let (whole, _) = mac.step(&work);
                    work.moved = self.copies.take();
                    let (takes, watts) = mac.step(&work);
                    let permille = self.noise();
                    let with_noise = |time: u64| time * permille / 1000;
                    self.begin(step, with_noise(takes), with_noise(whole), watts);
                }
                Decision::Resume(step) => {
                    let work = self.work_of(&step);
                    let (takes, watts) = mac.step(&work);
                    let parked = self.parked.remove(&step.class);
                    let (left, whole) = parked.unwrap_or((takes, takes));
                    self.begin(step, left, whole, watts);
                }
            }
        }
        self.tell(&mut out);
        out
    }

    /// Its steps differ as this says.
    pub fn differ_by(&mut self, noise: Random) {
        self.noise = noise;
    }

    /// Prompt tokens of this that it need not compute.
    pub fn kept(&self, asked: &Generation) -> u32 {
        self.prefixes.kept(Kin::of(asked), &asked.prompt)
    }

    /// How long a step takes, in thousandths of what it should: steps differ by themselves, and one in fifty had company.
    fn noise(&mut self) -> u64 {
        match self.noise.one_in(50) {
            true => self.noise.between(1300, 1800),
            false => self.noise.between(960, 1040),
        }
    }

    fn begin(&mut self, step: Step, takes: u64, whole: u64, watts: f64) {
        let slice = self.slice();
        let is_passed =
            |class: &Class| *class < step.class && self.scheduler.population(Some(*class), None) != (0, 0);
        let stops = takes > slice && step.is_interruptible() && Class::ALL.iter().any(is_passed);
        self.running = Some(Running {
            step,
            began: self.now,
            ends: self.now + if stops { slice } else { takes.max(1) },
            watts,
            whole,
            left: stops.then(|| takes - slice),
        });
    }

    fn work_of(&self, step: &Step) -> Work {
        let record = &self.models[&step.model];
        let mut work = Work {
            weight_bytes: record.weight_bytes,
            kv_bytes_per_token: record.kv_bytes_per_token,
            ..Work::default()
        };
        for row in &step.rows {
            work.context += u64::from(row.start + row.len);
            match row.len {
                1 if row.emits => work.rows += 1,
                len => work.prefill += len,
            }
        }
        work
    }

    fn spend(&mut self, running: &Running, from: u64, to: u64) {
        let seconds = (to - from) as f64 / 1e6;
        self.joules += running.watts * seconds;
        let is_batch = |row: &pomona_sched::RowWork| {
            let making = self.sequences.get(&row.id);
            making.is_some_and(|making| making.generation.class != Class::Interactive)
        };
        if running.step.rows.iter().any(is_batch) {
            self.batch_s += seconds;
        }
    }

    /// Parts of people's prompts that were computed since the last call.
    pub fn take_prompts(&mut self) -> Vec<PromptStep> {
        std::mem::take(&mut self.prompts)
    }

    /// Energy of the engine's work since the last call in joules, and the seconds in which aggregate work ran.
    pub fn take_spent(&mut self) -> (f64, f64) {
        (
            std::mem::take(&mut self.joules),
            std::mem::take(&mut self.batch_s),
        )
    }

    /// The end of a step is worth an event by itself when somebody waits for it; steps of answers that go on
    /// are looked at together.
    fn next_due(&self, running: &Running) -> u64 {
        let is_awaited = |row: &pomona_sched::RowWork| {
            let making = self.sequences.get(&row.id);
            making.is_some_and(|making| {
                let last = making.emitted + 1 >= making.generation.max_tokens;
                row.emits && (last || making.began.is_none())
            })
        };
        let awaited = running.left.is_some() || running.step.rows.iter().any(is_awaited);
        let soon = self.sequences.values().any(|making| making.began.is_none());
        if awaited || soon {
            running.ends
        } else {
            running.ends.max(self.now + TELL)
        }
    }

    fn end_step(&mut self, running: Running, out: &mut Vec<Out>) {
        let Running {
            mut step,
            left,
            whole,
            ..
        } = running;
        if left.is_none() {
            let now = Duration::from_micros(self.now);
            let took = Duration::from_micros(whole);
            self.steadiness.note(&step, took, now);
            self.prompts.extend(step.prompt(took));
        }
        // Others were cancelled meanwhile.
        let is_there = |row: &pomona_sched::RowWork| self.scheduler.place(row.id).is_some();
        step.rows.retain(is_there);
        if let Some(left) = left {
            if !step.rows.is_empty() {
                self.parked.insert(step.class, (left, whole));
                self.scheduler.interrupt(step);
            }
            return;
        }
        let emits: Vec<SequenceId> = step
            .rows
            .iter()
            .filter(|row| row.emits)
            .map(|row| row.id)
            .collect();
        self.prefilled[step.class.index()] += u64::from(step.prefill());
        self.scheduler.complete(&step);
        self.steps += 1;
        for row in &step.rows {
            self.keep_prefix(row);
        }
        for id in emits {
            self.emit(id, out);
        }
    }

    fn emit(&mut self, id: SequenceId, out: &mut Vec<Out>) {
        let now = self.now;
        let Some(making) = self.sequences.get_mut(&id) else {
            return;
        };
        let class = making.generation.class;
        making.untold.push(tokens::token(making.seed, making.emitted));
        making.emitted += 1;
        self.tokens[class.index()] += 1;
        let is_done = making.emitted >= making.generation.max_tokens;
        if making.began.is_none() {
            making.began = Some(now);
            let first = making.first(now, false);
            self.note(first);
        }
        if !is_done {
            return;
        }
        self.keep_answer(id);
        self.scheduler.end(id);
        let Some(mut making) = self.forget(id) else {
            return;
        };
        out.extend(making.chunk());
        let accounting = Accounting {
            prompt_tokens: making.generation.prompt.len() as u32,
            completion_tokens: making.emitted,
            cached_tokens: making.cached.unwrap_or(0),
            queue_ms: making.waited_us() as f64 / 1e3,
            prefill_ms: making.prefilled_us() as f64 / 1e3,
            ..Accounting::default()
        };
        let reason = FinishReason::Length;
        out.push((making.asked, GenerationEvent::Finished { reason, accounting }));
    }

    /// What an interactive answer's first token took.
    pub fn note(&mut self, first: Option<FirstToken>) {
        let Some(first) = first else {
            return;
        };
        self.answers += 1;
        if self.first_tokens.len() == limits::FIRST_TOKENS {
            self.first_tokens.remove(0);
        }
        self.first_tokens.push(first);
    }

    fn expire(&mut self, now: Duration, out: &mut Vec<Out>) {
        for id in self.scheduler.expire(now) {
            if let Some(making) = self.forget(id) {
                let failure = Failure::Overloaded {
                    detail: "no slot became free in time".into(),
                    retry_after_s: 10,
                };
                out.push((making.asked, GenerationEvent::Failed(failure)));
            }
        }
    }

    fn tell(&mut self, out: &mut Vec<Out>) {
        out.extend(self.sequences.values_mut().filter_map(Making::chunk));
    }
}
