//! What the planner sees of the connected nodes, and which models are in use, from the sessions.

use std::collections::BTreeMap;

use pomona_common::{ModelName, NodeId};
use pomona_decide::{ClusterState, Inventory, Keep, NodeInventory};

use crate::sessions::Sessions;

/// That a model is in use is written down this often at most, in seconds; more often where a short
/// time to live needs it.
const USE_STEP_S: u64 = 60;

/// Nodes that have reported: before that, nothing is known about their memory.
pub(crate) fn inventory(sessions: &Sessions) -> Inventory {
    let nodes = sessions.all();
    nodes
        .iter()
        .filter_map(|(id, connected)| {
            let (age, report) = connected.report()?;
            let joules = sessions.collector.joules_per_token(*id);
            let age_ms = age.as_millis() as u64;
            Some((
                *id,
                NodeInventory::of(&report, age_ms, connected.stored(), joules),
            ))
        })
        .collect()
}

/// Notices from the reports which models are in use, whoever sent the requests.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    tokens: BTreeMap<(NodeId, ModelName), u64>,
}

impl Usage {
    /// Models that are in use and not written down as such lately.
    pub(crate) fn to_record(
        &mut self,
        sessions: &Sessions,
        state: &ClusterState,
        now_s: u64,
    ) -> Vec<ModelName> {
        let (mut tokens, mut used) = (BTreeMap::new(), Vec::new());
        for (id, connected) in sessions.all() {
            let Some((_, report)) = connected.report() else {
                continue;
            };
            for (name, loaded) in report.engine.iter().flat_map(|engine| &engine.models) {
                let key = (id, name.clone());
                // The first look at a node says nothing about when its tokens were made.
                let before = self.tokens.get(&key).copied().unwrap_or(loaded.tokens);
                if loaded.running + loaded.waiting > 0 || loaded.tokens > before {
                    used.push(name.clone());
                }
                tokens.insert(key, loaded.tokens);
            }
        }
        self.tokens = tokens;
        used.sort();
        used.dedup();
        used.retain(|name| is_stale(state, name, now_s));
        used
    }
}

/// Whether it is time to write down again that a model is in use.
pub(crate) fn is_stale(state: &ClusterState, model: &ModelName, now_s: u64) -> bool {
    let step_s = match state.placement.policies.get(model).map(|policy| policy.keep) {
        Some(Keep::Ttl(ttl_s)) => (ttl_s / 4).clamp(1, USE_STEP_S),
        _ => USE_STEP_S,
    };
    state.catalogue.contains_key(model) && state.placement.used_s(model) + step_s <= now_s
}
