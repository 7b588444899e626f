//! What waits for a slot of a server, and who is next: pure but for the times that jobs carry.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::{Class, EngineKnobs, Generation, ModelName, TextAsk};
use tokio::time::Instant;

/// An answer that is to be made.
pub(super) struct Job {
    pub(super) generation: Generation,
    pub(super) text: TextAsk,
    pub(super) since: Instant,
    /// For how long it waits.
    pub(super) wait: Duration,
    /// When its first text came.
    pub(super) first: Option<Instant>,
    /// Texts that came.
    pub(super) texts: u32,
}

/// What a server can do at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slots {
    pub(super) all: u32,
    /// What it has to do for those who ask it directly.
    pub(super) others: u32,
}

/// See the module's documentation; sequences count up, so the lowest has waited longest.
#[derive(Default)]
pub(super) struct Queue(BTreeMap<u64, Job>);

impl Queue {
    pub(super) fn push(&mut self, sequence: u64, job: Job) {
        self.0.insert(sequence, job);
    }

    pub(super) fn remove(&mut self, sequence: u64) {
        self.0.remove(&sequence);
    }

    /// Takes all of a kind out, and says which these were.
    pub(super) fn remove_all(&mut self, is_it: impl Fn(&Job) -> bool) -> Vec<(u64, Generation)> {
        let found = self.0.extract_if(.., |_, job| is_it(job));
        found.map(|(sequence, job)| (sequence, job.generation)).collect()
    }

    /// How many wait for the same server and go before one that comes now: what is less urgent keeps nobody out.
    pub(super) fn ahead_of(&self, generation: &Generation) -> u32 {
        self.count(|one| one.model == generation.model && one.class <= generation.class)
    }

    pub(super) fn count(&self, is_it: impl Fn(&Generation) -> bool) -> u32 {
        self.0.values().filter(|job| is_it(&job.generation)).count() as u32
    }

    /// The next that has a slot, by the knobs and by what runs; `slots` are those of a model's server. A server
    /// cannot stop what it has begun, so the last slot of one that has several is for who is waited for, and batch begins
    /// in none that it needs for others.
    pub(super) fn next(
        &mut self,
        knobs: &EngineKnobs,
        running: &[(ModelName, Class)],
        slots: impl Fn(&ModelName) -> Slots,
    ) -> Option<(u64, Job)> {
        let count = |is_it: &dyn Fn(&(ModelName, Class)) -> bool| {
            running.iter().filter(|one| is_it(one)).count() as u32
        };
        if running.len() as u32 >= knobs.total_slots {
            return None;
        }
        for class in Class::ALL {
            let of_class = knobs.class(class);
            if of_class.is_paused() || count(&|one| one.1 == class) >= of_class.max_slots {
                continue;
            }
            let has_slot = |model: &ModelName| {
                let Slots { all, others } = slots(model);
                let kept = match class {
                    Class::Batch => others + u32::from(all > 1),
                    Class::Interactive | Class::Background => 0,
                };
                count(&|one| one.0 == *model) + kept < all
            };
            let next = self
                .0
                .iter()
                .find(|(_, job)| job.generation.class == class && has_slot(&job.generation.model));
            if let Some(sequence) = next.map(|(sequence, _)| *sequence) {
                return self.0.remove(&sequence).map(|job| (sequence, job));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::{Relief, Rung, TextPrompt};
    use proptest::prelude::*;

    use super::*;

    fn job(model: &str, class: Class) -> Option<Job> {
        let model: ModelName = model.parse().ok()?;
        let text = TextAsk::new(model.clone(), TextPrompt::Text("a".into()), 1);
        let generation = Generation {
            class,
            ..Generation::canary(model)
        };
        Some(Job {
            generation,
            text,
            since: Instant::now(),
            wait: Duration::from_secs(30),
            first: None,
            texts: 0,
        })
    }

    proptest! {
        /// Whatever waits and runs: no server has more than its slots, batch leaves one free, who is waited for goes
        /// first, and nothing is left that could start.
        #[test]
        fn slots_are_kept_and_used(
            jobs in prop::collection::vec((0..2usize, 0..3usize), 0..30),
            slots in prop::collection::vec((0..5u32, 0..3u32), 2),
            rung in 0..4usize,
        ) {
            let names = ["org/a", "org/b"];
            let rung = [Rung::Normal, Rung::Hold, Rung::Tighten, Rung::Pause][rung];
            let relief = Relief { rung, ..Relief::default() };
            let knobs = EngineKnobs::default().relieved(relief);
            let of = |model: &ModelName| {
                let (all, others) = slots[usize::from(model.as_str() == "org/b")];
                Slots { all, others }
            };
            let (mut queue, mut running) = (Queue::default(), Vec::new());
            for (sequence, (model, class)) in jobs.iter().enumerate() {
                let job = job(names[*model], Class::ALL[*class]);
                queue.push(sequence as u64, job.ok_or_else(|| TestCaseError::fail("a name"))?);
            }
            while let Some((_, job)) = queue.next(&knobs, &running, of) {
                let next = (job.generation.model.clone(), job.generation.class);
                // Nobody more urgent could have had that slot.
                let waits = |class: Class| queue.count(|one| one.model == next.0 && one.class == class);
                let is_urgent = |class: &Class| *class < next.1 && !knobs.class(*class).is_paused();
                let ahead: u32 = Class::ALL.into_iter().filter(is_urgent).map(waits).sum();
                prop_assert_eq!(ahead, 0);
                running.push(next);
                for name in names {
                    let its = running.iter().filter(|(model, _)| model.as_str() == name);
                    let batch = its.clone().filter(|(_, class)| *class == Class::Batch).count() as u32;
                    let name: ModelName = name.parse().map_err(|_| TestCaseError::fail("a name"))?;
                    let Slots { all, others } = of(&name);
                    prop_assert!(its.count() as u32 <= all);
                    let kept = others + u32::from(all > 1);
                    prop_assert!(batch <= all.saturating_sub(kept));
                }
            }
            if rung == Rung::Pause {
                prop_assert!(running.iter().all(|(_, class)| *class != Class::Batch));
            }
            let idle = |name: &str| {
                let (all, _) = slots[usize::from(name == "org/b")];
                all > 0 && running.iter().all(|(model, _)| model.as_str() != name)
            };
            let waits = queue.count(|one| one.class == Class::Interactive && idle(one.model.as_str()));
            prop_assert_eq!(waits, 0);
        }
    }
}
