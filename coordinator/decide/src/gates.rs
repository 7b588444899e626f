//! Gates: thresholds of a node that act when they are passed, through the offload ladder and the planner.
//!
//! What they are is data ([`rules`]). The leader keeps a [`GateWatch`] for as long as it leads: what was
//! measured, and since when it is too much. How far each gate has acted is replicated with the evidence
//! ([`GateBook`]), so the next leader goes on from there and measures the times anew.

mod book;
pub mod rules;
mod speed;
mod swap;
mod tail;
mod times;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pomona_common::gate::{Gate, Stage};
use pomona_common::{ModelName, NodeId};

pub use book::{GateBook, NodeKills, Open, Sample, Subject, Ticket, Transition, are_counted};
pub(crate) use book::{close_ticket, count_kills, forget_node, forgive_kills, pass};
use rules::rule;
use watched::{Look, UNHEARD, Watched};

use crate::command::Command;
use crate::ladder::NodeSignals;
use crate::state::ClusterState;

/// A node that was away for so long has no load that its gates could be about.
const AWAY: Duration = Duration::from_secs(600);

/// What an operator chooses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Choices {
    /// All swap in use counts, whenever and by whatever it came.
    pub literal_swap: bool,
}

/// What the leader remembers.
#[derive(Debug, Clone, Default)]
pub struct GateWatch {
    choices: Choices,
    nodes: BTreeMap<NodeId, Watched>,
    /// Since when nodes with gates that are not clear are away.
    away: BTreeMap<NodeId, Duration>,
}

impl GateWatch {
    /// One that has seen nothing yet.
    pub fn new(choices: Choices) -> Self {
        Self {
            choices,
            ..Self::default()
        }
    }

    /// The transitions that are due: at most one for each gate of a node. `now` is of a clock that stands
    /// still while the machine sleeps; `signals` are of the nodes that are connected.
    pub fn steps(
        &mut self,
        state: &ClusterState,
        signals: &BTreeMap<NodeId, NodeSignals>,
        now: Duration,
        now_s: u64,
    ) -> Vec<Command> {
        // A session that is dialled anew is there again by then.
        self.nodes
            .retain(|id, watched| signals.contains_key(id) || now.saturating_sub(watched.looked) <= UNHEARD);
        let mut due = Vec::new();
        for (id, node) in signals {
            let Some(record) = state.nodes.get(id) else {
                continue;
            };
            let look = self.look(state, *id, &record.name, node, signals, (now, now_s));
            self.nodes.entry(*id).or_default().look(look, &mut due);
        }
        self.clear_away(state, signals, now, now_s, &mut due);
        // Of nodes that are not there as well.
        for (id, known) in &state.gates.kills {
            let causes = signals.get(id).map(|node| &node.kill_causes);
            kills(state, (*id, known, causes), now_s, &mut due);
        }
        due.into_iter()
            .map(|transition| Command::PassGate(Box::new(transition)))
            .collect()
    }

    /// What the ladder needs to know of each node: why its answers are late, and which model makes room.
    pub fn advise(
        &self,
        state: &ClusterState,
        signals: &mut BTreeMap<NodeId, NodeSignals>,
        now: Duration,
        now_s: u64,
    ) {
        let advice = signals.iter().filter_map(|(id, node)| {
            let (watched, record) = (self.nodes.get(id)?, state.nodes.get(id)?);
            let look = self.look(state, *id, &record.name, node, signals, (now, now_s));
            Some((*id, (watched.late(), watched.spare(look))))
        });
        let advice: BTreeMap<NodeId, _> = advice.collect();
        for (id, (late, spare)) in advice {
            if let Some(node) = signals.get_mut(&id) {
                (node.late, node.spare) = (late, spare);
            }
        }
    }

    fn look<'a>(
        &self,
        state: &'a ClusterState,
        id: NodeId,
        name: &'a str,
        node: &'a NodeSignals,
        signals: &'a BTreeMap<NodeId, NodeSignals>,
        (now, now_s): (Duration, u64),
    ) -> Look<'a> {
        Look {
            state,
            id,
            name,
            choices: self.choices,
            node,
            signals,
            now,
            now_s,
        }
    }

    /// Clears what was measured of nodes that are away: when they come back it is measured anew.
    fn clear_away(
        &mut self,
        state: &ClusterState,
        signals: &BTreeMap<NodeId, NodeSignals>,
        now: Duration,
        now_s: u64,
        due: &mut Vec<Transition>,
    ) {
        let open = &state.gates.open;
        self.away
            .retain(|id, _| open.contains_key(id) && !signals.contains_key(id));
        for id in open.keys().filter(|id| !signals.contains_key(id)) {
            let since = *self.away.entry(*id).or_insert(now);
            if now.saturating_sub(since) < AWAY {
                continue;
            }
            let measured = state.gates.of(*id).filter(|((gate, _), _)| *gate != Gate::Kills);
            due.extend(measured.map(|(subject, open)| Transition {
                number: 0,
                node: *id,
                subject: subject.clone(),
                from: open.stage,
                to: Stage::Clear,
                at_s: now_s,
                reason: "the node is away".into(),
                samples: Vec::new(),
                relocates: None,
                ticket: None,
            }));
        }
    }
}

/// Transitions of the kills gate, which goes by what is replicated already.
fn kills(
    state: &ClusterState,
    (id, known, causes): (NodeId, &NodeKills, Option<&BTreeMap<ModelName, String>>),
    now_s: u64,
    due: &mut Vec<Transition>,
) {
    let rule = rule(Gate::Kills);
    let name = state.nodes.get(&id).map_or("", |record| &record.name);
    let known: BTreeMap<&ModelName, Vec<u64>> = known.within_week(now_s).collect();
    let open = state.gates.of(id).filter_map(|((gate, model), _)| match gate {
        Gate::Kills => model.as_ref(),
        _ => None,
    });
    let models: BTreeSet<&ModelName> = known.keys().copied().chain(open).collect();
    for model in models {
        let at_s = known.get(model).map(Vec::as_slice).unwrap_or_default();
        let subject = (Gate::Kills, Some(model.clone()));
        let stage = state.gates.stage(id, &subject);
        let too_many = at_s.len() as f32 > rule.limit;
        let to = if too_many { Stage::Tripped } else { Stage::Clear };
        if stage == to {
            continue;
        }
        let text = format!(
            "{} kills the engine of {name}: give it a machine of its own (`pomona token create --role rented`), or a smaller quantization; `pomona gates forgive` lets it back",
            model
        );
        let mut reason = format!("{} kills of the engine with {model} within 7 days", at_s.len());
        if let Some(cause) = causes.and_then(|causes| causes.get(model)).filter(|_| too_many) {
            reason += &format!("; the latest: {cause}");
        }
        due.push(Transition {
            number: 0,
            node: id,
            subject,
            from: stage,
            to,
            at_s: now_s,
            reason,
            samples: at_s
                .iter()
                .map(|at_s| Sample::ago(now_s.saturating_sub(*at_s), 1.0))
                .collect(),
            relocates: None,
            ticket: too_many.then_some(text),
        });
    }
}

#[cfg(test)]
mod tests;
