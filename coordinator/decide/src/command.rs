//! The commands that go through the log.

use pomona_common::plan::Plan;
use pomona_common::{ClusterId, ModelName, ModelRecord, NodeId};
use serde::{Deserialize, Serialize};

/// A change of the replicated state. Times come with the command: `apply` has no clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Names the cluster; the first command of every log.
    Found(ClusterId),
    /// Admits a node, or renames it.
    AdmitNode {
        /// The node.
        id: NodeId,
        /// What people call it.
        name: String,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// Puts a model into the catalogue.
    AddModel(ModelRecord),
    /// Takes a model out of it.
    RemoveModel(ModelName),
    /// Replaces the target; its parent must be the present one.
    SetPlan(Plan),
    /// An engine was killed.
    RecordKill {
        /// On this node.
        node: NodeId,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
}

/// What a command did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It changed the state.
    Done,
    /// The state was already so.
    #[default]
    Unchanged,
    /// It was refused.
    Refused(String),
}
