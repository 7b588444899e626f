//! How far the gates of the nodes have acted, with the evidence. Replicated: ladder, planner and operators
//! go by it on every coordinator, and after a change of leader.

use std::collections::{BTreeMap, VecDeque};

use pomona_common::gate::{Gate, Stage};
use pomona_common::{ModelName, NodeId, Rung};
use serde::{Deserialize, Serialize};

use super::rules::{Remedy, WEEK_S, rule};
use crate::command::Reply;
use crate::state::ClusterState;

/// Transitions that are remembered.
const REMEMBERED: usize = 128;
/// Tickets that are remembered.
const TICKETS: usize = 64;
/// Samples of one transition.
pub(super) const SAMPLES: usize = 16;
/// A model that was moved away does not come back for so long, in seconds: it would fill the memory again.
const RELOCATED_S: u64 = 24 * 3600;
/// Kills of one model on one node that are remembered.
const KILLS: usize = 8;

/// See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GateBook {
    /// Gates that are not clear.
    pub open: BTreeMap<NodeId, BTreeMap<Subject, Open>>,
    /// The latest transitions, the newest last.
    pub transitions: VecDeque<Transition>,
    /// The latest tickets, the newest last.
    pub tickets: VecDeque<Ticket>,
    /// Engine kills by model.
    pub kills: BTreeMap<NodeId, NodeKills>,
    /// Models that gates moved away, and until when they stay so, in seconds since 1970.
    pub relocated: BTreeMap<NodeId, BTreeMap<ModelName, u64>>,
}

/// Which gate of a node; of kills, about which model.
pub type Subject = (Gate, Option<ModelName>);

/// A gate that is not clear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// How far it has acted.
    pub stage: Stage,
    /// Since when, in seconds since 1970.
    pub since_s: u64,
    /// What was measured.
    pub reason: String,
    /// The model that it moved away last, if it did.
    pub relocates: Option<ModelName>,
}

/// A gate acts, or has done so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// Counts all transitions of the cluster; what is written with the command does not matter.
    pub number: u64,
    /// Of this node.
    pub node: NodeId,
    /// Which gate.
    pub subject: Subject,
    /// How far it had acted.
    pub from: Stage,
    /// How far it does now.
    pub to: Stage,
    /// When, in seconds since 1970.
    pub at_s: u64,
    /// What was measured.
    pub reason: String,
    /// What was measured before, or while the remedy was in force; the oldest first.
    pub samples: Vec<Sample>,
    /// A model that is moved away.
    pub relocates: Option<ModelName>,
    /// What an operator is asked to do.
    pub ticket: Option<String>,
}

/// One measure, in the gate's unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds before the transition.
    pub ago_s: u32,
    /// What was measured.
    pub value: f32,
}

impl Sample {
    pub(super) fn ago(seconds: u64, value: f32) -> Self {
        let ago_s = u32::try_from(seconds).unwrap_or(u32::MAX);
        Self { ago_s, value }
    }
}

/// Something that takes a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ticket {
    /// Number of the transition that opened it, where its evidence is.
    pub number: u64,
    /// About this node.
    pub node: NodeId,
    /// About this gate.
    pub subject: Subject,
    /// When it was opened, in seconds since 1970.
    pub opened_s: u64,
    /// Whether the gate has cleared since.
    pub closed: bool,
    /// What is asked for.
    pub text: String,
    /// What was measured.
    pub reason: String,
    /// The evidence.
    pub samples: Vec<Sample>,
}

/// Engine kills on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeKills {
    /// The node's process that counted last, and how many of each model.
    counted: (u64, BTreeMap<ModelName, u64>),
    /// When, in seconds since 1970, the latest last.
    at_s: BTreeMap<ModelName, Vec<u64>>,
}

impl NodeKills {
    /// How many a process of the node has counted; one that was not known before counts from zero.
    fn counted(&self, instance: u64, model: &ModelName) -> u64 {
        let counted = self.counted.1.get(model).filter(|_| self.counted.0 == instance);
        counted.copied().unwrap_or_default()
    }

    /// When the engine was killed with a model within the last week.
    pub fn within_week(&self, now_s: u64) -> impl Iterator<Item = (&ModelName, Vec<u64>)> {
        let is_young = move |at_s: &u64| now_s.saturating_sub(*at_s) < WEEK_S;
        self.at_s
            .iter()
            .map(move |(model, at_s)| (model, at_s.iter().copied().filter(is_young).collect()))
    }
}

impl GateBook {
    /// Number of the latest transition; 0 before the first.
    pub fn last_number(&self) -> u64 {
        self.transitions.back().map_or(0, |last| last.number)
    }

