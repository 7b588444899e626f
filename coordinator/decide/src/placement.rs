//! What operators want of placement, and what the cluster remembers for it. Replicated.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use pomona_common::plan::NodeTarget;
use pomona_common::{MachineRole, ModelName, NodeId, limits};
use serde::{Deserialize, Serialize};

use crate::command::Reply;
use crate::state::ClusterState;

/// Plans whose moves are remembered.
const REMEMBERED_PLANS: usize = 16;
/// Longest time to live, in seconds: a year.
const TTL_MAX_S: u64 = 365 * 24 * 3600;

/// That a model is in use is written down this often at most, in seconds; more often where a short
/// time to live needs it.
pub const USE_STEP_S: u64 = 60;

/// See the module's documentation. Stored states of version 3 end where this begins, those of version 4
/// where it ends, see `pomona_raft`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// What is wanted of models; the default of [`ModelPolicy`] for the others.
    pub policies: BTreeMap<ModelName, ModelPolicy>,
    /// Nodes that take nothing new; the others are open.
    pub availability: BTreeMap<NodeId, Availability>,
    /// When a model was asked for last, in seconds since 1970; coarse.
    pub used_s: BTreeMap<ModelName, u64>,
    /// The moves of the latest plans, the newest last.
    pub history: VecDeque<PlanMoves>,
}

/// What is wanted of one model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelPolicy {
    /// How many nodes hold it.
    pub replicas: Replicas,
    /// The kinds of machine that may; empty means all.
    pub pools: BTreeSet<MachineRole>,
    /// Nodes that hold it if it fits there, whatever else speaks for others.
    pub pins: BTreeSet<NodeId>,
    /// Whether replicas prefer kinds of machine that have none yet.
    pub spread: bool,
    /// When it may be unloaded.
    pub keep: Keep,
}

/// How many nodes hold a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replicas {
    /// Every node that stores it and has room.
    #[default]
    Everywhere,
    /// So many.
    Count(u32),
}

impl fmt::Display for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Replicas::Everywhere => f.write_str("everywhere"),
            Replicas::Count(count) => count.fmt(f),
        }
    }
}

/// When a model may be unloaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keep {
    /// When another one is asked for and needs the place, the least recently used first.
    #[default]
    WhileThereIsRoom,
    /// As that, and when nobody asked for it for so many seconds. It is loaded when somebody does.
    Ttl(u64),
    /// Never, while the policy wants it.
    Always,
}

/// Whether a node takes replicas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    /// Yes.
    #[default]
    Open,
    /// Keeps what it has, takes nothing new.
    Cordoned,
    /// Gives up what it has: as soon as others hold it, at the latest at this time in seconds since
    /// 1970.
    Draining {
        /// The time.
        until_s: u64,
    },
}

impl Availability {
    /// Whether the node gives up what it has.
    pub fn is_draining(self) -> bool {
        matches!(self, Availability::Draining { .. })
    }
}

/// One step from a plan to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The model.
    pub model: ModelName,
    /// The node.
    pub node: NodeId,
    /// Whether the node is to load it, else to unload it.
    pub load: bool,
    /// Why.
    pub reason: String,
}

/// The way from one plan to the next: only a step from the target in force changes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStep {
    /// The plan that it starts from.
    pub parent: u64,
    /// The moves.
    pub moves: Vec<Move>,
    /// Nodes that get their first target.
    pub welcome: Vec<NodeId>,
}

/// The moves of one plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanMoves {
    /// The plan that they lead to.
    pub plan: u64,
    /// When it was made, in seconds since 1970.
    pub at_s: u64,
    /// The moves.
    pub moves: Vec<Move>,
}

impl Placement {
    /// What is wanted of a model.
    pub fn policy(&self, model: &ModelName) -> ModelPolicy {
        self.policies.get(model).cloned().unwrap_or_default()
    }

    /// How old what is written down of a model's use may be, in seconds.
    pub fn use_step_s(&self, model: &ModelName) -> u64 {
        match self.policies.get(model).map(|policy| policy.keep) {
            Some(Keep::Ttl(ttl_s)) => (ttl_s / 4).clamp(1, USE_STEP_S),
            _ => USE_STEP_S,
        }
    }

