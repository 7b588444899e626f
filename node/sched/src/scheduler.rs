//! The scheduler: its state, and the verbs of its owner.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pomona_common::engine::PromptStep;
use pomona_common::limits::{self, QueueBound};
use pomona_common::{Class, EngineKnobs, ModelName, Slo, SloSet, Turnover};

use crate::kv_pool::{KvOp, KvPool, RowPlace};
use crate::pace::Pace;
use crate::sequence::{NewSequence, Phase, Sequence, SequenceId};
use crate::turns::Turns;

/// Why a sequence is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The model is not loaded.
    #[error("model is not loaded")]
    UnknownModel,
    /// It could never fit.
    #[error("sequence needs {needed} bytes of KV cache, the budget is {budget}")]
    TooLarge {
        /// Bytes it would take.
        needed: u64,
        /// The budget.
        budget: u64,
    },
    /// The queue is full.
    #[error("queue of {capacity} is full")]
    QueueFull {
        /// How much may wait.
        capacity: usize,
        /// In how many seconds it has a place again, by how fast it went on lately.
        retry_after_s: u32,
    },
}

/// What to do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Nothing waits and nothing runs.
    Idle,
    /// Nothing to do before this time.
    WaitUntil(Duration, &'static str),
    /// Run this step.
    Begin(Step),
    /// Go on with a step that was interrupted. Its rows are those that are left, in their old
    /// order, at their present places.
    Resume(Step),
}

/// One pass of one model over some rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The most urgent class among its rows; its turn it is.
    pub class: Class,
    /// The model.
    pub model: ModelName,
    /// Who takes part, ordered by slab and row.
    pub rows: Vec<RowWork>,
    /// Running sequences of this model that sit out in favour of others.
    pub paused: Vec<SequenceId>,
}

impl Step {
    /// Whether the step should look for more urgent work on its way, see
    /// [`Scheduler::interrupt`].
    pub fn is_interruptible(&self) -> bool {
        self.class != Class::Interactive
    }

    /// Prompt tokens in it.
    pub fn prefill(&self) -> u32 {
        self.rows.iter().map(|row| row.len).filter(|len| *len > 1).sum()
    }

    /// Tokens that are attended to.
    pub fn context(&self) -> u64 {
        self.rows.iter().map(|row| u64::from(row.start + row.len)).sum()
    }

    /// What is to be told of a step that took so long on the device: where a person's prompt was in it.
    pub fn prompt(&self, took: Duration) -> Option<PromptStep> {
        let tokens = self.prefill();
        (self.class == Class::Interactive && tokens > 0).then(|| PromptStep {
            model: self.model.clone(),
            tokens,
            context: self.context(),
            took_us: took.as_micros().try_into().unwrap_or(u64::MAX),
        })
    }
}

/// One row of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct RowWork {
    /// The sequence.
    pub id: SequenceId,
    /// Its KV row.
    pub place: RowPlace,
    /// Position of the first token that is fed.
    pub start: u32,
    /// Tokens that are fed.
    pub len: u32,
    /// Whether the step yields a new token: the last known token is fed.
    pub emits: bool,
}

/// See the crate's documentation.
#[derive(Debug, Clone)]
pub struct Scheduler {
    pub(crate) knobs: EngineKnobs,
    /// Of what comes from now on, by class.
    queues: [QueueBound; 3],
    pub(crate) pool: KvPool,
    pub(crate) contexts: BTreeMap<ModelName, u32>,
    pub(crate) sequences: BTreeMap<SequenceId, Sequence>,
    /// Waiting sequences by class, with their places in line.
    pub(crate) waiting: [BTreeSet<(Duration, SequenceId)>; 3],
    pub(crate) admissions: u64,
    /// How fast each class goes on.
    pub(crate) turnover: [Turnover; 3],
    pub(crate) turns: Turns,
    pub(crate) pace: Pace,
    /// Whether the system is short of memory.
    is_short: bool,
    /// Interrupted steps, at most one a class.
    pub(crate) parked: BTreeMap<Class, Step>,
    pub(crate) stats: [ClassStats; 3],
}