    /// How far each gate of a node has acted that is not clear; of kills, about any model.
    pub fn stages(&self, node: NodeId) -> BTreeMap<Gate, Stage> {
        let mut stages = BTreeMap::new();
        for ((gate, _), open) in self.of(node) {
            let stage: &mut Stage = stages.entry(*gate).or_default();
            *stage = open.stage.max(*stage);
        }
        stages
    }

    /// How far a gate has acted.
    pub fn stage(&self, node: NodeId, subject: &Subject) -> Stage {
        self.stage_since(node, subject).0
    }

    /// How far a gate has acted, and since when, in seconds since 1970; 0 for one that is clear.
    pub(super) fn stage_since(&self, node: NodeId, subject: &Subject) -> (Stage, u64) {
        let open = self.open.get(&node).and_then(|open| open.get(subject));
        open.map_or((Stage::Clear, 0), |open| (open.stage, open.since_s))
    }

    /// The gates of a node that are not clear.
    pub fn of(&self, node: NodeId) -> impl Iterator<Item = (&Subject, &Open)> {
        self.open.get(&node).into_iter().flatten()
    }

    /// How far the offload ladder may relieve a node for its gates, and why. Comfort is not among them: the
    /// ladder reads the watts themselves.
    pub fn rungs(&self, node: NodeId) -> impl Iterator<Item = (Rung, String)> {
        let open = self.of(node).filter(|((gate, _), _)| *gate != Gate::Comfort);
        open.filter_map(|((gate, _), open)| {
            let rule = rule(*gate);
            let second = rule.secondary.filter(|_| open.stage == Stage::Escalated);
            let second = second.and_then(|(_, remedy)| remedy.rung());
            let rung = second.max(rule.remedy.rung())?;
            Some((
                rung,
                format!("its {gate} gate has {}: {}", open.stage, open.reason),
            ))
        })
    }

    /// Whether a model must not be on a node: the engine was killed with it too often there.
    pub fn quarantines(&self, node: NodeId, model: &ModelName) -> bool {
        self.open
            .get(&node)
            .is_some_and(|open| open.contains_key(&(Gate::Kills, Some(model.clone()))))
    }

    /// Whether a model is to leave a node because the engine takes too much memory there.
    pub fn relocates(&self, node: NodeId, model: &ModelName, now_s: u64) -> bool {
        let until_s = self.relocated.get(&node).and_then(|models| models.get(model));
        until_s.is_some_and(|until_s| now_s < *until_s)
    }

    /// Has a model leave a node until then, as far as others have it.
    pub(crate) fn relocate(&mut self, node: NodeId, model: &ModelName, until_s: u64, now_s: u64) {
        let models = self.relocated.entry(node).or_default();
        models.retain(|_, until_s| now_s < *until_s);
        let known_s = models.entry(model.clone()).or_default();
        *known_s = (*known_s).max(until_s);
    }

    /// Whether an operator is asked for something already.
    pub(super) fn has_ticket(&self, node: NodeId, subject: &Subject) -> bool {
        let mut open = self.tickets.iter().filter(|ticket| !ticket.closed);
        open.any(|ticket| ticket.node == node && ticket.subject == *subject)
    }

    /// The node, and its gate, for which something must not be done now.
    pub fn forbids(&self, remedy: Remedy) -> Option<(NodeId, Gate)> {
        let open = self.open.iter();
        let mut open = open.flat_map(|(node, gates)| gates.keys().map(|(gate, _)| (*node, *gate)));
        open.find(|(_, gate)| rule(*gate).forbidden.contains(&remedy))
    }
}