    /// Whether a node takes replicas.
    pub fn availability(&self, node: NodeId) -> Availability {
        self.availability.get(&node).copied().unwrap_or_default()
    }

    /// When a model was asked for last; 0 when nobody has.
    pub fn used_s(&self, model: &ModelName) -> u64 {
        self.used_s.get(model).copied().unwrap_or(0)
    }
}

pub(crate) fn set_policy(state: &mut ClusterState, model: &ModelName, policy: &ModelPolicy) -> Reply {
    if !state.catalogue.contains_key(model) {
        return Reply::Refused(format!(
            "`{model}` is not in the catalogue: `pomona models` lists what is"
        ));
    }
    if let Some(unknown) = policy.pins.iter().find(|pin| !state.nodes.contains_key(pin)) {
        return Reply::Refused(format!("no node {unknown}"));
    }
    if policy.pins.len() > limits::NODES {
        return Reply::Refused(format!("more than {} pins", limits::NODES));
    }
    if matches!(policy.keep, Keep::Ttl(ttl_s) if ttl_s == 0 || ttl_s > TTL_MAX_S) {
        return Reply::Refused("a time to live is between a second and a year".into());
    }
    let before = state.placement.policy(model);
    if before == *policy {
        return Reply::Unchanged;
    }
    state.placement.policies.insert(model.clone(), policy.clone());
    Reply::Done
}

pub(crate) fn set_availability(state: &mut ClusterState, node: NodeId, availability: Availability) -> Reply {
    if !state.nodes.contains_key(&node) {
        return Reply::Refused(format!("no node {node}"));
    }
    if state.placement.availability(node) == availability {
        return Reply::Unchanged;
    }
    match availability {
        Availability::Open => state.placement.availability.remove(&node),
        other => state.placement.availability.insert(node, other),
    };
    Reply::Done
}

pub(crate) fn use_models(state: &mut ClusterState, models: &[ModelName], now_s: u64) -> Reply {
    let mut changed = false;
    for model in models.iter().filter(|model| state.catalogue.contains_key(model)) {
        let used_s = state.placement.used_s.entry(model.clone()).or_default();
        changed |= *used_s < now_s;
        *used_s = now_s.max(*used_s);
    }
    if changed { Reply::Done } else { Reply::Unchanged }
}

/// Makes a step the target. What it says of nodes that were shut out meanwhile is left out.
pub(crate) fn advance(state: &mut ClusterState, step: &PlanStep, now_s: u64) -> Reply {
    if step.parent != state.plan.id {
        return Reply::Refused(format!(
            "this step starts from plan {}, and plan {} is in force",
            step.parent, state.plan.id
        ));
    }
    let ClusterState { nodes, plan, .. } = state;
    plan.parent = Some(plan.id);
    plan.id += 1;
    let touched: BTreeSet<NodeId> = step
        .moves
        .iter()
        .map(|one| one.node)
        .chain(step.welcome.iter().copied())
        .collect();
    for id in touched.into_iter().filter(|id| nodes.contains_key(id)) {
        let target: &mut NodeTarget = plan.nodes.entry(id).or_default();
        target.generation += 1;
        for one in step.moves.iter().filter(|one| one.node == id) {
            if one.load {
                target.models.insert(one.model.clone(), one.reason.clone());
            } else {
                target.models.remove(&one.model);
            }
        }
    }
    let history = &mut state.placement.history;
    history.push_back(PlanMoves {
        plan: plan.id,
        at_s: now_s,
        moves: step.moves.clone(),
    });
    while history.len() > REMEMBERED_PLANS {
        history.pop_front();
    }
    Reply::Done
}

/// Forgets what concerns a node that is gone.
pub(crate) fn forget_node(state: &mut ClusterState, node: NodeId) {
    state.placement.availability.remove(&node);
    for policy in state.placement.policies.values_mut() {
        policy.pins.remove(&node);
    }
}

/// Forgets what concerns a model that is gone.
pub(crate) fn forget_model(state: &mut ClusterState, model: &ModelName) {
    state.placement.policies.remove(model);
    state.placement.used_s.remove(model);
}
