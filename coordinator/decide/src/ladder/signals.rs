//! What the ladder sees of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pomona_common::conditions::{Activity, Supply};
use pomona_common::report::{NodeReport, Thermal};
use pomona_common::signs::{Signs, Speeds};
use pomona_common::unit::Reading;
use pomona_common::{Bytes, Class, ModelName, Watts};

use crate::heard::Heard;

/// A person who touched the machine so lately, in seconds, is at it.
const PRESENT_S: u64 = 300;

/// Whether it is known that nobody is at a machine.
pub fn is_alone(activity: &Activity) -> bool {
    let is_idle = |idle_s: u64| idle_s > PRESENT_S;
    activity.locked.value() == Some(true) || activity.idle_s.value().is_some_and(is_idle)
}

/// What a node's last report says about its stress and its work.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeSignals {
    /// Power of the whole machine.
    pub power: Reading<Watts>,
    /// Chip or processor name.
    pub chip: String,
    /// What feeds it.
    pub supply: Option<Supply>,
    /// Whether it saves power.
    pub low_power: Option<bool>,
    /// Thermal state.
    pub thermal: Option<Thermal>,
    /// Memory pressure, percent.
    pub pressure: Option<f32>,
    /// Whether a person is at it and their own work keeps it busy: a build. A call leaves what is comfortable
    /// smaller, which the node sees to ([`Warmth`](crate::Warmth)).
    pub occupied: bool,
    /// Whether it is known that nobody is at it.
    pub is_alone: bool,
    /// Whether it is known that somebody is.
    pub is_attended: bool,
    /// Batch sequences in a slot.
    pub running: u32,
    /// Batch sequences that wait for one.
    pub waiting: u32,
    /// Slots for batch that nobody has or waits for.
    pub free_slots: u32,
    /// Models that answer there.
    pub loaded: BTreeSet<ModelName>,
    /// Of those, the ones that work on something.
    pub busy: BTreeSet<ModelName>,
    /// Bytes of weights of the models that answer there.
    pub weights: BTreeMap<ModelName, u64>,
    /// Bytes of swap in use.
    pub swap_used: Option<u64>,
    /// Bytes written to swap since the system started.
    pub swapped_out: Option<u64>,
    /// What the engine takes of the memory, percent.
    pub resident: Option<f32>,
    /// What was told of kills and answers, if anything was yet.
    pub signs: Option<Arc<Signs>>,
    /// What was said of the latest kill of its engine, by the model that is to blame.
    pub kill_causes: BTreeMap<ModelName, String>,
    /// How fast answers come, once it was told.
    pub speeds: Option<Speeds>,
    /// Why interactive answers are late or slow, if they are.
    pub late: Option<String>,
    /// The model that makes room first where memory is short, if one can.
    pub spare: Option<ModelName>,
    /// The report.
    pub heard: Heard,
}

impl NodeSignals {
    /// What the last report says.
    pub fn of(report: &NodeReport, signs: Option<Arc<Signs>>, heard: Heard) -> Self {
        let machine = &report.machine;
        let conditions = &machine.conditions;
        let activity = &conditions.activity;
        let is_alone = is_alone(activity);
        let mut signals = Self {
            power: machine.power,
            chip: machine.chip.clone(),
            supply: conditions.supply.value(),
            low_power: conditions.low_power.value(),
            thermal: machine.thermal.value(),
            pressure: machine.pressure.value().map(|percent| percent.get()),
            occupied: !is_alone && activity.indexing.value() == Some(true),
            is_alone,
            is_attended: !is_alone && activity.idle_s.value().is_some(),
            swap_used: machine.swap_used.value().map(Bytes::get),
            swapped_out: signs
                .as_ref()
                .and_then(|signs| signs.swapped_out.value())
                .map(Bytes::get),
            resident: resident(report),
            signs,
            heard,
            ..Self::default()
        };
        if let Some(engine) = &report.engine {
            let taken: u32 = engine
                .classes
                .values()
                .map(|class| class.running + class.waiting)
                .sum();
            signals.free_slots = engine.knobs.total_slots.saturating_sub(taken);
            if let Some(batch) = engine.classes.get(&Class::Batch) {
                (signals.running, signals.waiting) = (batch.running, batch.waiting);
            }
            let of_batch = engine.knobs.batch.max_slots.saturating_sub(signals.batch());
            signals.free_slots = signals.free_slots.min(of_batch);
            let weights = engine.models.iter();
            signals.weights = weights
                .map(|(name, model)| (name.clone(), model.weight_bytes))
                .collect();
            signals.loaded = engine.models.keys().cloned().collect();
            let works = engine
                .models
                .iter()
                .filter(|(_, model)| model.running + model.waiting > 0);
            signals.busy = works.map(|(name, _)| name.clone()).collect();
        }
        signals
    }

    /// Batch sequences.
    pub fn batch(&self) -> u32 {
        self.running + self.waiting
    }
}

/// The engine's footprint of physical memory, in percent; where a system tells no footprint, its RSS. Memory
/// of Metal is not in that, and mapped weights are.
fn resident(report: &NodeReport) -> Option<f32> {
    if report.engine.is_none() {
        return Some(0.0);
    }
    let machine = &report.machine;
    let engine = machine.engine;
    let bytes = engine.footprint.value().or(engine.rss.value())?.get();
    let total = machine.memory_total.value()?.get().max(1);
    Some((100.0 * bytes as f64 / total as f64) as f32)
}
