//! Why a model is where it is, and why not elsewhere.

use std::fmt;

use pomona_common::{ModelName, NodeId};

use crate::placement::ModelPolicy;
use crate::planner::fit::{Rejected, Site, sites};
use crate::planner::inventory::Inventory;
use crate::planner::pools_of;
use crate::planner::score::{Score, score};
use crate::state::ClusterState;

/// Everything that speaks for and against the places of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// What is wanted.
    pub policy: ModelPolicy,
    /// When it was asked for last, in seconds since 1970; 0 when never.
    pub used_s: u64,
    /// Every node of the cluster.
    pub nodes: Vec<(NodeId, Verdict)>,
}

/// What a node is to a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It is to hold it.
    Holds {
        /// Why it was placed here.
        reason: String,
        /// Whether it answers; `None` while the node is away.
        loaded: Option<bool>,
        /// What the place is worth now; `None` while the node is away.
        score: Option<Score>,
    },
    /// It could hold it; others are better, or no more are wanted.
    Could(Score),
    /// It cannot.
    Cannot(Rejected),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Holds {
                reason,
                loaded,
                score,
            } => {
                let state = match loaded {
                    Some(true) => "loaded",
                    Some(false) => "not loaded yet",
                    None => "away",
                };
                write!(f, "holds it ({state}): {reason}")?;
                score.iter().try_for_each(|score| write!(f, "; now {score}"))
            }
            Verdict::Could(score) => write!(f, "could: {score}"),
            Verdict::Cannot(rejected) => write!(f, "cannot: {rejected}"),
        }
    }
}

/// Explains the places of a model at `now_s`, in seconds since 1970; `None` when it is not in the catalogue.
pub fn explain(
    state: &ClusterState,
    inventory: &Inventory,
    model: &ModelName,
    now_s: u64,
) -> Option<Explanation> {
    let record = state.catalogue.get(model)?;
    let policy = state.placement.policy(model);
    let sites = sites(state, inventory, now_s);
    let held = |id: &NodeId| {
        let target = state.plan.nodes.get(id)?;
        target.models.get(model).cloned()
    };
    let points = |site: &Site<'_>| {
        let others = sites.values().filter(|other| other.id != site.id);
        let pools = policy.spread.then(|| pools_of(others, model));
        score(site, record, pools.as_deref())
    };
    let nodes = state
        .nodes
        .iter()
        .map(|(id, node)| {
            let verdict = match (held(id), sites.get(id)) {
                (Some(reason), site) => Verdict::Holds {
                    reason,
                    loaded: site.map(|site| site.node.loaded.contains(model)),
                    score: site.map(&points),
                },
                (None, None) if !node.approved => Verdict::Cannot(Rejected::Unapproved),
                (None, None) => Verdict::Cannot(Rejected::Away),
                (None, Some(site)) => match site.could_take(record, &policy) {
                    Ok(()) => Verdict::Could(points(site)),
                    Err(rejected) => Verdict::Cannot(rejected),
                },
            };
            (*id, verdict)
        })
        .collect();
    Some(Explanation {
        used_s: state.placement.used_s(model),
        policy,
        nodes,
    })
}

/// How near a node that was rejected is to taking a model: the highest says most about why it is
/// nowhere.
pub(crate) fn rank(rejected: &Rejected) -> u8 {
    match rejected {
        Rejected::NotStored | Rejected::Away => 0,
        Rejected::OtherContents => 1,
        Rejected::Unapproved => 2,
        Rejected::OtherPool(_) | Rejected::Private | Rejected::Lent => 3,
        Rejected::Draining | Rejected::Cordoned | Rejected::LeaseEnds => 4,
        Rejected::UnknownMemory | Rejected::Suspected | Rejected::Quarantined | Rejected::Relocated => 5,
        Rejected::TooLarge { .. } | Rejected::NoDisk { .. } => 6,
        Rejected::NoMemoryNow { .. } | Rejected::Pressure(_) => 7,
    }
}
