//! How far nodes are relieved of batch work, and what operators say about it. Replicated: every
//! coordinator routes by it, and the next leader goes on from there.

use std::collections::BTreeMap;

use pomona_common::{MachineRole, ModelName, NodeId, Relief, Rung, Watts};
use serde::{Deserialize, Serialize};

use crate::command::Reply;
use crate::state::ClusterState;

/// See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offload {
    /// Nodes that are relieved, and those that were.
    pub relieved: BTreeMap<NodeId, Relieved>,
    /// What was said of single nodes; [`Comfort::Usual`] for the others.
    pub comfort: BTreeMap<NodeId, Comfort>,
}

/// How far one node is relieved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relieved {
    /// What it is told.
    pub relief: Relief,
    /// Since when, in seconds since 1970.
    pub since_s: u64,
    /// Why.
    pub reason: String,
    /// Whether it came here from a higher rung.
    pub fell: bool,
    /// How often in a row it was stressed again soon after it had been let go: it is let go later then.
    pub relapses: u8,
}

/// Above which watts a machine is no comfort to whoever works at it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Comfort {
    /// By role and chip, see [`usual_comfort`].
    #[default]
    Usual,
    /// So many.
    Watts(u16),
    /// Nobody minds.
    Off,
}

/// Watts of the whole machine below which the fans of a laptop stay quiet. None for machines in a rack.
/// Estimates of ours, not measured: chassis with a Max or Ultra chip have the largest coolers; base chips
/// come without a fan as well, and what heat is left in its shell slows the chip down for its person at their next
/// build (`tests/sim/macs.toml`; half of the sustained power that is estimated there). `pomona node comfort` says
/// otherwise.
pub fn usual_comfort(role: MachineRole, chip: &str) -> Option<Watts> {
    if role != MachineRole::Laptop {
        return None;
    }
    let has = |part: &str| chip.contains(part);
    Some(Watts(match () {
        () if !has("Apple") || has("Max") || has("Ultra") => 45.0,
        () if has("Pro") => 35.0,
        () => 8.0,
    }))
}

impl ClusterState {
    /// How far a node is relieved.
    pub fn relief(&self, node: NodeId) -> Relief {
        let relieved = self.offload.relieved.get(&node);
        relieved.map_or_else(Relief::default, |relieved| relieved.relief)
    }

    /// Whether a node takes no new batch work.
    pub fn spares(&self, node: NodeId) -> bool {
        self.relief(node).rung > Rung::Normal
    }

    /// The watts above which a node is relieved, if there are any.
    pub fn comfort(&self, node: NodeId, chip: &str) -> Option<Watts> {
        let record = self.nodes.get(&node)?;
        match self.offload.comfort.get(&node).copied().unwrap_or_default() {
            Comfort::Usual => usual_comfort(record.role, chip),
            Comfort::Watts(watts) => Some(Watts(f32::from(watts))),
            Comfort::Off => None,
        }
    }
}

/// A step from one rung to another; `seen` is where the node was when that was decided.
pub(crate) fn relieve(state: &mut ClusterState, node: NodeId, seen: Rung, relieved: &Relieved) -> Reply {
    if !state.nodes.contains_key(&node) {
        return Reply::Refused(format!("no node {node}"));
    }
    let now = state.relief(node).rung;
    if now != seen {
        return Reply::Refused(format!("node {node} is at {now}, not at {seen}"));
    }
    if state.offload.relieved.get(&node) == Some(relieved) {
        return Reply::Unchanged;
    }
    state.offload.relieved.insert(node, relieved.clone());
    Reply::Done
}

/// As that, to the highest rung: a model makes room.
pub(crate) fn unload(
    state: &mut ClusterState,
    (node, model): (NodeId, &ModelName),
    until_s: u64,
    seen: Rung,
    relieved: &Relieved,
) -> Reply {
    let reply = relieve(state, node, seen, relieved);
    if reply == Reply::Done {
        state.gates.relocate(node, model, until_s, relieved.since_s);
    }
    reply
}

pub(crate) fn set_comfort(state: &mut ClusterState, node: NodeId, comfort: Comfort) -> Reply {
    if !state.nodes.contains_key(&node) {
        return Reply::Refused(format!("no node {node}"));
    }
    let of_nodes = &mut state.offload.comfort;
    let before = match comfort {
        Comfort::Usual => of_nodes.remove(&node),
        other => of_nodes.insert(node, other),
    };
    if before.unwrap_or_default() == comfort {
        Reply::Unchanged
    } else {
        Reply::Done
    }
}

/// Forgets what concerns a node that is gone.
pub(crate) fn forget_node(state: &mut ClusterState, node: NodeId) {
    state.offload.relieved.remove(&node);
    state.offload.comfort.remove(&node);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::NodeRecord;

    fn cluster() -> (ClusterState, NodeId) {
        let (mut state, node) = (ClusterState::default(), NodeId::from_bits(1));
        state.nodes.insert(node, NodeRecord::default());
        (state, node)
    }

    #[test]
    fn only_a_step_from_the_rung_in_force_is_taken() {
        let (mut state, node) = cluster();
        let to = |rung| Relieved {
            relief: Relief {
                rung,
                frees_memory: false,
            },
            ..Relieved::default()
        };
        assert_eq!(
            relieve(&mut state, node, Rung::Normal, &to(Rung::Hold)),
            Reply::Done
        );
        let late = relieve(&mut state, node, Rung::Normal, &to(Rung::Tighten));
        assert!(matches!(late, Reply::Refused(_)), "two leaders decided at once");
        assert!(state.spares(node));
        assert_eq!(
            relieve(&mut state, node, Rung::Hold, &to(Rung::Normal)),
            Reply::Done
        );
        assert!(!state.spares(node));
        forget_node(&mut state, node);
        assert_eq!(state.offload, Offload::default());
    }

    #[test]
    fn comfort_is_by_role_and_chip_until_somebody_says_otherwise() {
        let (mut state, node) = cluster();
        let watts = |state: &ClusterState, chip| state.comfort(node, chip).map(Watts::get);
        assert_eq!(watts(&state, "Apple M4 Max"), Some(45.0));
        assert_eq!(watts(&state, "Apple M5 Pro"), Some(35.0));
        assert_eq!(watts(&state, "Apple M3"), Some(8.0));
        assert_eq!(set_comfort(&mut state, node, Comfort::Watts(30)), Reply::Done);
        assert_eq!(
            set_comfort(&mut state, node, Comfort::Watts(30)),
            Reply::Unchanged
        );
        assert_eq!(watts(&state, "Apple M4 Max"), Some(30.0));
        set_comfort(&mut state, node, Comfort::Off);
        assert_eq!(watts(&state, "Apple M4 Max"), None);
        assert_eq!(set_comfort(&mut state, node, Comfort::Usual), Reply::Done);
        assert_eq!(usual_comfort(MachineRole::Rack, "Apple M4 Pro"), None);
    }
}
