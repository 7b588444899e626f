//! The target: which model on which node. Made by the planner, kept in Raft, followed by nodes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{ModelName, NodeId};

/// A complete target. Specific enough that no choice is left when it is carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Number of this plan.
    pub id: u64,
    /// The plan it follows: only a child of the current target may become the target.
    pub parent: Option<u64>,
    /// What each node should hold.
    pub nodes: BTreeMap<NodeId, NodeTarget>,
}

/// What one node should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTarget {
    /// Grows with every change of this node's target; a node refuses an older one.
    pub generation: u64,
    /// Models to have loaded, each with the reason for its place.
    pub models: BTreeMap<ModelName, String>,
}

impl NodeTarget {
    /// Whether a target of this generation takes the place of the latest one: an older one never does, whoever
    /// brings it.
    pub const fn replaces(generation: u64, latest: u64) -> bool {
        generation >= latest
    }
}
