//! The interference knobs: how much each class may disturb the others.

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::relief::{Relief, Rung};

/// What batch keeps at [`Rung::Tighten`]: a quarter of its slots, so that four sequences still share a
/// step's weights where ten did; a prefill chunk that takes a step about as long as one of decoding; one
/// turn in ten.
const TIGHT_SLOTS_DIVISOR: u32 = 4;
const TIGHT_PREFILL_CHUNK: u32 = 32;
const TIGHT_STEP_SHARE: u32 = 10;

/// Knobs of one class on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassKnobs {
    /// Milliseconds that the first waiting request may wait for company. Interactive has none.
    pub window_ms: u32,
    /// Sequences of this class that run at once, at most.
    pub max_slots: u32,
    /// Slots that no other class may take.
    pub reserved_slots: u32,
    /// Prompt tokens of this class in one step, at most. It bounds how long decoding rows of the
    /// same class wait for their next token.
    pub prefill_chunk: u32,
    /// While a more urgent class runs too: the turns this class gets for each of its turns, in
    /// percent. A turn is a step, a slice of a step, or riding along in the other's step. None at all
    /// says that the class is [paused](Self::is_paused), which relief does and no configuration.
    pub step_share: u32,
}

impl ClassKnobs {
    fn knob(&mut self, name: &str) -> Option<&mut u32> {
        Some(match name {
            "window_ms" => &mut self.window_ms,
            "max_slots" => &mut self.max_slots,
            "reserved_slots" => &mut self.reserved_slots,
            "prefill_chunk" => &mut self.prefill_chunk,
            "step_share" => &mut self.step_share,
            _ => return None,
        })
    }

    /// Whether nothing of the class is admitted or runs; what has a slot keeps it, unless there are none.
    pub const fn is_paused(&self) -> bool {
        self.step_share == 0
    }
}

impl Default for ClassKnobs {
    fn default() -> Self {
        Self::of(Class::Batch)
    }
}

impl ClassKnobs {
    /// The defaults of a class. A window of 50 ms and ten slots for batch are what
    /// mlx-batch-server ships. A chunk of 128 tokens costs half as much a token as one of 32 on
    /// a CPU with OpenBLAS; its steps are cut into slices, so that nobody waits for it.
    pub const fn of(class: Class) -> Self {
        match class {
            Class::Interactive => Self {
                window_ms: 0,
                max_slots: 16,
                reserved_slots: 4,
                prefill_chunk: 256,
                step_share: 100,
            },
            Class::Background => Self {
                window_ms: 0,
                max_slots: 8,
                reserved_slots: 0,
                prefill_chunk: 128,
                step_share: 100,
            },
            Class::Batch => Self {
                window_ms: 50,
                max_slots: 10,
                reserved_slots: 0,
                prefill_chunk: 128,
                step_share: 100,
            },
        }
    }
}

/// What a cluster agrees on of its engines' knobs: how far classes may disturb each other. A machine's slots
/// and memory are its own affair. Nodes begin with what their configuration says; the first set that is
/// made replaces it on all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnobSet {
    /// Counts the sets of a cluster, from 1.
    pub version: u64,
    /// See [`EngineKnobs::slice_ms`].
    pub slice_ms: u32,
    /// Interactive class.
    pub interactive: ClassKnobs,
    /// Background class.
    pub background: ClassKnobs,
    /// Batch class.
    pub batch: ClassKnobs,
}

impl Default for KnobSet {
    fn default() -> Self {
        Self::of(&EngineKnobs::default())
    }
}

impl KnobSet {
    /// That part of an engine's knobs.
    pub fn of(knobs: &EngineKnobs) -> Self {
        Self {
            version: knobs.version,
            slice_ms: knobs.slice_ms,
            interactive: knobs.interactive.clone(),
            background: knobs.background.clone(),
            batch: knobs.batch.clone(),
        }
    }

    /// Sets one knob by its name: `slice_ms`, or class and knob as in `batch.window_ms`.
    ///
    /// # Errors
    /// No knob has the name; what there is.
    pub fn set(&mut self, name: &str, value: u32) -> Result<(), String> {
        let knob = match name.split_once('.') {
            None if name == "slice_ms" => Some(&mut self.slice_ms),
            Some(("interactive", knob)) => self.interactive.knob(knob),
            Some(("background", knob)) => self.background.knob(knob),
            Some(("batch", knob)) => self.batch.knob(knob),
            _ => None,
        };
        let knob = knob.ok_or_else(|| {
            format!(
                "no knob is called `{name}`: there are slice_ms, and window_ms, max_slots, reserved_slots, \
                 prefill_chunk and step_share of interactive, background and batch, as in batch.window_ms"
            )
        })?;
        *knob = value;
        Ok(())
    }