pub(crate) fn pass(state: &mut ClusterState, transition: &Transition) -> Reply {
    let Transition { node, subject, .. } = transition;
    if !state.nodes.contains_key(node) {
        return Reply::Refused(format!("no node {node}"));
    }
    let book = &mut state.gates;
    let now = book.stage(*node, subject);
    // One more model is moved away, or there is none.
    let moves_on = transition.relocates.is_some() || transition.ticket.is_some();
    if now != transition.from || (transition.from == transition.to && !moves_on) {
        return Reply::Refused(format!("the {} gate of node {node} is {now} already", subject.0));
    }
    let number = book.last_number() + 1;
    let open = book.open.entry(*node).or_default();
    if transition.to == Stage::Clear {
        open.remove(subject);
        let closed = book.tickets.iter_mut();
        closed
            .filter(|ticket| ticket.node == *node && ticket.subject == *subject)
            .for_each(|ticket| ticket.closed = true);
    } else {
        let now = Open {
            stage: transition.to,
            since_s: transition.at_s,
            reason: transition.reason.clone(),
            relocates: transition.relocates.clone(),
        };
        open.insert(subject.clone(), now);
    }
    if open.is_empty() {
        book.open.remove(node);
    }
    if let Some(model) = &transition.relocates {
        book.relocate(*node, model, transition.at_s + RELOCATED_S, transition.at_s);
    }
    if let Some(text) = &transition.ticket {
        book.tickets.push_back(Ticket {
            number,
            node: *node,
            subject: subject.clone(),
            opened_s: transition.at_s,
            closed: false,
            text: text.clone(),
            reason: transition.reason.clone(),
            samples: transition.samples.iter().copied().take(SAMPLES).collect(),
        });
        if book.tickets.len() > TICKETS {
            // One that is closed, while there is one.
            let at = book.tickets.iter().position(|ticket| ticket.closed);
            book.tickets.remove(at.unwrap_or_default());
        }
    }
    let mut passed = transition.clone();
    passed.number = number;
    passed.samples.truncate(SAMPLES);
    book.transitions.push_back(passed);
    let surplus = book.transitions.len().saturating_sub(REMEMBERED);
    book.transitions.drain(..surplus);
    Reply::Done
}

/// Whether these kills, as a node's process counts them, are known already.
pub fn are_counted(
    state: &ClusterState,
    node: NodeId,
    instance: u64,
    totals: &BTreeMap<ModelName, u64>,
) -> bool {
    let kills = state.gates.kills.get(&node);
    totals
        .iter()
        .filter(|(model, _)| state.catalogue.contains_key(*model))
        .all(|(model, total)| kills.map_or(0, |kills| kills.counted(instance, model)) >= *total)
}

/// Counted by what the node's process reports in all, so that no kill is forgotten or counted twice when the
/// leader changes.
pub(crate) fn count_kills(
    state: &mut ClusterState,
    node: NodeId,
    instance: u64,
    totals: &BTreeMap<ModelName, u64>,
    now_s: u64,
) -> Reply {
    if !state.nodes.contains_key(&node) {
        return Reply::Refused(format!("no node {node}"));
    }
    let catalogue = &state.catalogue;
    let kills = state.gates.kills.entry(node).or_default();
    // A node cannot fill the state with names.
    let known = totals.iter().filter(|(model, _)| catalogue.contains_key(*model));
    let mut grew = false;
    for (model, total) in known.clone() {
        let new = total.saturating_sub(kills.counted(instance, model));
        if new > 0 {
            grew = true;
            let at_s = kills.at_s.entry(model.clone()).or_default();
            at_s.extend(std::iter::repeat_n(now_s, new.min(KILLS as u64) as usize));
            let surplus = at_s.len().saturating_sub(KILLS);
            at_s.drain(..surplus);
        }
    }
    if !grew {
        return Reply::Unchanged;
    }
    if kills.counted.0 != instance {
        kills.counted = (instance, BTreeMap::new());
    }
    // What leaves the catalogue for a while is not counted again when it is back.
    kills
        .counted
        .1
        .extend(known.map(|(model, total)| (model.clone(), *total)));
    // What is over is forgotten, so that the models that remain are few.
    kills
        .at_s
        .retain(|_, at_s| at_s.iter().any(|at_s| now_s.saturating_sub(*at_s) < WEEK_S));
    Reply::Done
}

/// An operator has seen to it.
pub(crate) fn close_ticket(state: &mut ClusterState, number: u64) -> Reply {
    let mut tickets = state.gates.tickets.iter_mut();
    match tickets.find(|ticket| ticket.number == number && !ticket.closed) {
        Some(ticket) => {
            ticket.closed = true;
            Reply::Done
        }
        None => Reply::Unchanged,
    }
}

/// An operator has seen to it: the kills count no more.
pub(crate) fn forgive_kills(state: &mut ClusterState, node: NodeId, model: &ModelName) -> Reply {
    let kills = state.gates.kills.get_mut(&node);
    match kills.and_then(|kills| kills.at_s.remove(model)) {
        Some(_) => Reply::Done,
        None => Reply::Unchanged,
    }
}

/// Forgets what concerns a node that is gone; its transitions stay on record.
pub(crate) fn forget_node(state: &mut ClusterState, node: NodeId) {
    state.gates.open.remove(&node);
    state.gates.kills.remove(&node);
    state.gates.relocated.remove(&node);
    let tickets = state.gates.tickets.iter_mut();
    tickets
        .filter(|ticket| ticket.node == node)
        .for_each(|ticket| ticket.closed = true);
}
