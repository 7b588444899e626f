//! Which model belongs on which node. Pure: state, inventory and time in, the next plan out, with
//! the reason for every move and for every model without a place.
//!
//! A plan follows the one before: what holds a model goes on holding it as long as it may, points
//! decide only where something is added or which surplus goes. So the same inventory gives the same
//! plan, planning again changes nothing, and a node more removes nothing. A replica that leaves is
//! given up when enough others answer. A node that is not connected keeps its target.

mod demand;
mod explain;
mod fit;
mod inventory;
mod score;

use std::collections::BTreeMap;

use pomona_common::{MachineRole, ModelName, ModelRecord, NodeId};

use crate::placement::{Availability, Keep, ModelPolicy, Move, PlanStep, Replicas};
use crate::state::ClusterState;
pub use explain::{Explanation, Verdict, explain};
pub use fit::{PRESSURE_MAX, RESERVE_BYTES, RESERVE_NOW_BYTES, Rejected};
use fit::{Site, is_in_pool, sites};
pub use inventory::{Inventory, NodeInventory, StoreInventory};
pub use score::Score;
use score::score;

/// Moves of one plan: the next one, half a second later, makes more. Few enough that a mistake is
/// seen before it is everywhere.
pub const MOVES: usize = 16;

/// The result of planning.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOutcome {
    /// The way to the next plan; `None` when the present one stands.
    pub step: Option<PlanStep>,
    /// Models without a place, and why.
    pub unplaced: BTreeMap<ModelName, String>,
}

/// Plans; `now_s` is in seconds since 1970.
pub fn plan(state: &ClusterState, inventory: &Inventory, now_s: u64) -> PlanOutcome {
    let mut planning = Planning {
        state,
        now_s,
        sites: sites(state, inventory, now_s),
        moves: Vec::new(),
    };
    planning.give_up_impossible();
    let order = planning.order();
    let mut unplaced = BTreeMap::new();
    for model in order {
        if let Some(why) = planning.place(model) {
            unplaced.insert(model.name.clone(), why);
        }
    }
    PlanOutcome {
        step: planning.step(),
        unplaced,
    }
}

struct Planning<'a> {
    state: &'a ClusterState,
    now_s: u64,
    sites: BTreeMap<NodeId, Site<'a>>,
    moves: Vec<Move>,
}

