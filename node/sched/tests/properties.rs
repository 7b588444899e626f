//! Properties of the scheduler over random histories of arrivals, cancellations and steps.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test")]

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::{Class, EngineKnobs, ModelName, Relief, Rung, SloSet};
use pomona_sched::{Decision, KvOp, NewSequence, Refusal, Scheduler, SequenceId, Step};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Event {
    Submit {
        model: u8,
        class: Class,
        prompt: u32,
        max_new: u32,
    },
    Cancel(u8),
    Advance(u16),
    Steps(u8),
    Relieve(Relief),
    /// The system is short of memory, or no more.
    Short(bool),
}

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![
        Just(Class::Interactive),
        Just(Class::Background),
        Just(Class::Batch)
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..2u8, class(), 1..900u32, 1..200u32)
            .prop_map(|(model, class, prompt, max_new)| Event::Submit { model, class, prompt, max_new }),
        1 => any::<u8>().prop_map(Event::Cancel),
        1 => (1..200u16).prop_map(Event::Advance),
        3 => (1..20u8).prop_map(Event::Steps),
        1 => any::<bool>().prop_map(Event::Short),
        1 => (0..Rung::ALL.len(), any::<bool>())
            .prop_map(|(rung, frees_memory)| Event::Relieve(Relief { rung: Rung::ALL[rung], frees_memory })),
    ]
}

fn knobs() -> impl Strategy<Value = EngineKnobs> {
    (1..12u32, 1..6u32, 0..3u32, 1..200u32, 1..=100u32, 1..30u64).prop_map(
        |(total, batch, reserved, chunk, share, kv)| {
            let mut knobs = EngineKnobs {
                total_slots: total + reserved,
                ..EngineKnobs::default()
            };
            knobs.kv_budget_bytes = kv * 512;
            knobs.interactive.reserved_slots = reserved;
            knobs.interactive.max_slots = reserved.max(4);
            knobs.batch.max_slots = batch;
            knobs.batch.prefill_chunk = chunk;
            knobs.batch.step_share = share;
            assert!(knobs.problems().is_empty(), "{:?}", knobs.problems());
            knobs
        },
    )
}

fn name(model: u8) -> ModelName {
    format!("m{model}").parse().unwrap()
}

/// A short one, of a prompt of ten tokens.
fn sequence(id: SequenceId, class: Class) -> NewSequence {
    NewSequence {
        id,
        model: name(0),
        class,
        prompt: 10,
        max_new: 50,
        begun: false,
        kept: 0,
    }
}

/// A naive engine: what each sequence has in its KV row, and which rows exist.
#[derive(Default)]
struct Engine {
    slabs: BTreeMap<(ModelName, u32), Vec<Option<SequenceId>>>,
    in_cache: BTreeMap<SequenceId, u32>,
    budget_left: BTreeMap<SequenceId, (Class, u32, u32)>,
}

struct World {
    /// Without relief.
    knobs: EngineKnobs,
    scheduler: Scheduler,
    is_short: bool,
    engine: Engine,
    now: Duration,
    next: SequenceId,
    log: Vec<(SequenceId, Class)>,
    /// Interrupted steps: whose rows they had when they stopped.
    interrupted: BTreeMap<Class, Vec<SequenceId>>,
    /// Decisions since each decoding interactive sequence last took part in a step.
    unserved: BTreeMap<SequenceId, u32>,
    decisions: u64,
}

