//! What all coordinators agree on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use pomona_common::plan::Plan;
use pomona_common::{
    Class, ClusterId, Fallbacks, KeyPrint, KnobSet, MachineRole, ModelName, ModelRecord, NodeId, REVOKED,
    Slo, SloSet, TokenId, TokenVerifier,
};
use serde::{Deserialize, Serialize};

use crate::audit::AuditBook;
use crate::clouds::CloudBook;
use crate::coordinators::CoordinatorRecord;
use crate::gates::GateBook;
use crate::keys::KeyBook;
use crate::lease::Leases;
use crate::offload::Offload;
use crate::placement::Placement;
use crate::proposal::Recent;
use crate::sets::Sets;

/// The replicated state. Changed by [`crate::apply()`] alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Set once, by the first command.
    pub cluster: Option<ClusterId>,
    /// All nodes ever admitted and not removed.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Join tokens that have not expired, used ones included.
    pub tokens: BTreeMap<TokenId, TokenRecord>,
    /// Nodes that were shut out.
    pub revoked: BTreeMap<NodeId, RevokedNode>,
    /// Models that may be asked for.
    pub catalogue: BTreeMap<ModelName, ModelRecord>,
    /// The target.
    pub plan: Plan,
    /// The coordinators, by number.
    pub coordinators: BTreeMap<u64, CoordinatorRecord>,
    /// The highest number that a coordinator ever had: numbers are not given twice.
    pub last_coordinator: u64,
    /// The latest commands.
    pub recent: Recent,
    /// What is wanted of placement, and what is remembered for it.
    pub placement: Placement,
    /// Until when rented machines stay.
    pub leases: Leases,
    /// Nodes that came back with a certificate that had run out, and must be approved again.
    pub late: BTreeSet<NodeId>,
    /// How far nodes are relieved of batch work.
    pub offload: Offload,
    /// The knobs of engines.
    pub knobs: Sets<KnobSet>,
    /// How far gates have acted.
    pub gates: GateBook,
    /// API keys, and what they took.
    pub keys: KeyBook,
    /// Who changed what.
    pub audit: AuditBook,
    /// Where requests go, in which order.
    pub fallbacks: Sets<Fallbacks>,
    /// Clouds that may be asked, and what they took.
    pub clouds: CloudBook,
    /// Service levels of classes. What comes later is added after it: stored states of before end where it begins,
    /// see `pomona_raft`.
    pub slos: Sets<SloSet>,
}

/// A node as the cluster knows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What people call it; no two nodes share a name.
    pub name: String,
    /// What it is to the cluster.
    pub role: MachineRole,
    /// Whether it may serve; an operator approves it otherwise.
    pub approved: bool,
    /// The key it joined with; `None` for a node that holds the cluster's authority itself.
    pub key: Option<KeyPrint>,
    /// When it joined, in seconds since 1970.
    pub joined_s: u64,
    /// Engine kills: when, in seconds since 1970, the latest 32.
    pub kills_s: Vec<u64>,
    /// The process that reported kills last, and how many it had reported.
    pub kills_counted: (u64, u64),
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// What proofs of its secret are checked with.
    pub verifier: TokenVerifier,
    /// What joins with it.
    pub admits: Admits,
    /// Name of that machine; empty when it may bring its own.
    pub name: String,
    /// End of its life, in seconds since 1970.
    pub expires_s: u64,
    /// The node that joined with it, and its key: the same one may ask for its answer again.
    pub used_by: Option<(NodeId, KeyPrint)>,
}

/// What a token lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admits {
    /// A node with this role.
    Node(MachineRole),
    /// A coordinator: it is given the cluster's authority.
    Coordinator,
}

impl fmt::Display for Admits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Admits::Node(role) => role.fmt(f),
            Admits::Coordinator => f.write_str("coordinator"),
        }
    }
}

/// What is remembered of a node that was shut out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RevokedNode {
    /// What people called it.
    pub name: String,
    /// Its key.
    pub key: Option<KeyPrint>,
    /// When, in seconds since 1970.
    pub revoked_s: u64,
}

impl ClusterState {
    /// The service level of a class.
    pub fn slo(&self, class: Class) -> Slo {
        SloSet::in_force(self.slos.current(), class)
    }

    /// Whether a person sits at a node, as far as is known.
    pub fn is_personal(&self, node: NodeId) -> bool {
        let record = self.nodes.get(&node);
        record.is_none_or(|record| record.role == MachineRole::Laptop)
    }

    /// Whether this node, or its key, was shut out.
    pub fn has_revoked(&self, node: NodeId, key: KeyPrint) -> bool {
        self.revoked.contains_key(&node) || self.revoked.values().any(|revoked| revoked.key == Some(key))
    }

    /// Why a session of this node with this key is refused, if it is.
    pub fn refuses(&self, node: NodeId, key: KeyPrint) -> Option<&'static str> {
        if self.has_revoked(node, key) {
            return Some(REVOKED);
        }
        let record = self.nodes.get(&node)?;
        if record.key.is_some_and(|bound| bound != key) {
            return Some("this node joined with another key");
        }
        (!record.approved).then_some("this node awaits approval by an operator: `pomona node approve`")
    }
}
