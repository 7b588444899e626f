//! What planner and ladder see of the connected nodes, and which models are in use, from the sessions.

use std::collections::BTreeMap;

use pomona_common::{ModelName, NodeId};
use pomona_decide::{ClusterState, Inventory, NodeInventory, NodeSignals, StoreInventory};

use crate::sessions::Sessions;

/// Nodes that have reported: before that, nothing is known about their memory.
pub(crate) fn inventory(sessions: &Sessions) -> Inventory {
    let nodes = sessions.all();
    nodes
        .iter()
        .filter_map(|(id, connected)| {
            let (_, report) = connected.report()?;
            let joules = sessions.collector.joules_per_token(*id);
            let store = StoreInventory {
                stored: connected.stored(),
                serves: connected.serves(),
                disk_free: connected.disk_free(),
            };
            Some((*id, NodeInventory::of(&report, connected.heard(), store, joules)))
        })
        .collect()
}

/// What the ladder sees of the nodes that have reported.
pub(crate) fn signals(sessions: &Sessions) -> BTreeMap<NodeId, NodeSignals> {
    let nodes = sessions.all().into_iter();
    nodes
        .filter_map(|(id, connected)| {
            let (_, report) = connected.report()?;
            let mut signals = NodeSignals::of(&report, connected.signs(), connected.heard());
            signals.speeds = connected.speeds();
            signals.kill_causes = connected.kill_causes();
            Some((id, signals))
        })
        .collect()
}

/// Notices from the reports which models are in use, whoever sent the requests.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    tokens: BTreeMap<(NodeId, ModelName), u64>,
    /// When a model was last seen in use, in seconds since 1970.
    used_s: BTreeMap<ModelName, u64>,
}

impl Usage {
    /// Models whose use is to be written down, and the time for all of them.
    pub(crate) fn take_due(
        &mut self,
        sessions: &Sessions,
        state: &ClusterState,
        now_s: u64,
    ) -> Option<(Vec<ModelName>, u64)> {
        self.look(sessions, now_s);
        self.used_s
            .retain(|name, used_s| state.placement.used_s(name) < *used_s);
        let due = |(name, _): &(&ModelName, &u64)| is_stale(state, name, now_s);
        let due: Vec<(&ModelName, &u64)> = self.used_s.iter().filter(due).collect();
        // Of several times the earliest: a step later the others are due again.
        let at_s = due.iter().map(|(_, used_s)| **used_s).min()?;
        Some((due.into_iter().map(|(name, _)| name.clone()).collect(), at_s))
    }

    fn look(&mut self, sessions: &Sessions, now_s: u64) {
        let mut tokens = BTreeMap::new();
        for (id, connected) in sessions.all() {
            let Some((_, report)) = connected.report() else {
                continue;
            };
            for (name, loaded) in report.engine.iter().flat_map(|engine| &engine.models) {
                let key = (id, name.clone());
                // The first look at a node says nothing about when its tokens were made.
                let before = self.tokens.get(&key).copied().unwrap_or(loaded.tokens);
                if loaded.running > 0 || loaded.waiting > 0 || loaded.tokens > before {
                    self.used_s.insert(name.clone(), now_s);
                }
                tokens.insert(key, loaded.tokens);
            }
        }
        self.tokens = tokens;
    }
}

/// Whether it is time to write down again that a model is in use.
pub(crate) fn is_stale(state: &ClusterState, model: &ModelName, now_s: u64) -> bool {
    let placement = &state.placement;
    state.catalogue.contains_key(model) && placement.used_s(model) + placement.use_step_s(model) <= now_s
}