impl World {
    fn new(knobs: EngineKnobs) -> Self {
        let mut scheduler = Scheduler::new(knobs.clone());
        scheduler.add_model(name(0), 1, 4096);
        scheduler.add_model(name(1), 1, 1024);
        Self {
            knobs,
            scheduler,
            is_short: false,
            engine: Engine::default(),
            now: Duration::ZERO,
            next: 0,
            log: Vec::new(),
            interrupted: BTreeMap::new(),
            unserved: BTreeMap::new(),
            decisions: 0,
        }
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Submit {
                model,
                class,
                prompt,
                max_new,
            } => {
                let id = self.next;
                self.next += 1;
                let new = NewSequence {
                    id,
                    model: name(*model),
                    class: *class,
                    prompt: *prompt,
                    max_new: *max_new,
                    begun: false,
                    kept: 0,
                };
                if self.scheduler.submit(new, self.now).is_ok() {
                    let context = if *model == 0 { 4096 } else { 1024 };
                    let left = (*max_new).min(context - prompt);
                    self.engine.budget_left.insert(id, (*class, *prompt, left));
                    self.log.push((id, *class));
                }
            }
            Event::Cancel(which) => {
                if let Some((id, _)) = self.log.get(usize::from(*which) % self.log.len().max(1)) {
                    let id = *id;
                    self.scheduler.end(id);
                    self.forget(id);
                    assert!(
                        self.scheduler.place(id).is_none(),
                        "a cancelled sequence keeps its row"
                    );
                }
            }
            Event::Relieve(relief) => self.relieve(*relief),
            Event::Short(is_short) => self.be_short(*is_short),
            Event::Advance(ms) => self.now += Duration::from_millis(u64::from(*ms)),
            Event::Steps(n) => {
                for _ in 0..*n {
                    if !self.step() {
                        break;
                    }
                }
            }
        }
        assert!(self.scheduler.kv_allocated() <= self.scheduler.knobs().kv_budget_bytes);
    }

    fn be_short(&mut self, is_short: bool) {
        self.is_short = is_short;
        self.scheduler.set_short(is_short);
    }

    fn relieve(&mut self, relief: Relief) {
        let knobs = self.knobs.relieved(relief);
        let keeps_none = knobs.batch.is_paused() && knobs.batch.max_slots == 0;
        self.scheduler.set_knobs(knobs);
        let batch = self.scheduler.population(Some(Class::Batch), None).1;
        assert!(
            batch <= self.scheduler.knobs().batch.max_slots,
            "more than its slots"
        );
        if keeps_none {
            let all = self.scheduler.population(None, None).1;
            assert!(
                all > 0 || self.scheduler.kv_allocated() == 0,
                "memory is not given back"
            );
            let batch = self.log.iter().filter(|(_, class)| *class == Class::Batch);
            for (id, _) in batch {
                assert!(
                    self.scheduler.place(*id).is_none(),
                    "its KV cache is not given back"
                );
            }
        }
    }

    fn forget(&mut self, id: SequenceId) {
        self.engine.budget_left.remove(&id);
        self.unserved.remove(&id);
    }

    fn step(&mut self) -> bool {
        let admitted = self.scheduler.admit(self.now);
        for id in &admitted {
            let is_urgent = self.engine.budget_left[id].0 == Class::Interactive;
            assert!(is_urgent || !self.is_short, "it begins where memory is short");
            self.engine.in_cache.insert(*id, 0);
            // Prefilled anew if it was sent back: what it decoded before does not count.
            self.unserved.remove(id);
        }
        self.follow_kv_ops();
        let scheduler = &self.scheduler;
        self.interrupted
            .retain(|class, _| scheduler.is_interrupted(*class));
        let step = match self.scheduler.compose(self.now) {
            Decision::Begin(step) => {
                self.check_begin(&step);
                step
            }
            Decision::Resume(step) => {
                let ids: Vec<SequenceId> = step.rows.iter().map(|row| row.id).collect();
                let had = self.interrupted.remove(&step.class).unwrap();
                let left = had.into_iter().filter(|id| self.scheduler.place(*id).is_some());
                assert_eq!(left.filter(|id| ids.contains(id)).collect::<Vec<_>>(), ids);
                step
            }
            Decision::Idle => {
                let mut left = self.engine.budget_left.values();
                let paused = self.scheduler.knobs().batch.is_paused();
                assert!(
                    left.all(|(class, ..)| match class {
                        Class::Interactive => false,
                        Class::Background => self.is_short,
                        Class::Batch => self.is_short || paused,
                    }),
                    "work is left but nobody runs"
                );
                return false;
            }
            Decision::WaitUntil(until, _) => {
                assert!(until > self.now);
                self.now = until;
                return true;
            }
        };
        self.now += Duration::from_millis(10);
        self.decisions += 1;
        self.check_waits(&step);
        for row in &step.rows {
            assert_eq!(
                self.scheduler.place(row.id).as_ref(),
                Some(&row.place),
                "rows are where they are"
            );
        }
        // Slices end at odd places, but end.
        if step.is_interruptible() && self.decisions % 7 < 4 {
            self.interrupted
                .insert(step.class, step.rows.iter().map(|row| row.id).collect());
            self.scheduler.interrupt(step);
        } else {
            self.complete(&step);
        }
        true
    }

    fn check_begin(&self, step: &Step) {
        assert!(!step.rows.is_empty(), "a step without rows");
        let knobs = self.scheduler.knobs();
        assert!(self.scheduler.population(None, None).1 <= knobs.total_slots);
        let mut prefill = 0;
        for row in &step.rows {
            let taken = self.interrupted.values().any(|ids| ids.contains(&row.id));
            assert!(!taken, "a row is in two steps at once");
            let slab = &self.engine.slabs[&(row.place.model.clone(), row.place.capacity)];
            let occupied = slab[row.place.row as usize] == Some(row.id);
            let have = if occupied {
                self.engine.in_cache[&row.id]
            } else {
                0
            };
            assert_eq!(row.start, have, "fed tokens do not follow what is in the cache");
            assert!(row.start + row.len <= row.place.capacity, "row overflows");
            let (class, known, _) = self.engine.budget_left[&row.id];
            assert!(!knobs.class(class).is_paused(), "a paused row runs");
            assert!(
                class >= step.class,
                "a more urgent row is held by a step that may be interrupted"
            );
            if row.start + 1 != known {
                assert_eq!(class, step.class, "only the step's class prefills");
                prefill += row.len;
            }
        }
        assert!(prefill <= knobs.class(step.class).prefill_chunk);
    }

    /// An interactive row that decodes waits for at most 17 steps or slices: five steps of the
    /// other model (its turn, and four for first tokens), and before each of them and its own
    /// one turn of each less urgent class.
    fn check_waits(&mut self, step: &Step) {
        for waited in self.unserved.values_mut() {
            *waited += 1;
        }
        for row in &step.rows {
            self.unserved.remove(&row.id);
        }
        for (id, waited) in &self.unserved {
            assert!(*waited <= 17, "interactive {id} has waited for {waited} steps");
        }
    }

    fn complete(&mut self, step: &Step) {
        for row in &step.rows {
            let slab = (row.place.model.clone(), row.place.capacity);
            self.engine.slabs.get_mut(&slab).unwrap()[row.place.row as usize] = Some(row.id);
            self.engine.in_cache.insert(row.id, row.start + row.len);
        }
        self.scheduler.complete(step);
        for row in step.rows.iter().filter(|row| row.emits) {
            let (class, known, left) = self.engine.budget_left.get_mut(&row.id).unwrap();
            *known += 1;
            *left -= 1;
            if *class == Class::Interactive {
                self.unserved.insert(row.id, 0);
            }
            if *left == 0 {
                self.scheduler.end(row.id);
                self.forget(row.id);
            }
        }
    }

    fn follow_kv_ops(&mut self) {
        for op in self.scheduler.kv_ops() {
            match op {
                KvOp::Resize {
                    model,
                    capacity,
                    rows,
                } => {
                    let slab = self.engine.slabs.entry((model, capacity)).or_default();
                    slab.resize(rows as usize, None);
                }
                KvOp::Move {
                    model,
                    capacity,
                    from,
                    to,
                } => {
                    let slab = self.engine.slabs.get_mut(&(model, capacity)).unwrap();
                    slab[to as usize] = slab[from as usize].take();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every accepted sequence that is not cancelled ends, whatever else happens: nobody
    /// starves, no cache position is skipped or repeated, the budget holds after every event.
    #[test]
    fn everything_accepted_is_answered(knobs in knobs(), events in prop::collection::vec(event(), 1..60)) {
        let mut world = World::new(knobs);
        for event in &events {
            world.apply(event);
        }
        world.relieve(Relief::default());
        world.be_short(false);
        let mut steps = 0;
        while !world.engine.budget_left.is_empty() {
            world.step();
            steps += 1;
            prop_assert!(steps < 200_000, "no end in sight: {:?}", world.engine.budget_left);
        }
        prop_assert_eq!(world.scheduler.population(None, None), (0, 0));
    }

    /// With a free slot, an interactive prompt is fed in the very next step, alone, however much
    /// batch work is there and whatever was interrupted for it.
    #[test]
    fn interactive_waits_for_at_most_the_running_slice(batch in 1..12u32, prompt in 1..200u32, steps in 1..40u32, slices in 1..5u32) {
        let mut scheduler = Scheduler::new(EngineKnobs::default());
        scheduler.add_model(name(0), 1, 4096);
        for id in 0..batch {
            let new = NewSequence { id: u64::from(id), model: name(0), class: Class::Batch, prompt: 300, max_new: 100, begun: false, kept: 0 };
            prop_assert!(scheduler.submit(new, Duration::ZERO).is_ok());
        }
        let mut now = Duration::from_millis(60);
        for i in 0..steps {
            scheduler.admit(now);
            match scheduler.compose(now) {
                Decision::Begin(step) | Decision::Resume(step) if i % slices == 0 => scheduler.complete(&step),
                Decision::Begin(step) | Decision::Resume(step) => scheduler.interrupt(step),
                Decision::Idle | Decision::WaitUntil(..) => {}
            }
            now += Duration::from_millis(50);
        }
        let new = NewSequence { id: 99, model: name(0), class: Class::Interactive, prompt, max_new: 8, begun: false, kept: 0 };
        prop_assert!(scheduler.submit(new, now).is_ok());
        scheduler.admit(now);
        let Decision::Begin(step) = scheduler.compose(now) else {
            return Err(TestCaseError::fail("no step"));
        };
        let row = step.rows.iter().find(|row| row.id == 99);
        prop_assert_eq!(row.map(|row| row.len), Some(prompt.min(256)));
        prop_assert!(step.rows.iter().all(|row| row.id == 99 || row.len == 1), "no other prompt beside it");
    }

    /// A short interactive prompt is fed at once beside long ones, whole.
    #[test]
    fn a_short_prompt_does_not_wait_for_a_long_one(long in 300..4000u32, short in 1..=128u32, steps in 0..8u32) {
        let mut scheduler = Scheduler::new(EngineKnobs::default());
        scheduler.add_model(name(0), 1, 8192);
        let new = |id, prompt| NewSequence { id, model: name(0), class: Class::Interactive, prompt, max_new: 8, begun: false, kept: 0 };
        let now = Duration::ZERO;
        for id in 0..3 {
            prop_assert!(scheduler.submit(new(id, long), now).is_ok());
        }
        scheduler.admit(now);
        for _ in 0..steps {
            if let Decision::Begin(step) = scheduler.compose(now) {
                scheduler.complete(&step);
            }
        }
        prop_assert!(scheduler.submit(new(9, short), now).is_ok());
        scheduler.admit(now);
        let Decision::Begin(step) = scheduler.compose(now) else {
            return Err(TestCaseError::fail("no step"));
        };
        let row = step.rows.iter().find(|row| row.id == 9);
        prop_assert_eq!(row.map(|row| (row.len, row.emits)), Some((short, true)));
    }

    /// Batch of which most is kept passes others, but nobody waits for one that came five minutes later; a person's
    /// requests take no notice of it.
    #[test]
    fn who_is_kept_passes_others_but_not_for_long(
        class in class(),
        asked in prop::collection::vec((1..600_000u64, 1..900u32, 0..900u32), 2..20),
    ) {
        let mut knobs = EngineKnobs::default();
        for one in [&mut knobs.interactive, &mut knobs.background, &mut knobs.batch] {
            (one.max_slots, one.reserved_slots) = (1, 0);
        }
        let mut scheduler = Scheduler::new(knobs);
        scheduler.add_model(name(0), 1, 4096);
        let (mut now, mut came) = (Duration::ZERO, Vec::new());
        for (id, (after, prompt, kept)) in asked.into_iter().enumerate() {
            now += Duration::from_millis(after);
            let kept = kept.min(prompt);
            let new = NewSequence { id: id as u64, model: name(0), class, prompt, max_new: 1, begun: false, kept };
            prop_assert!(scheduler.submit(new, now).is_ok());
            came.push((now, class == Class::Batch && kept >= 256 && 2 * kept >= prompt));
        }
        now += Duration::from_secs(60);
        let mut entered: Vec<u64> = Vec::new();
        while entered.len() < came.len() {
            let admitted = scheduler.admit(now);
            prop_assert_eq!(admitted.len(), 1);
            scheduler.end(admitted[0]);
            entered.extend(admitted);
        }
        for (i, first) in entered.iter().enumerate() {
            for second in &entered[i + 1..] {
                let ((at, kept), (before, other_kept)) = (came[*first as usize], came[*second as usize]);
                let passes = before < at;
                prop_assert!(!passes || (kept && !other_kept && at - before <= Duration::from_secs(300)));
                prop_assert!(passes || kept || !other_kept || before - at > Duration::from_secs(300));
            }
        }
    }

    /// While one interactive stream decodes, batch work gets the turns that its share says.
    #[test]
    fn batch_gets_its_share_of_turns(share in 1..=100u32) {
        let mut knobs = EngineKnobs::default();
        knobs.batch.step_share = share;
        let mut scheduler = Scheduler::new(knobs);
        scheduler.add_model(name(0), 1, 4096);
        let new = |id, class, prompt| NewSequence { id, model: name(0), class, prompt, max_new: 2000, begun: false, kept: 0 };
        prop_assert!(scheduler.submit(new(1, Class::Interactive, 1), Duration::ZERO).is_ok());
        prop_assert!(scheduler.submit(new(2, Class::Batch, 2000), Duration::ZERO).is_ok());
        let now = Duration::from_secs(1);
        scheduler.admit(now);
        let (mut urgent, mut turns) = (0u32, 0u32);
        while urgent < 400 {
            match scheduler.compose(now) {
                Decision::Begin(step) | Decision::Resume(step) if step.class == Class::Batch => {
                    turns += 1;
                    // Never done: what matters is whose turn it is.
                    scheduler.interrupt(step);
                }
                Decision::Begin(step) => {
                    urgent += 1;
                    scheduler.complete(&step);
                }
                _ => return Err(TestCaseError::fail("no step")),
            }
        }
        prop_assert!(turns.abs_diff(urgent * share / 100) <= 1, "{turns} turns beside {urgent} steps");
    }
}

#[test]
fn a_batch_window_holds_the_first_and_lets_later_arrivals_join() {
    let mut scheduler = Scheduler::new(EngineKnobs::default());
    scheduler.add_model(name(0), 1, 4096);
    let submit = |scheduler: &mut Scheduler, id, at| {
        scheduler
            .submit(sequence(id, Class::Batch), Duration::from_millis(at))
            .unwrap();
    };
    submit(&mut scheduler, 1, 0);
    assert!(scheduler.admit(Duration::from_millis(10)).is_empty());
    submit(&mut scheduler, 2, 20);
    assert_eq!(scheduler.admit(Duration::from_millis(50)), [1, 2]);
    submit(&mut scheduler, 3, 60);
    assert_eq!(scheduler.admit(Duration::from_millis(61)), [3]);
}

#[test]
fn a_full_window_closes_at_once() {
    let mut scheduler = Scheduler::new(EngineKnobs::default());
    scheduler.add_model(name(0), 1, 4096);
    for id in 0..10 {
        scheduler
            .submit(sequence(id, Class::Batch), Duration::ZERO)
            .unwrap();
    }
    assert_eq!(scheduler.admit(Duration::from_millis(1)).len(), 10);
}

#[test]
fn batch_makes_way_when_all_slots_are_taken() {
    let mut knobs = EngineKnobs {
        total_slots: 2,
        ..EngineKnobs::default()
    };
    knobs.interactive.reserved_slots = 0;
    knobs.batch.window_ms = 0;
    let mut scheduler = Scheduler::new(knobs);
    scheduler.add_model(name(0), 1, 4096);
    for (id, class) in [(1, Class::Batch), (2, Class::Batch), (3, Class::Interactive)] {
        let new = NewSequence {
            max_new: 5,
            ..sequence(id, class)
        };
        scheduler.submit(new, Duration::ZERO).unwrap();
        scheduler.admit(Duration::ZERO);
    }
    assert!(scheduler.place(3).is_some());
    assert_eq!(scheduler.population(Some(Class::Batch), None), (1, 1));
}

/// Its client has part of the answer and notices a pause: it does not end because the node that goes on
/// has work of its own.
#[test]
fn an_answer_begun_elsewhere_goes_first_and_is_not_turned_away() {
    let mut knobs = EngineKnobs::default();
    knobs.interactive.max_slots = 1;
    let mut scheduler = Scheduler::new(knobs);
    scheduler.add_model(name(0), 1, 4096);
    let at = Duration::from_secs;
    for (id, begun) in [(1, false), (2, false), (3, true)] {
        let new = NewSequence {
            begun,
            ..sequence(id, Class::Interactive)
        };
        scheduler.submit(new, at(id)).unwrap();
        scheduler.admit(at(id));
    }
    assert_eq!(scheduler.expire(at(60)), [2], "the new one waited for too long");
    scheduler.end(1);
    assert_eq!(scheduler.admit(at(61)), [3]);
}

/// What was sent back to the queue goes before what came later, whatever is kept of that; and of those who wait for a
/// minute at most nobody is passed by what comes a quarter of one later.
#[test]
fn who_is_kept_passes_nobody_that_was_begun_or_soon_waits_in_vain() {
    let mut knobs = EngineKnobs {
        total_slots: 1,
        ..EngineKnobs::default()
    };
    for one in [&mut knobs.interactive, &mut knobs.background, &mut knobs.batch] {
        (one.max_slots, one.reserved_slots, one.window_ms) = (1, 0, 0);
    }
    let mut scheduler = Scheduler::new(knobs);
    scheduler.add_model(name(0), 1, 4096);
    // The engine is young, and places are near its beginning.
    let at = |seconds: u64| Duration::from_secs(10 + seconds);
    let submit = |scheduler: &mut Scheduler, id: u64, class, (kept, begun), seconds| {
        let new = NewSequence {
            prompt: 500,
            begun,
            kept,
            ..sequence(id, class)
        };
        scheduler.submit(new, at(seconds)).unwrap();
    };
    submit(&mut scheduler, 1, Class::Batch, (0, false), 0);
    assert_eq!(scheduler.admit(at(0)), [1]);
    submit(&mut scheduler, 2, Class::Interactive, (0, false), 1);
    assert_eq!(scheduler.admit(at(1)), [2], "the first one is sent back");
    submit(&mut scheduler, 3, Class::Batch, (500, false), 2);
    submit(&mut scheduler, 6, Class::Batch, (0, true), 2);
    for (seconds, ended, next) in [(3, 2, 6), (4, 6, 1)] {
        scheduler.end(ended);
        assert_eq!(scheduler.admit(at(seconds)), [next]);
    }
    let mut slos = SloSet::default();
    slos.batch.wait_s = 60;
    scheduler.set_slos(&slos);
    submit(&mut scheduler, 4, Class::Batch, (0, false), 10);
    submit(&mut scheduler, 5, Class::Batch, (500, false), 26);
    for (seconds, next) in [(27, 3), (28, 4), (29, 5)] {
        scheduler.end(if next == 3 { 1 } else { next - 1 });
        assert_eq!(scheduler.admit(at(seconds)), [next]);
    }
}

/// Queues are as long, and as patient, as the service level of their class says from then on.
#[test]
fn a_queue_takes_what_its_service_level_says() {
    let mut knobs = EngineKnobs::default();
    knobs.batch.max_slots = 1;
    let mut scheduler = Scheduler::new(knobs);
    scheduler.add_model(name(0), 1, 4096);
    let mut slos = SloSet::default();
    (slos.batch.queue, slos.batch.wait_s) = (2, 7);
    scheduler.set_slos(&slos);
    let submit = |scheduler: &mut Scheduler, id, class| scheduler.submit(sequence(id, class), Duration::ZERO);
    // One that has a slot to enter, and two that wait.
    for id in 1..=3 {
        submit(&mut scheduler, id, Class::Batch).unwrap();
    }
    let refused = submit(&mut scheduler, 4, Class::Batch);
    let full = |retry_after_s| {
        Err(Refusal::QueueFull {
            capacity: 2,
            retry_after_s,
        })
    };
    assert_eq!(refused, full(5));
    submit(&mut scheduler, 5, Class::Interactive).unwrap();
    assert_eq!(scheduler.admit(Duration::from_secs(1)), [5, 1]);
    assert_eq!(scheduler.expire(Duration::from_secs(6)), []);
    assert_eq!(scheduler.expire(Duration::from_secs(8)), [2, 3]);
    // A place came free a second after the last one did, and nothing since.
    assert_eq!(scheduler.slot_comes_in(Class::Batch, Duration::from_secs(8)), 7);
    // What was begun and is sent back has had its first slot.
    let mut knobs = scheduler.knobs().clone();
    knobs.batch.max_slots = 0;
    scheduler.set_knobs(knobs);
    assert_eq!(scheduler.population(Some(Class::Batch), None), (1, 0));
    assert_eq!(scheduler.expire(Duration::from_secs(60)), []);
    // A class that stands still has no slots to enter.
    let mut knobs = EngineKnobs::default();
    knobs.batch.step_share = 0;
    scheduler.set_knobs(knobs);
    submit(&mut scheduler, 6, Class::Batch).unwrap();
    assert_eq!(submit(&mut scheduler, 7, Class::Batch), full(5));
}

/// Helpers of a person come after the person and before batch, whoever came first.
#[test]
fn classes_enter_by_their_urgency() {
    let mut knobs = EngineKnobs {
        total_slots: 1,
        ..EngineKnobs::default()
    };
    for class in [&mut knobs.interactive, &mut knobs.background, &mut knobs.batch] {
        class.reserved_slots = 0;
    }
    let mut scheduler = Scheduler::new(knobs);
    scheduler.add_model(name(0), 1, 4096);
    for (id, class) in [(1, Class::Batch), (2, Class::Background), (3, Class::Interactive)] {
        scheduler
            .submit(sequence(id, class), Duration::from_millis(id))
            .unwrap();
    }
    let mut entered = Vec::new();
    for second in 1..=3 {
        let admitted = scheduler.admit(Duration::from_secs(second));
        assert_eq!(admitted.len(), 1, "one slot");
        scheduler.end(admitted[0]);
        entered.extend(admitted);
    }
    assert_eq!(entered, [3, 2, 1]);
}
