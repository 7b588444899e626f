//! What the leader sees of the connected nodes.

use std::collections::{BTreeMap, BTreeSet};

use pomona_common::conditions::Supply;
use pomona_common::report::{ADOPTED_BACKEND, NodeReport, Thermal};
use pomona_common::{ModelName, ModelRecord, NodeId};

use crate::heard::Heard;

/// By node.
pub type Inventory = BTreeMap<NodeId, NodeInventory>;

/// What one connected node says about itself. `None` is what it cannot tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeInventory {
    /// Models in its store.
    pub stored: Vec<ModelRecord>,
    /// Physical memory, bytes.
    pub memory_total: Option<u64>,
    /// Memory to be had without swapping, bytes.
    pub memory_available: Option<u64>,
    /// Memory pressure, percent.
    pub pressure: Option<f32>,
    /// KV budget of its engine, bytes.
    pub kv_budget: u64,
    /// Whether its back end turns all weights into 32-bit floats.
    pub dequantizes: bool,
    /// Whether its engine is a server of another program.
    pub lent: bool,
    /// Whether it gives weights to other nodes.
    pub serves: bool,
    /// Free bytes of the disk with its store.
    pub disk_free: Option<u64>,
    /// Models that answer there.
    pub loaded: BTreeSet<ModelName>,
    /// Of those, the ones that work on something.
    pub busy: BTreeSet<ModelName>,
    /// Models that it was to load and could not.
    pub failed: BTreeSet<ModelName>,
    /// Joules that a token took there lately.
    pub joules_per_token: Option<f32>,
    /// Thermal state.
    pub thermal: Option<Thermal>,
    /// What feeds it.
    pub supply: Option<Supply>,
    /// Whether it saves power.
    pub low_power: Option<bool>,
    /// Whether a person's own work keeps it busy: a build, video, a call.
    pub occupied: bool,
    /// Its last report.
    pub heard: Heard,
}

/// What a connected node says about its store.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StoreInventory {
    /// See [`NodeInventory::stored`].
    pub stored: Vec<ModelRecord>,
    /// See [`NodeInventory::serves`].
    pub serves: bool,
    /// See [`NodeInventory::disk_free`].
    pub disk_free: Option<u64>,
}

impl NodeInventory {
    /// What the last report says, with what is in the node's store.
    pub fn of(
        report: &NodeReport,
        heard: Heard,
        store: StoreInventory,
        joules_per_token: Option<f32>,
    ) -> Self {
        let machine = &report.machine;
        let conditions = &machine.conditions;
        let activity = &conditions.activity;
        let models = report.engine.as_ref().map(|engine| &engine.models);
        let names = |wanted: fn(&pomona_common::report::LoadedModel) -> bool| -> BTreeSet<ModelName> {
            let models = models.into_iter().flatten();
            models
                .filter(|(_, loaded)| wanted(loaded))
                .map(|(name, _)| name.clone())
                .collect()
        };
        let works = [activity.indexing, activity.video, activity.capture];
        Self {
            stored: store.stored,
            serves: store.serves,
            disk_free: store.disk_free,
            memory_total: machine.memory_total.value().map(|bytes| bytes.get()),
            memory_available: machine.memory_available.value().map(|bytes| bytes.get()),
            pressure: machine.pressure.value().map(|percent| percent.get()),
            kv_budget: report.kv_budget_bytes,
            lent: report
                .engine
                .as_ref()
                .is_some_and(|engine| engine.build.backend == ADOPTED_BACKEND),
            dequantizes: report.dequantizes,
            loaded: names(|_| true),
            busy: names(|loaded| loaded.running > 0 || loaded.waiting > 0),
            failed: report.failed.iter().cloned().collect(),
            joules_per_token,
            thermal: machine.thermal.value(),
            supply: conditions.supply.value(),
            low_power: conditions.low_power.value(),
            occupied: works.iter().any(|reading| reading.value() == Some(true)),
            heard,
        }
    }
}
