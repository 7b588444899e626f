//! Which model belongs on which node. Pure: state and inventory in, the next plan out, with the
//! reason for every place and for every model without one.

use std::collections::BTreeMap;

use pomona_common::plan::{NodeTarget, Plan};
use pomona_common::{ModelName, ModelRecord, NodeId};

use crate::state::ClusterState;

/// Memory that is never planned for: the system, the agent, and the person's own programs.
pub const RESERVE_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// What the leader sees of the connected nodes.
pub type Inventory = BTreeMap<NodeId, NodeInventory>;

/// What one connected node says about itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeInventory {
    /// Models in its store.
    pub stored: Vec<ModelRecord>,
    /// Physical memory; `None` when the node cannot tell.
    pub memory_total: Option<u64>,
    /// KV budget of its engine.
    pub kv_budget: u64,
    /// Whether its back end turns all weights into 32-bit floats.
    pub dequantizes: bool,
}

/// The result of planning.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOutcome {
    /// The next plan; `None` when the present one stands.
    pub plan: Option<Plan>,
    /// Models without a place, and why.
    pub unplaced: BTreeMap<ModelName, String>,
}

/// Plans: every catalogued model on every connected node that stores it and has room for it,
/// in order of name, so that the result depends on nothing else. A node that is not connected
/// keeps its target: it goes on serving by it.
pub fn plan(state: &ClusterState, inventory: &Inventory) -> PlanOutcome {
    let mut next = state.plan.clone();
    next.nodes.retain(|id, _| state.nodes.contains_key(id));
    let mut unplaced: BTreeMap<ModelName, String> = state
        .catalogue
        .keys()
        .map(|name| (name.clone(), "no connected node stores it".to_owned()))
        .collect();
    for (id, node) in inventory.iter().filter(|(id, _)| state.nodes.contains_key(id)) {
        let (models, refused) = place_on(node, &state.catalogue);
        for (name, why) in refused {
            unplaced.insert(name, format!("{why} on node {}", id.short()));
        }
        for name in models.keys() {
            unplaced.remove(name);
        }
        let target = next.nodes.entry(*id).or_default();
        if target.models != models || target.generation == 0 {
            *target = NodeTarget {
                generation: target.generation + 1,
                models,
            };
        }
    }
    for name in next.nodes.values().flat_map(|target| target.models.keys()) {
        unplaced.remove(name);
    }
    let changed = next.nodes != state.plan.nodes;
    let plan = changed.then(|| Plan {
        id: state.plan.id + 1,
        parent: Some(state.plan.id),
        ..next
    });
    PlanOutcome { plan, unplaced }
}

type Placed = (BTreeMap<ModelName, String>, BTreeMap<ModelName, String>);

fn place_on(node: &NodeInventory, catalogue: &BTreeMap<ModelName, ModelRecord>) -> Placed {
    let mut placed = BTreeMap::new();
    let mut refused = BTreeMap::new();
    let room = node
        .memory_total
        .map(|total| total.saturating_sub(RESERVE_BYTES + node.kv_budget));
    let mut used = 0;
    for (name, record) in catalogue {
        let Some(stored) = node.stored.iter().find(|stored| stored.name == *name) else {
            continue;
        };
        if stored.digests != record.digests {
            refused.insert(name.clone(), "other contents under this name".to_owned());
            continue;
        }
        let need = if node.dequantizes {
            record.dequantized_bytes
        } else {
            record.weight_bytes
        };
        if room.is_some_and(|room| used + need > room) {
            let why = format!("{need} bytes of weights do not fit beside {used}");
            refused.insert(name.clone(), why);
            continue;
        }
        used += need;
        placed.insert(name.clone(), "stored here and fits".to_owned());
    }
    (placed, refused)
}

#[cfg(test)]
mod tests {
    use pomona_common::ModelDigests;
    use proptest::prelude::*;

    use super::*;
    use crate::{Command, apply};

    fn record(name: &str, weight_bytes: u64) -> Result<ModelRecord, pomona_common::id::IdError> {
        Ok(ModelRecord {
            name: name.parse()?,
            digests: ModelDigests {
                weights: "w".into(),
                tokenizer: "t".into(),
                template: "c".into(),
            },
            weight_bytes,
            dequantized_bytes: 8 * weight_bytes,
            kv_bytes_per_token: 1,
            context: 1024,
            created_s: 0,
        })
    }

    const GIB: u64 = 1 << 30;

    proptest! {
        /// Applying a plan and planning again changes nothing; no node is filled past its
        /// memory; an empty node more removes nothing; a revoked one gets nothing.
        #[test]
        fn plans_settle_fit_and_are_monotone(sizes in prop::collection::vec(1..8u64, 0..8), totals in prop::collection::vec(1..32u64, 0..6)) {
            let mut state = ClusterState::default();
            let mut stored = Vec::new();
            for (i, size) in sizes.iter().enumerate() {
                let record = record(&format!("m{i}"), size * GIB).map_err(|e| TestCaseError::fail(e.to_string()))?;
                apply(&mut state, &Command::AddModel(record.clone()));
                stored.push(record);
            }
            for i in (0..totals.len() as u128).chain([99]) {
                let member = Command::AdmitNode { id: NodeId::from_bits(i), name: "n".into(), now_s: 0 };
                apply(&mut state, &member);
            }
            let mut inventory: Inventory = totals.iter().enumerate().map(|(i, total)| {
                let node = NodeInventory {
                    stored: stored.clone(),
                    memory_total: Some(total * GIB),
                    kv_budget: GIB,
                    dequantizes: false,
                };
                (NodeId::from_bits(i as u128), node)
            }).collect();
            if let Some(next) = plan(&state, &inventory).plan {
                prop_assert_eq!(apply(&mut state, &Command::SetPlan(next)), crate::Reply::Done);
            }
            prop_assert_eq!(plan(&state, &inventory).plan, None);
            for (id, node) in &inventory {
                let placed: u64 = state.plan.nodes[id].models.keys().map(|name| state.catalogue[name].weight_bytes).sum();
                let room = node.memory_total.unwrap_or(0).saturating_sub(RESERVE_BYTES + node.kv_budget);
                prop_assert!(placed <= room);
            }
            let before = state.plan.nodes.clone();
            inventory.insert(NodeId::from_bits(99), NodeInventory::default());
            if let Some(next) = plan(&state, &inventory).plan {
                for (id, target) in before {
                    prop_assert_eq!(&next.nodes[&id], &target);
                }
            }
            // Who was revoked has no target, though it may still be connected for a moment.
            for id in inventory.keys().copied().collect::<Vec<_>>() {
                apply(&mut state, &Command::RevokeNode { node: id, now_s: 1 });
                prop_assert!(!state.plan.nodes.contains_key(&id));
                let replanned = plan(&state, &inventory).plan;
                prop_assert!(replanned.is_none_or(|next| !next.nodes.contains_key(&id)));
            }
        }
    }
}
