//! Promises that every command of a leader has to keep, written down from what Pomona promises and not from how it
//! decides.

use std::collections::BTreeSet;

use pomona_common::{Class, ModelName, NodeId, Rung};
use pomona_decide::{ClusterState, Command, PlanStep, Relieved};

use crate::node::Node;
use crate::world::World;

/// Memory of every machine that nothing is planned for, in bytes.
const RESERVE: u64 = 2 << 30;
/// A node that came down a rung does not go up again sooner, in milliseconds; on battery it may after the second time,
/// and where its memory is short, its chip throttles or a gate has waited for its own time after the third.
const SUSTAINED: u64 = 60_000;
const LASTING: u64 = 20_000;
const SUDDEN: u64 = 3_000;
/// No Mac draws as much.
const MOST_WATTS: f64 = 500.0;

/// A step of the ladder: the node, where it was, and where it comes to.
pub(crate) fn step_of(command: &Command) -> Option<(NodeId, Rung, &Relieved)> {
    match command {
        Command::Relieve { node, seen, relieved }
        | Command::Unload {
            node, seen, relieved, ..
        } => Some((*node, *seen, relieved)),
        _ => None,
    }
}

impl World {
    /// Notes what a coordinator's command breaks.
    pub(crate) fn check(&mut self, number: u64, command: &Command) {
        let state = &self.coordinators[number as usize - 1].state;
        let mut broken = match command {
            Command::Replan { step, .. } => self.plan_breaks(state, step),
            _ => Vec::new(),
        };
        if let Command::Unload { node, model, .. } = command {
            let waits = |node: &&Node| {
                let asked = node.engine.asked();
                asked
                    .map(|(_, one)| one)
                    .any(|one| one.class == Class::Interactive && one.model == *model)
            };
            let its = self.nodes.iter().find(|one| one.id == *node).filter(waits);
            broken.extend(
                its.map(|node| format!("{} loses {model}, which a person waits for", node.id.short())),
            );
        }
        if let Some((node, seen, relieved)) = step_of(command) {
            let last = self.rungs.iter().rev().find(|(_, id, ..)| *id == node);
            let fell = last.filter(|(_, _, from, to)| to < from);
            let says = |why: &str| relieved.reason.contains(why);
            let may_after = match () {
                () if says("memory") || says("thermal") => SUDDEN,
                () if says("battery") => LASTING,
                () => SUSTAINED,
            };
            let rung = relieved.relief.rung;
            let swings = fell.is_some_and(|(at, ..)| rung > seen && self.now < at + may_after);
            // A gate that has just tripped is in the log already.
            if swings && !self.agreed().gates.rungs(node).any(|(wanted, _)| wanted >= rung) {
                broken.push(format!("{} swings: {}", node.short(), relieved.reason));
            }
            // `70 W, comfortable are 45 W`: what a sensor says that lies is in no reason.
            let watts = relieved.reason.split(" W, comfortable").next();
            let watts = watts.and_then(|text| text.parse::<f64>().ok());
            if watts.is_some_and(|watts| !(0.0..MOST_WATTS).contains(&watts)) {
                broken.push(format!("{} is relieved for {}", node.short(), relieved.reason));
            }
        }
        let now = self.now;
        self.broken
            .extend(broken.into_iter().map(|text| format!("{now}: {text}")));
    }

    fn plan_breaks(&self, state: &ClusterState, step: &PlanStep) -> Vec<String> {
        let now_s = self.now_s();
        let mut broken = Vec::new();
        for node in &self.nodes {
            let moves = step.moves.iter().filter(|one| one.node == node.id);
            let (loads, unloads): (Vec<_>, Vec<_>) = moves.partition(|one| one.load);
            if loads.is_empty() {
                continue;
            }
            let name = node.id.short();
            if state.availability(node.id, now_s).is_draining() {
                broken.push(format!(
                    "{name} is drained, and {} is planned there",
                    loads[0].model
                ));
            }
            let before = state.plan.nodes.get(&node.id).map(|target| &target.models);
            let mut holds: BTreeSet<&ModelName> =
                before.into_iter().flat_map(|models| models.keys()).collect();
            holds.retain(|model| unloads.iter().all(|one| one.model != **model));
            holds.extend(loads.iter().map(|one| &one.model));
            let records = holds.iter().filter_map(|model| state.catalogue.get(*model));
            let weights: u64 = records.map(|record| record.weight_bytes).sum();
            let needed = weights + node.kv_budget() + RESERVE;
            if needed as f64 > node.mac.total() {
                let total = node.mac.total() / 1e9;
                let needed = needed as f64 / 1e9;
                broken.push(format!(
                    "{name} has {total:.1} GB, and {needed:.1} GB are planned for"
                ));
            }
        }
        broken
    }
}
