//! How long the leader waits for nodes that may be back in a moment, before it plans without them.
//! Times are of any clock that stands still while the machine sleeps.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::NodeId;

use crate::planner::Inventory;
use crate::state::ClusterState;

/// A node that is gone: its session ended after 2.5 s of silence (ten on a long line), and a loss is answered by a new
/// plan within two seconds more.
const GONE: Duration = Duration::from_millis(1000);
/// A coordinator that has just begun to lead waits until nodes have dialled it and reported.
const BEGIN: Duration = Duration::from_secs(3);
/// All waiting together, between two plans: nodes that come and go must not stop planning.
const AT_MOST: Duration = Duration::from_secs(3);

/// Of one time of leading.
#[derive(Debug, Default)]
pub struct Patience {
    began: Option<Duration>,
    /// Planned nodes that are not there, since when.
    missing: BTreeMap<NodeId, Duration>,
    waits_since: Option<Duration>,
}

impl Patience {
    /// Whether the plan is left as it is for now.
    pub fn waits(&mut self, state: &ClusterState, inventory: &Inventory, now: Duration) -> bool {
        let began = *self.began.get_or_insert(now);
        let planned = state
            .plan
            .nodes
            .iter()
            .filter(|(_, target)| !target.models.is_empty());
        let missing = planned
            .map(|(id, _)| *id)
            .filter(|id| !inventory.contains_key(id));
        let mut since: BTreeMap<NodeId, Duration> = BTreeMap::new();
        for id in missing {
            since.insert(id, self.missing.get(&id).copied().unwrap_or(now));
        }
        self.missing = since;
        let young = now < began + BEGIN;
        let may_return = self.missing.values().any(|since| young || now < *since + GONE);
        if !may_return {
            self.waits_since = None;
            return false;
        }
        now < *self.waits_since.get_or_insert(now) + AT_MOST
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::plan::NodeTarget;

    use super::*;
    use crate::planner::NodeInventory;

    #[test]
    fn a_node_that_may_be_back_is_waited_for_and_not_for_ever() -> Result<(), pomona_common::id::IdError> {
        let mut state = ClusterState::default();
        let node = NodeId::from_bits(1);
        let mut target = NodeTarget::default();
        target.models.insert("m".parse()?, String::new());
        state.plan.nodes.insert(node, target);
        let there: Inventory = [(node, NodeInventory::default())].into();
        let gone = Inventory::new();
        let at = |ms: u64| Duration::from_millis(5_000 + ms);
        let mut patience = Patience::default();
        assert!(patience.waits(&state, &gone, at(0)), "nodes are dialling");
        assert!(!patience.waits(&state, &there, at(500)));
        assert!(patience.waits(&state, &gone, at(10_000)));
        assert!(!patience.waits(&state, &gone, at(11_000)), "it is lost");
        // One that comes and goes does not stop planning.
        let planned = (0..40).filter(|i| {
            let seen = if i % 2 == 0 { &gone } else { &there };
            !patience.waits(&state, seen, at(20_000 + i * 500))
        });
        assert!(planned.count() >= 10);
        Ok(())
    }
}
