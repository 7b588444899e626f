//! What all coordinators agree on.

use std::collections::BTreeMap;

use pomona_common::plan::Plan;
use pomona_common::{ClusterId, ModelName, ModelRecord, NodeId};
use serde::{Deserialize, Serialize};

/// The replicated state. Changed by [`crate::apply()`] alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Set once, by the first command.
    pub cluster: Option<ClusterId>,
    /// All nodes ever admitted and not removed.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Models that may be asked for.
    pub catalogue: BTreeMap<ModelName, ModelRecord>,
    /// The target.
    pub plan: Plan,
}

/// A node as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What people call it.
    pub name: String,
    /// When it joined, in seconds since 1970.
    pub joined_s: u64,
    /// Engine kills: when, in seconds since 1970, the latest 32.
    pub kills_s: Vec<u64>,
}
