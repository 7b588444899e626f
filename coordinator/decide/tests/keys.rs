//! What entries let keys take is counted once, however often batches are lost, said again to this leader or
//! the next, and whoever restarts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

use pomona_common::key::{KeyHash, KeyLimits, KeyRecord};
use pomona_common::spending::{Account, Batch, EntryId, Windows};
use pomona_common::{ClusterId, KeyId, ModelName, NodeId};
use pomona_decide::{ClusterState, Command, apply};
use pomona_keys::{Denied, KeyRing, Meter};
use proptest::prelude::*;

const KEY: KeyId = KeyId::from_bits(1);
const ENTRIES: usize = 3;
const PER_MINUTE: u64 = 1000;
/// A midnight: the events below take less than the day.
const BEGIN_S: u64 = 6 * 86_400;

#[derive(Debug, Clone)]
enum Event {
    /// A request of so many tokens comes to an entry, and ends at once.
    Ask { entry: usize, tokens: u64 },
    /// An entry's batch reaches some leader, so often.
    Tell { entry: usize, times: usize },
    /// A batch that was on its way for long arrives: one of this process, or of the one before.
    Late { entry: usize, ago: usize },
    /// Time passes.
    Wait { seconds: u64 },
    /// An entry hears of what is counted.
    Hear { entry: usize },
    /// An entry's process ends and starts anew.
    Restart { entry: usize },
}

fn event() -> impl Strategy<Value = Event> {
    let entry = 0..ENTRIES;
    prop_oneof![
        4 => (entry.clone(), 1..120u64).prop_map(|(entry, tokens)| Event::Ask { entry, tokens }),
        3 => (entry.clone(), 1..3usize).prop_map(|(entry, times)| Event::Tell { entry, times }),
        1 => (entry.clone(), 0..6usize).prop_map(|(entry, ago)| Event::Late { entry, ago }),
        1 => (1..200u64).prop_map(|seconds| Event::Wait { seconds }),
        3 => entry.clone().prop_map(|entry| Event::Hear { entry }),
        1 => entry.prop_map(|entry| Event::Restart { entry }),
    ]
}

struct Entry {
    id: EntryId,
    meter: Meter,
    ring: KeyRing,
    /// Batches of this process and the one before, the latest last.
    told: Vec<Batch>,
    instance: u64,
    /// Tokens spent here that no leader has counted.
    uncounted: u64,
}

struct World {
    state: ClusterState,
    now_s: u64,
    entries: Vec<Entry>,
    spent: u64,
    lost: u64,
    model: ModelName,
}

impl World {
    fn new() -> Self {
        let mut state = ClusterState::default();
        apply(&mut state, &Command::Found(ClusterId::from_bits(1)));
        let entries = (0..ENTRIES).map(|index| {
            let node = NodeId::from_bits(index as u128 + 1);
            let (id, now_s) = (node, BEGIN_S);
            let name = format!("n{index}");
            apply(&mut state, &Command::AdmitNode { id, name, now_s });
            Entry {
                id: EntryId::Node(node),
                meter: Meter::new(1),
                ring: KeyRing::default(),
                told: Vec::new(),
                instance: 1,
                uncounted: 0,
            }
        });
        let entries = entries.collect();
        let limits = KeyLimits {
            tokens_per_minute: Some(PER_MINUTE),
            ..KeyLimits::default()
        };
        let mut record = KeyRecord::new("ci", KeyHash([0; 32]), 0);
        record.terms.limits = limits;
        let record = Box::new(record);
        apply(&mut state, &Command::MakeKey { id: KEY, record });
        Self {
            state,
            now_s: BEGIN_S,
            entries,
            spent: 0,
            lost: 0,
            model: "org/m".parse().unwrap(),
        }
    }

    fn windows(&self) -> Windows {
        let account = Account {
            key: KEY,
            model: None,
        };
        self.state.keys.spent.get(&account).copied().unwrap_or_default()
    }

    /// All that is counted; nothing here takes longer than the day.
    fn counted(&self) -> u64 {
        self.windows().day(self.now_s).tokens
    }

    fn charge(&mut self, entry: usize, batch: Batch) {
        let before = self.counted();
        let is_present = batch.instance == self.entries[entry].instance;
        let charges = vec![(self.entries[entry].id, batch)];
        let now_s = self.now_s;
        apply(&mut self.state, &Command::ChargeKeys { charges, now_s });
        let new = self.counted() - before;
        if is_present {
            self.entries[entry].uncounted -= new;
        } else {
            // It was taken for lost, with its process.
            self.lost -= new;
        }
    }

    fn ask(&mut self, entry: usize, tokens: u64) -> Result<(), Denied> {
        let (record, now_s) = (&self.state.keys.keys[&KEY], self.now_s);
        let Entry {
            meter,
            ring,
            uncounted,
            ..
        } = &mut self.entries[entry];
        let mut held = meter.begin(ring, (KEY, record), &self.model, now_s)?;
        let outcome = meter.reserve(ring, record, &mut held, tokens, now_s);
        let took = if outcome.is_ok() { tokens } else { 0 };
        meter.end(held, took, now_s);
        *uncounted += took;
        self.spent += took;
        outcome
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Ask { entry, tokens } => {
                let _ = self.ask(entry, tokens);
            }
            Event::Tell { entry, times } => {
                let one = &mut self.entries[entry];
                let Some(batch) = one.meter.batch() else {
                    return;
                };
                if one.told.last() != Some(&batch) {
                    one.told.push(batch.clone());
                }
                for _ in 0..times {
                    self.charge(entry, batch.clone());
                }
            }
            Event::Late { entry, ago } => {
                let mut told = self.entries[entry].told.iter().rev();
                if let Some(batch) = told.nth(ago).cloned() {
                    self.charge(entry, batch);
                }
            }
            Event::Wait { seconds } => self.now_s += seconds,
            Event::Hear { entry } => {
                let one = &mut self.entries[entry];
                one.ring.spent = self.state.keys.spent.clone();
                let charged = self.state.keys.charged.get(&one.id).map(|counted| counted.latest);
                one.meter.counted(charged, self.now_s);
            }
            Event::Restart { entry } => {
                let one = &mut self.entries[entry];
                self.lost += std::mem::take(&mut one.uncounted);
                one.told.retain(|batch| batch.instance == one.instance);
                one.instance += 1;
                one.meter = Meter::new(one.instance);
            }
        }
    }
}

proptest! {
    #[test]
    fn nothing_is_forgotten_or_counted_twice(events in prop::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        for event in &events {
            world.step(event);
            prop_assert!(world.counted() <= world.spent - world.lost);
        }
        // Whoever is left tells all that it has.
        for entry in 0..ENTRIES {
            for _ in 0..3 {
                world.step(&Event::Tell { entry, times: 2 });
                world.step(&Event::Hear { entry });
            }
        }
        prop_assert_eq!(world.counted(), world.spent - world.lost);
        // One that knows everything keeps the limit, to the token.
        for entry in 0..ENTRIES {
            world.step(&Event::Hear { entry });
        }
        let spent = world.windows().minute(world.now_s).tokens;
        let left = PER_MINUTE.saturating_sub(spent);
        prop_assert!(world.ask(0, left + 1).is_err());
        prop_assert_eq!(world.ask(0, left).is_ok(), spent <= PER_MINUTE);
    }
}