    /// Every contradiction, in the user's terms.
    pub fn problems(&self) -> Vec<String> {
        let roomy = EngineKnobs {
            total_slots: 1024,
            ..EngineKnobs::default()
        };
        roomy.with(self).problems()
    }
}

/// All knobs of an engine, under one version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineKnobs {
    /// Version of this set; every request records the one that served it.
    pub version: u64,
    /// Sequences of all classes and models together, at most.
    pub total_slots: u32,
    /// Memory for KV caches of all models, in bytes.
    pub kv_budget_bytes: u64,
    /// Milliseconds after which a step without interactive rows looks for more urgent work: what
    /// an interactive request waits for it, at most.
    pub slice_ms: u32,
    /// Interactive class.
    pub interactive: ClassKnobs,
    /// Background class.
    pub background: ClassKnobs,
    /// Batch class.
    pub batch: ClassKnobs,
}

impl Default for EngineKnobs {
    fn default() -> Self {
        Self {
            version: 0,
            total_slots: 24,
            kv_budget_bytes: 2 * 1024 * 1024 * 1024,
            slice_ms: 30,
            interactive: ClassKnobs::of(Class::Interactive),
            background: ClassKnobs::of(Class::Background),
            batch: ClassKnobs::of(Class::Batch),
        }
    }
}

impl EngineKnobs {
    /// The knobs of one class.
    pub const fn class(&self, class: Class) -> &ClassKnobs {
        match class {
            Class::Interactive => &self.interactive,
            Class::Background => &self.background,
            Class::Batch => &self.batch,
        }
    }

    /// The knobs of one class, to change.
    pub const fn class_mut(&mut self, class: Class) -> &mut ClassKnobs {
        match class {
            Class::Interactive => &mut self.interactive,
            Class::Background => &mut self.background,
            Class::Batch => &mut self.batch,
        }
    }

    /// These knobs with what the cluster agrees on. Slots that are reserved by it and not there on a small
    /// machine are left out, of the least urgent class first.
    #[must_use]
    pub fn with(&self, set: &KnobSet) -> Self {
        let mut knobs = Self {
            version: set.version,
            slice_ms: set.slice_ms,
            interactive: set.interactive.clone(),
            background: set.background.clone(),
            batch: set.batch.clone(),
            ..self.clone()
        };
        // One is left for whoever has none.
        let mut left = knobs.total_slots.saturating_sub(1);
        for class in Class::ALL {
            let of_class = knobs.class_mut(class);
            of_class.reserved_slots = of_class.reserved_slots.min(left);
            left -= of_class.reserved_slots;
        }
        knobs
    }

    /// These knobs on a node that is relieved. Only batch's differ.
    #[must_use]
    pub fn relieved(&self, relief: Relief) -> Self {
        let mut knobs = self.clone();
        let batch = &mut knobs.batch;
        if relief.rung == Rung::Tighten {
            batch.max_slots = (batch.max_slots / TIGHT_SLOTS_DIVISOR).max(1);
            batch.reserved_slots = batch.reserved_slots.min(batch.max_slots);
            batch.prefill_chunk = batch.prefill_chunk.min(TIGHT_PREFILL_CHUNK);
            batch.step_share = batch.step_share.min(TIGHT_STEP_SHARE);
        }
        if relief.rung >= Rung::Pause {
            batch.step_share = 0;
            batch.reserved_slots = 0;
            if relief.frees_memory {
                batch.max_slots = 0;
            }
        }
        knobs
    }

    /// These knobs on a machine that is to stay cool, with so many percent of batch's slots, but one at least. At nothing
    /// batch stands still, and nothing new begins.
    #[must_use]
    pub fn paced(&self, percent: u32) -> Self {
        let mut knobs = self.clone();
        let slots = &mut knobs.batch.max_slots;
        *slots = (*slots * percent.min(100)).div_ceil(100);
        knobs.batch.reserved_slots = knobs.batch.reserved_slots.min(knobs.batch.max_slots);
        knobs
    }

    /// What may enter a slot by these knobs: [paced](Self::paced), and where the system is short of memory nothing but
    /// what a person waits for.
    #[must_use]
    pub fn entered(&self, percent: u32, is_short: bool) -> Self {
        let mut knobs = self.paced(percent);
        if is_short {
            for knobs in [&mut knobs.background, &mut knobs.batch] {
                (knobs.max_slots, knobs.reserved_slots) = (0, 0);
            }
        }
        knobs
    }