/// Counters of one class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClassStats {
    /// Groups that a window or an idle class let in together.
    pub batches: u64,
    /// For each closed window since the last look, how long it held its first sequence.
    pub windows: Vec<Duration>,
}

impl Scheduler {
    /// Empty, with these knobs.
    pub fn new(knobs: EngineKnobs) -> Self {
        Self {
            pool: KvPool::new(knobs.kv_budget_bytes),
            knobs,
            queues: Class::ALL.map(|class| Slo::of(class).queue_bound()),
            contexts: BTreeMap::new(),
            sequences: BTreeMap::new(),
            waiting: Default::default(),
            admissions: 0,
            turnover: Default::default(),
            turns: Turns::default(),
            pace: Pace::default(),
            is_short: false,
            parked: BTreeMap::new(),
            stats: Default::default(),
        }
    }

    /// Replaces the knobs; running sequences keep their slots, but for batch that is more than its slots.
    pub fn set_knobs(&mut self, knobs: EngineKnobs) {
        self.pool.set_budget(knobs.kv_budget_bytes);
        self.knobs = knobs;
        crate::admission::give_back(self);
    }

    /// How much of each class may wait from now on, and for how long. What waits already does for as long as it was
    /// told.
    pub fn set_slos(&mut self, slos: &SloSet) {
        self.queues = Class::ALL.map(|class| slos.class(class).queue_bound());
    }

    /// Gives batch so many percent of the time for turns of its own: the machine rests meanwhile, unless others have
    /// work. At 0 it stands still where it is.
    pub fn set_pace(&mut self, percent: u32) {
        self.pace.set(percent);
    }

    /// While the system is short of memory nothing comes into a slot but what a person waits for.
    pub fn set_short(&mut self, is_short: bool) {
        self.is_short = is_short;
    }

    /// The knobs in force as the pace and a want of memory leave them: what a class may enter now. Who is in a slot keeps
    /// it.
    pub fn paced_knobs(&self) -> EngineKnobs {
        self.knobs.entered(self.pace.slots(), self.is_short)
    }

    /// The knobs in force.
    pub fn knobs(&self) -> &EngineKnobs {
        &self.knobs
    }

    /// Makes a model known, with the bytes of KV cache a token takes as the engine holds it.
    pub fn add_model(&mut self, model: ModelName, kv_bytes_per_token: u64, context: u32) {
        self.pool.add_model(model.clone(), kv_bytes_per_token);
        self.contexts.insert(model, context);
    }

    /// Forgets a model; its sequences end and are returned.
    pub fn remove_model(&mut self, model: &ModelName) -> Vec<SequenceId> {
        let ended: Vec<SequenceId> = self
            .sequences
            .iter()
            .filter(|(_, sequence)| sequence.model == *model)
            .map(|(id, _)| *id)
            .collect();
        for id in &ended {
            self.end(*id);
        }
        self.pool.remove_model(model);
        self.contexts.remove(model);
        self.turns.forget(model);
        ended
    }

