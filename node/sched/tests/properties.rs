//! Properties of the scheduler over random histories of arrivals, cancellations and steps.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pomona_common::{Class, EngineKnobs, ModelName};
use pomona_sched::{Decision, KvOp, NewSequence, Scheduler, SequenceId};
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

/// A naive engine: what each sequence has in its KV row, and which rows exist.
#[derive(Default)]
struct Engine {
    slabs: BTreeMap<(ModelName, u32), Vec<Option<SequenceId>>>,
    in_cache: BTreeMap<SequenceId, u32>,
    budget_left: BTreeMap<SequenceId, (Class, u32, u32)>,
}

struct World {
    scheduler: Scheduler,
    engine: Engine,
    now: Duration,
    next: SequenceId,
    log: Vec<(SequenceId, Class)>,
}

impl World {
    fn new(knobs: EngineKnobs) -> Self {
        let mut scheduler = Scheduler::new(knobs);
        scheduler.add_model(name(0), 1, 4096);
        scheduler.add_model(name(1), 1, 1024);
        Self {
            scheduler,
            engine: Engine::default(),
            now: Duration::ZERO,
            next: 0,
            log: Vec::new(),
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
                    self.engine.budget_left.remove(&id);
                    assert!(
                        self.scheduler.place(id).is_none(),
                        "a cancelled sequence keeps its row"
                    );
                }
            }
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

    fn step(&mut self) -> bool {
        let admitted = self.scheduler.admit(self.now);
        for id in &admitted {
            self.engine.in_cache.insert(*id, 0);
        }
        let decision = self.scheduler.compose(self.now, admitted);
        self.follow_kv_ops();
        let step = match decision {
            Decision::Step(step) => step,
            Decision::Idle => {
                assert!(self.engine.budget_left.is_empty(), "work is left but nobody runs");
                return false;
            }
            Decision::WaitUntil(until, _) => {
                assert!(until > self.now);
                self.now = until;
                return true;
            }
        };
        assert!(!step.rows.is_empty(), "a step without rows");
        let knobs = self.scheduler.knobs().clone();
        assert!(self.scheduler.population(None, None).1 <= knobs.total_slots);
        let mut prefill: BTreeMap<Class, u32> = BTreeMap::new();
        for row in &step.rows {
            let slab = &mut self
                .engine
                .slabs
                .get_mut(&(row.place.model.clone(), row.place.capacity))
                .unwrap();
            let occupant = &mut slab[row.place.row as usize];
            let have = if *occupant == Some(row.id) {
                self.engine.in_cache[&row.id]
            } else {
                0
            };
            assert_eq!(row.start, have, "fed tokens do not follow what is in the cache");
            *occupant = Some(row.id);
            self.engine.in_cache.insert(row.id, row.start + row.len);
            assert!(row.start + row.len <= row.place.capacity, "row overflows");
            let (class, known, _) = self.engine.budget_left[&row.id];
            if row.start + 1 != known {
                *prefill.entry(class).or_default() += row.len;
            }
        }
        assert!(prefill.len() <= 1, "two classes prefill in one step: {prefill:?}");
        for (class, tokens) in &prefill {
            assert!(*tokens <= knobs.class(*class).prefill_chunk);
        }
        self.check_urgency(&step);
        self.scheduler.complete(&step);
        for row in step.rows.iter().filter(|row| row.emits) {
            let (_, known, left) = self.engine.budget_left.get_mut(&row.id).unwrap();
            *known += 1;
            *left -= 1;
            if *left == 0 {
                self.engine.budget_left.remove(&row.id);
                self.scheduler.end(row.id);
            }
        }
        self.now += Duration::from_millis(10);
        true
    }

    /// A newly admitted interactive prompt is in this step or in one of the other models' urgent
    /// steps before it; batch decodes never crowd it out of its own model's step.
    fn check_urgency(&self, step: &pomona_sched::Step) {
        let fresh: BTreeSet<SequenceId> = step.admitted.iter().copied().collect();
        let class_of = |id: &SequenceId| self.engine.budget_left.get(id).map(|s| s.0);
        let urgent_fresh = fresh.iter().any(|id| class_of(id) == Some(Class::Interactive));
        if urgent_fresh {
            assert!(
                step.rows
                    .iter()
                    .any(|row| class_of(&row.id) == Some(Class::Interactive)),
                "an interactive prompt was admitted and the step serves none"
            );
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
        let mut steps = 0;
        while !world.engine.budget_left.is_empty() {
            world.step();
            steps += 1;
            prop_assert!(steps < 200_000, "no end in sight: {:?}", world.engine.budget_left);
        }
        prop_assert_eq!(world.scheduler.population(None, None), (0, 0));
    }

    /// With a free slot, an interactive prompt is fed in the very next step, however much batch
    /// work is there.
    #[test]
    fn interactive_waits_for_at_most_the_running_step(batch in 1..12u32, prompt in 1..200u32, steps in 1..40u32) {
        let mut scheduler = Scheduler::new(EngineKnobs::default());
        scheduler.add_model(name(0), 1, 4096);
        for id in 0..batch {
            let new = NewSequence { id: u64::from(id), model: name(0), class: Class::Batch, prompt: 300, max_new: 100 };
            prop_assert!(scheduler.submit(new, Duration::ZERO).is_ok());
        }
        let mut now = Duration::from_millis(60);
        for _ in 0..steps {
            let admitted = scheduler.admit(now);
            if let Decision::Step(step) = scheduler.compose(now, admitted) {
                scheduler.complete(&step);
            }
            now += Duration::from_millis(50);
        }
        let new = NewSequence { id: 99, model: name(0), class: Class::Interactive, prompt, max_new: 8 };
        prop_assert!(scheduler.submit(new, now).is_ok());
        let admitted = scheduler.admit(now);
        let Decision::Step(step) = scheduler.compose(now, admitted) else {
            return Err(TestCaseError::fail("no step"));
        };
        let row = step.rows.iter().find(|row| row.id == 99);
        prop_assert_eq!(row.map(|row| row.len), Some(prompt.min(256)));
        let others: u32 = step.rows.iter().filter(|row| row.id != 99).map(|row| row.len).sum();
        prop_assert!(others <= 10, "only decoding rows accompany it");
    }
}

#[test]
fn a_batch_window_holds_the_first_and_lets_later_arrivals_join() {
    let mut scheduler = Scheduler::new(EngineKnobs::default());
    scheduler.add_model(name(0), 1, 4096);
    let submit = |scheduler: &mut Scheduler, id, at| {
        let new = NewSequence {
            id,
            model: name(0),
            class: Class::Batch,
            prompt: 10,
            max_new: 50,
        };
        scheduler.submit(new, Duration::from_millis(at)).unwrap();
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
        let new = NewSequence {
            id,
            model: name(0),
            class: Class::Batch,
            prompt: 10,
            max_new: 50,
        };
        scheduler.submit(new, Duration::ZERO).unwrap();
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
            id,
            model: name(0),
            class,
            prompt: 10,
            max_new: 5,
        };
        scheduler.submit(new, Duration::ZERO).unwrap();
        scheduler.admit(Duration::ZERO);
    }
    assert!(scheduler.place(3).is_some());
    assert_eq!(scheduler.population(Some(Class::Batch), None), (1, 1));
}