    /// Every contradiction in these knobs, in the user's terms; empty when they are sound.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for class in Class::ALL {
            let knobs = self.class(class);
            let mut check = |sound: bool, text: &str| {
                if !sound {
                    problems.push(format!("{class}: {text}"));
                }
            };
            check(knobs.max_slots >= 1, "max_slots must be at least 1");
            check(
                knobs.reserved_slots <= knobs.max_slots,
                "reserved_slots exceeds max_slots",
            );
            check(
                (1..=65_536).contains(&knobs.prefill_chunk),
                "prefill_chunk must be 1 to 65536",
            );
            check(
                (1..=100).contains(&knobs.step_share),
                "step_share must be 1 to 100 percent",
            );
            check(knobs.window_ms <= 10_000, "window_ms must be at most 10000");
        }
        if self.interactive.window_ms != 0 {
            problems
                .push("interactive: window_ms must be 0, interactive requests never wait for company".into());
        }
        if !(1..=1000).contains(&self.slice_ms) {
            problems.push("slice_ms must be 1 to 1000".into());
        }
        let reserved: u32 = Class::ALL.iter().map(|c| self.class(*c).reserved_slots).sum();
        if !(1..=1024).contains(&self.total_slots) {
            problems.push("total_slots must be 1 to 1024".into());
        } else if reserved >= self.total_slots && reserved > 0 {
            problems.push(format!(
                "reserved_slots of all classes ({reserved}) leave none of total_slots ({}) for the others",
                self.total_slots
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound() {
        assert_eq!(EngineKnobs::default().problems(), Vec::<String>::new());
    }

    #[test]
    fn a_set_replaces_what_classes_may_do_and_no_machine_promises_slots_it_has_not() -> Result<(), String> {
        let small = EngineKnobs {
            total_slots: 6,
            kv_budget_bytes: 7,
            ..EngineKnobs::default()
        };
        let mut set = KnobSet::of(&EngineKnobs::default());
        set.version = 3;
        for (name, value) in [
            ("slice_ms", 20),
            ("batch.window_ms", 200),
            ("interactive.reserved_slots", 5),
            ("batch.reserved_slots", 5),
        ] {
            set.set(name, value)?;
        }
        assert_eq!(set.problems(), Vec::<String>::new());
        let knobs = small.with(&set);
        assert_eq!(
            (knobs.version, knobs.slice_ms, knobs.batch.window_ms),
            (3, 20, 200)
        );
        assert_eq!((knobs.total_slots, knobs.kv_budget_bytes), (6, 7));
        assert_eq!(
            (knobs.interactive.reserved_slots, knobs.batch.reserved_slots),
            (5, 0)
        );
        assert!(knobs.problems().is_empty());
        assert!(
            set.set("batch.windows", 1)
                .is_err_and(|why| why.contains("window_ms"))
        );
        set.set("interactive.window_ms", 80)?;
        assert_eq!(set.problems().len(), 1);
        Ok(())
    }

    #[test]
    fn relief_touches_batch_only_and_more_with_every_rung() {
        let knobs = EngineKnobs::default();
        for frees_memory in [false, true] {
            for rung in Rung::ALL {
                let relieved = knobs.relieved(Relief { rung, frees_memory });
                assert_eq!(relieved.interactive, knobs.interactive);
                assert_eq!(relieved.background, knobs.background);
                assert_eq!(relieved.batch == knobs.batch, rung < Rung::Tighten, "{rung}");
                let keeps_slots = relieved.batch.max_slots == knobs.batch.max_slots;
                assert_eq!(
                    keeps_slots,
                    rung != Rung::Tighten && !(frees_memory && rung > Rung::Tighten)
                );
                assert_eq!(relieved.batch.is_paused(), rung >= Rung::Pause, "{rung}");
                let gives_back = frees_memory && rung >= Rung::Pause;
                assert_eq!(relieved.batch.max_slots == 0, gives_back, "{rung}");
            }
        }
    }

    #[test]
    fn a_machine_that_rests_has_fewer_slots_for_batch() {
        let knobs = EngineKnobs::default();
        let slots = |percent| knobs.paced(percent).batch.max_slots;
        assert_eq!([0, 1, 10, 11, 99, 100, 900].map(slots), [0, 1, 1, 2, 10, 10, 10]);
        assert_eq!(knobs.paced(1).interactive, knobs.interactive);
        assert_eq!(knobs.paced(100), knobs);
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let mut knobs = EngineKnobs::default();
        knobs.interactive.window_ms = 80;
        knobs.batch.step_share = 0;
        knobs.total_slots = 0;
        assert_eq!(knobs.problems().len(), 3);
    }
}