    /// Takes a sequence into the queue of its class.
    ///
    /// # Errors
    /// It cannot fit, or the queue is full.
    pub fn submit(&mut self, new: NewSequence, now: Duration) -> Result<(), Refusal> {
        let Some(context) = self.contexts.get(&new.model) else {
            return Err(Refusal::UnknownModel);
        };
        // What is less urgent keeps nobody out: it may stand still for long.
        let ahead = &self.waiting[..=new.class.index()];
        let waiting: usize = ahead.iter().map(BTreeSet::len).sum();
        // What has begun elsewhere has waited there.
        let queue = match new.begun {
            true => QueueBound {
                capacity: limits::QUEUE.capacity,
                wait: limits::wall_clock(new.class),
            },
            false => self.queues[new.class.index()],
        };
        // Who has a slot to enter does not wait for one.
        let slots = crate::admission::slots_left(self, new.class) as usize;
        if waiting >= queue.capacity + slots {
            return Err(Refusal::QueueFull {
                capacity: queue.capacity,
                retry_after_s: self.turnover[new.class.index()].seconds_for(1, now),
            });
        }
        let left = new.max_new.min(context.saturating_sub(new.prompt));
        let needed = self.pool.bytes_for(&new.model, new.prompt + left);
        let budget = self.pool.budget();
        if needed > budget {
            return Err(Refusal::TooLarge { needed, budget });
        }
        let place = new.place(now, self.queues[new.class.index()].wait);
        let waiting = &mut self.waiting[new.class.index()];
        if waiting.is_empty() {
            self.turnover[new.class.index()].begins();
        }
        waiting.insert((place, new.id));
        let sequence = Sequence {
            model: new.model,
            class: new.class,
            known: new.prompt,
            left,
            phase: Phase::Waiting,
            place,
            arrived: now,
            expires: now + queue.wait,
            admitted: 0,
        };
        self.sequences.insert(new.id, sequence);
        Ok(())
    }

    /// In how many seconds a class has a slot for who comes last, by how fast it went on lately.
    pub fn slot_comes_in(&self, class: Class, now: Duration) -> u32 {
        let waiting = self.waiting[class.index()].len();
        self.turnover[class.index()].seconds_for(waiting + 1, now)
    }

    /// Ends a sequence, wherever it is, and frees its slot and KV row at once.
    pub fn end(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.remove(&id) else {
            return;
        };
        self.waiting[sequence.class.index()].remove(&(sequence.place, id));
        self.vacate(id);
    }

    /// Takes a sequence out of its slot, its KV row and the interrupted step it is in.
    pub(crate) fn vacate(&mut self, id: SequenceId) {
        self.pool.release(id);
        for step in self.parked.values_mut() {
            step.rows.retain(|row| row.id != id);
        }
        self.parked.retain(|_, step| !step.rows.is_empty());
    }

    /// The engine found the first `tokens` tokens of a just admitted sequence in a shared prefix
    /// and copied their KV; at least one token is always left to feed.
    pub fn skip_prefix(&mut self, id: SequenceId, tokens: u32) {
        if let Some(sequence) = self.sequences.get_mut(&id)
            && let Phase::Prefill { done } = &mut sequence.phase
        {
            *done = (*done).max(tokens.min(sequence.known.saturating_sub(1)));
        }
    }

    /// How many tokens of a sequence are in its KV row.
    pub fn cached(&self, id: SequenceId) -> u32 {
        self.sequences.get(&id).map_or(0, Sequence::cached)
    }

    /// Records a step that was carried out. Rows that emitted have one more known token.
    pub fn complete(&mut self, step: &Step) {
        for row in &step.rows {
            let Some(sequence) = self.sequences.get_mut(&row.id) else {
                continue;
            };
            if row.emits {
                sequence.phase = Phase::Decode;
                sequence.known += 1;
                sequence.left = sequence.left.saturating_sub(1);
            } else {
                sequence.phase = Phase::Prefill {
                    done: row.start + row.len,
                };
            }
        }
    }

    /// Admits whoever may enter a slot now. The caller may then look up kept prefixes
    /// ([`Scheduler::skip_prefix`]) before it asks for the next step.
    pub fn admit(&mut self, now: Duration) -> Vec<SequenceId> {
        crate::admission::admit(self, now)
    }

    /// Decides what to do now, out of what runs.
    pub fn compose(&mut self, now: Duration) -> Decision {
        crate::compose::compose(self, now)
    }

    /// A step stops between two slices, so that more urgent work can pass: it is offered again
    /// by [`Decision::Resume`], at once when there is none.
    pub fn interrupt(&mut self, step: Step) {
        assert!(step.is_interruptible(), "interactive steps run in one go");
        self.parked.insert(step.class, step);
    }