impl<'a> Planning<'a> {
    /// Models by who gets the place when there is too little: those that are always kept, then
    /// those that were asked for last, then by name.
    fn order(&self) -> Vec<&'a ModelRecord> {
        let mut models: Vec<&ModelRecord> = self.state.catalogue.values().collect();
        models.sort_by_key(|model| self.rank(model));
        models
    }

    fn rank(&self, model: &'a ModelRecord) -> (bool, std::cmp::Reverse<u64>, &'a ModelName) {
        let placement = &self.state.placement;
        let kept = placement.policy(&model.name).keep == Keep::Always;
        (
            !kept,
            std::cmp::Reverse(placement.used_s(&model.name)),
            &model.name,
        )
    }

    /// What a node cannot or must not hold is given up at once.
    fn give_up_impossible(&mut self) {
        let mut gone: Vec<(NodeId, ModelName, String)> = Vec::new();
        for (id, site) in &self.sites {
            let targets = self.state.plan.nodes.get(id).into_iter();
            for name in targets.flat_map(|target| target.models.keys()) {
                let why = match self.state.catalogue.get(name) {
                    None => "not in the catalogue any more".to_owned(),
                    Some(model) => match site.may_hold(model) {
                        Ok(()) => continue,
                        Err(rejected) => rejected.to_string(),
                    },
                };
                gone.push((*id, name.clone(), why));
            }
        }
        for (id, name, why) in gone {
            self.unload(id, &name, why);
        }
        let overfull: Vec<NodeId> = self
            .sites
            .values()
            .filter(|site| site.is_overfull())
            .map(|site| site.id)
            .collect();
        for id in overfull {
            while let Some(last) = self.least_wanted(id) {
                if !self.unload(id, last, "its memory does not suffice any more".into()) {
                    return;
                }
            }
        }
    }

    /// What an overfull node gives up next.
    fn least_wanted(&self, id: NodeId) -> Option<&'a ModelName> {
        let site = self.sites.get(&id).filter(|site| site.is_overfull())?;
        let held = site
            .holds
            .iter()
            .filter_map(|name| self.state.catalogue.get(*name));
        held.max_by_key(|model| self.rank(model)).map(|model| &model.name)
    }

    /// Gives a model the replicas that its policy asks for; why it has none, if so.
    fn place(&mut self, model: &'a ModelRecord) -> Option<String> {
        let policy = self.state.placement.policy(&model.name);
        if self.is_idle(model, &policy) {
            let holders = self.holders(&model.name);
            for id in holders {
                self.unload(id, &model.name, "nobody asked for it in its time to live".into());
            }
            return Some("nobody asked for it in its time to live; the next request loads it".into());
        }
        self.add(model, &policy);
        self.let_go(model, &policy);
        self.remove_surplus(model, &policy);
        if self.holders(&model.name).is_empty() {
            self.push_out_others(model, &policy);
        }
        if self.holders(&model.name).is_empty() {
            // Better where it was too much than nowhere.
            self.sites.values_mut().for_each(|site| {
                site.homeless.insert(&model.name);
            });
            self.add(model, &policy);
        }
        let is_somewhere = !self.holders(&model.name).is_empty();
        (!is_somewhere).then(|| self.why_nowhere(model, &policy))
    }

    /// Whether its time to live is over, and nobody uses it.
    fn is_idle(&self, model: &ModelRecord, policy: &ModelPolicy) -> bool {
        let Keep::Ttl(ttl_s) = policy.keep else {
            return false;
        };
        let unused_s = self
            .now_s
            .saturating_sub(self.state.placement.used_s(&model.name));
        // What is written down of its use may be a step old.
        unused_s > ttl_s + self.state.placement.use_step_s(&model.name)
            && !self
                .sites
                .values()
                .any(|site| site.node.busy.contains(&model.name))
    }

    /// Adds replicas where they are missing, the best places first.
    fn add(&mut self, model: &'a ModelRecord, policy: &ModelPolicy) {
        let pins: Vec<NodeId> = policy.pins.iter().copied().collect();
        for id in pins {
            if self.can_load(id, model, policy) {
                self.load(id, model, "pinned here".into());
            }
        }
        match policy.replicas {
            Replicas::Everywhere => {
                let ids: Vec<NodeId> = self.sites.keys().copied().collect();
                for id in ids {
                    if self.can_load(id, model, policy) {
                        self.load(id, model, "stored here and fits".into());
                    }
                }
            }
            Replicas::Count(count) => self.fill(model, policy, count as usize),
        }
    }

    fn fill(&mut self, model: &'a ModelRecord, policy: &ModelPolicy, count: usize) {
        let mut missing = count.saturating_sub(self.staying(model, policy).len());
        if missing == 0 {
            return;
        }
        let candidates: Vec<NodeId> = self
            .sites
            .keys()
            .copied()
            .filter(|id| self.can_load(*id, model, policy))
            .collect();
        let mut left = candidates.clone();
        while missing > 0 {
            // With spread each replica changes what the next one is worth.
            let pools = self.pools(model, policy, None);
            let best = left
                .iter()
                .filter_map(|id| Some((score(self.sites.get(id)?, model, pools.as_deref()).points, *id)))
                .max_by_key(|(points, id)| (*points, std::cmp::Reverse(*id)));
            let Some((points, id)) = best else {
                return;
            };
            left.retain(|candidate| *candidate != id);
            let why = format!("the best of {} places with {points} points", candidates.len());
            if !self.load(id, model, why) {
                return;
            }
            missing -= 1;
        }
    }

    /// Replicas that leave because their node is drained, of a kind that the policy is not for, or
    /// cannot load them, go as soon as enough others answer; those of a drained node at its deadline at
    /// the latest.
    fn let_go(&mut self, model: &'a ModelRecord, policy: &ModelPolicy) {
        let staying = self.staying(model, policy);
        let answering = self.answering(&staying, &model.name);
        let enough = match policy.replicas {
            Replicas::Everywhere => answering > 0,
            Replicas::Count(count) => answering >= (count as usize).min(staying.len()) && answering > 0,
        } || policy.replicas == Replicas::Count(0);
        for id in self.holders(&model.name) {
            let Some(site) = self.sites.get(&id).filter(|_| !staying.contains(&id)) else {
                continue;
            };
            // What runs there may finish until the deadline; new work goes elsewhere already.
            let busy = site.node.busy.contains(&model.name);
            let why = match site.availability {
                Availability::Draining { until_s } if self.now_s >= until_s || (enough && !busy) => {
                    "the node is drained".to_owned()
                }
                Availability::Draining { .. } => continue,
                _ if enough && site.node.failed.contains(&model.name) => {
                    "it could not be loaded here".to_owned()
                }
                // Batch is held and tightened there: what runs may end.
                _ if busy && site.relocates(&model.name, policy) => continue,
                _ if enough && site.relocates(&model.name, policy) => Rejected::Relocated.to_string(),
                _ if enough => Rejected::OtherPool(site.record.role).to_string(),
                _ => continue,
            };
            self.unload(id, &model.name, why);
        }
    }

    /// Of more replicas than the policy asks for the worst go, while enough others answer.
    fn remove_surplus(&mut self, model: &'a ModelRecord, policy: &ModelPolicy) {
        let Replicas::Count(count) = policy.replicas else {
            return;
        };
        let count = (count as usize).max(policy.pins.len());
        let mut staying = self.staying(model, policy);
        while staying.len() > count {
            let removable = staying.iter().filter(|id| !policy.pins.contains(id));
            let worst = removable
                .filter_map(|id| {
                    let pools = self.pools(model, policy, Some(*id));
                    Some((score(self.sites.get(id)?, model, pools.as_deref()).points, *id))
                })
                .min_by_key(|(points, id)| (*points, std::cmp::Reverse(*id)));
            let Some((points, id)) = worst else {
                return;
            };
            staying.retain(|stays| *stays != id);
            if self.answering(&staying, &model.name) < count {
                return;
            }
            let why = format!("{count} replicas are wanted, and this was the worst with {points} points");
            if !self.unload(id, &model.name, why) {
                return;
            }
        }
    }

    /// Connected nodes that hold a model.
    fn holders(&self, model: &ModelName) -> Vec<NodeId> {
        let sites = self.sites.values();
        sites
            .filter(|site| site.holds.contains(model))
            .map(|site| site.id)
            .collect()
    }

    /// Of those, the ones that may go on holding it.
    fn staying(&self, model: &ModelRecord, policy: &ModelPolicy) -> Vec<NodeId> {
        let stays = |id: &NodeId| {
            self.sites.get(id).is_some_and(|site| {
                let welcome = is_in_pool(policy, site.record.role) || policy.pins.contains(id);
                let leaves = site.availability.is_draining() || site.relocates(&model.name, policy);
                // Where it cannot be loaded it does not count, unless it is to be everywhere.
                let failed = site.node.failed.contains(&model.name);
                welcome && !leaves && !(failed && policy.replicas != Replicas::Everywhere)
            })
        };
        self.holders(&model.name).into_iter().filter(stays).collect()
    }

    /// How many of these answer for a model already.
    fn answering(&self, ids: &[NodeId], model: &ModelName) -> usize {
        let sites = ids.iter().filter_map(|id| self.sites.get(id));
        sites.filter(|site| site.node.loaded.contains(model)).count()
    }

    /// The kinds of machine that have a replica, one node left out, if the policy asks for spread.
    fn pools(
        &self,
        model: &ModelRecord,
        policy: &ModelPolicy,
        without: Option<NodeId>,
    ) -> Option<Vec<MachineRole>> {
        let others = self.sites.values().filter(|site| Some(site.id) != without);
        policy.spread.then(|| pools_of(others, &model.name))
    }

    fn can_load(&self, id: NodeId, model: &ModelRecord, policy: &ModelPolicy) -> bool {
        self.sites
            .get(&id)
            .is_some_and(|site| !site.holds.contains(&model.name) && site.could_take(model, policy).is_ok())
    }

    fn why_nowhere(&self, model: &ModelRecord, policy: &ModelPolicy) -> String {
        if policy.replicas == Replicas::Count(0) {
            return "its policy asks for no replica".into();
        }
        let absent = self
            .state
            .plan
            .nodes
            .iter()
            .find(|(id, target)| !self.sites.contains_key(id) && target.models.contains_key(&model.name));
        if let Some(node) = absent.and_then(|(id, _)| self.state.nodes.get(id)) {
            return format!("it is on {}, which is away", node.name);
        }
        let rejections = self.sites.values().filter_map(|site| {
            let rejected = site.could_take(model, policy).err()?;
            Some((explain::rank(&rejected), site, rejected))
        });
        match rejections.max_by_key(|(rank, site, _)| (*rank, std::cmp::Reverse(site.id))) {
            None | Some((_, _, Rejected::NotStored)) => "no connected node stores it".into(),
            Some((_, site, rejected)) => format!("{}: {rejected}", site.record.name),
        }
    }

    /// Whether there was a move left for it.
    fn load(&mut self, node: NodeId, model: &'a ModelRecord, reason: String) -> bool {
        let done = self.change(node, &model.name, true, reason);
        if let Some(site) = self.sites.get_mut(&node).filter(|_| done) {
            site.take(model);
        }
        done
    }

    /// As [`Planning::load`].
    fn unload(&mut self, node: NodeId, model: &ModelName, reason: String) -> bool {
        let done = self.change(node, model, false, reason);
        let record = self.state.catalogue.get(model);
        if let (Some(site), Some(record)) = (self.sites.get_mut(&node).filter(|_| done), record) {
            site.give_up(record);
        }
        done
    }

    fn change(&mut self, node: NodeId, model: &ModelName, load: bool, reason: String) -> bool {
        if self.moves.len() >= MOVES {
            return false;
        }
        self.moves.push(Move {
            model: model.clone(),
            node,
            load,
            reason,
        });
        true
    }

    /// The moves made; every connected node gets a target.
    fn step(self) -> Option<PlanStep> {
        let present = &self.state.plan;
        let ids = self.sites.keys().copied();
        let welcome: Vec<NodeId> = ids.filter(|id| !present.nodes.contains_key(id)).collect();
        (!self.moves.is_empty() || !welcome.is_empty()).then_some(PlanStep {
            parent: present.id,
            moves: self.moves,
            welcome,
        })
    }
}

/// The kinds of machine among these that hold a model.
fn pools_of<'a>(sites: impl Iterator<Item = &'a Site<'a>>, model: &ModelName) -> Vec<MachineRole> {
    let holders = sites.filter(|site| site.holds.contains(model));
    holders.map(|site| site.record.role).collect()
}