    /// Whether a step of this class is interrupted and some of its rows are left.
    pub fn is_interrupted(&self, class: Class) -> bool {
        self.parked.contains_key(&class)
    }

    pub(crate) fn unpark(&mut self, class: Class) -> Option<Step> {
        let mut step = self.parked.remove(&class)?;
        for row in &mut step.rows {
            if let Some(place) = self.pool.place(row.id) {
                row.place = place;
            }
        }
        let sits_out = |id: &SequenceId, sequence: &Sequence| {
            sequence.model == step.model && !step.rows.iter().any(|row| row.id == *id)
        };
        step.paused = self
            .running()
            .filter(|(id, sequence)| sits_out(id, sequence))
            .map(|(id, _)| *id)
            .collect();
        Some(step)
    }

    pub(crate) fn is_parked(&self, id: SequenceId) -> bool {
        self.parked
            .values()
            .any(|step| step.rows.iter().any(|row| row.id == id))
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = (&SequenceId, &Sequence)> {
        self.sequences
            .iter()
            .filter(|(_, sequence)| sequence.is_running())
    }

    /// Sequences that waited longer than they may; they are ended.
    pub fn expire(&mut self, now: Duration) -> Vec<SequenceId> {
        let waiting = self.waiting.iter().flatten().map(|(_, id)| *id);
        let is_over = |id: &SequenceId| self.sequences.get(id).is_some_and(|one| now > one.expires);
        let expired: Vec<SequenceId> = waiting.filter(is_over).collect();
        expired.iter().for_each(|id| self.end(*id));
        expired
    }

    /// The changes of KV slabs since the last call, to be carried out before the next step.
    pub fn kv_ops(&mut self) -> Vec<KvOp> {
        self.pool.drain_ops()
    }

    /// The KV row of a running sequence.
    pub fn place(&self, id: SequenceId) -> Option<RowPlace> {
        self.pool.place(id)
    }

    /// Bytes of kept prefixes that fit beside the rows: the share that is theirs, and what no row has of the rest. The
    /// share alone while batch has no slots, since memory may be why.
    pub fn prefix_budget(&self) -> u64 {
        let rows = self.pool.budget();
        let idle = match self.knobs.batch.max_slots {
            0 => 0,
            _ => rows.saturating_sub(self.kv_allocated()),
        };
        crate::prefixes::prefix_share(rows) + idle
    }

    /// Kept prefixes take so many bytes now.
    pub fn set_prefix_bytes(&mut self, bytes: u64) {
        let theirs = crate::prefixes::prefix_share(self.pool.budget());
        self.pool.set_kept(bytes.saturating_sub(theirs));
    }

    /// Where prefixes of so many bytes do not fit, gives back rows of slabs that hardly anybody uses. Whether it came to
    /// that.
    pub fn make_room_for_prefixes(&mut self, bytes: u64) -> bool {
        let is_tight = bytes > self.prefix_budget();
        if is_tight {
            self.pool.shrink_idle();
        }
        is_tight
    }

    /// Bytes of KV slabs.
    pub fn kv_allocated(&self) -> u64 {
        self.pool.allocated()
    }

    /// Sequences of a class and, if given, a model: waiting and running.
    pub fn population(&self, class: Option<Class>, model: Option<&ModelName>) -> (u32, u32) {
        let mut counts = (0, 0);
        for sequence in self.sequences.values() {
            let counted = class.is_none_or(|class| class == sequence.class)
                && model.is_none_or(|model| *model == sequence.model);
            if counted && sequence.is_running() {
                counts.1 += 1;
            } else if counted {
                counts.0 += 1;
            }
        }
        counts
    }

    /// Takes the counters of a class; windows are handed out once.
    pub fn take_stats(&mut self, class: Class) -> ClassStats {
        let stats = &mut self.stats[class.index()];
        ClassStats {
            batches: stats.batches,
            windows: std::mem::take(&mut stats.windows),
        }
    }
}
