//! A coordinator: sessions, reports, the leader's round, and answers that move.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_clocks::SleepWatch;
use pomona_common::control::{CoordinatorMessage, NodeMessage};
use pomona_common::report::NodeReport;
use pomona_common::{Class, Generation, GenerationEvent, ModelRecord, NodeId, Relief, Rung};
use pomona_decide::{
    Candidate, ClusterState, Command, GateWatch, Heard, Inventory, Ladder, Next, NodeInventory, NodeSignals,
    Patience, Presence, Relay, StoreInventory, lease, plan, presence, route,
};

use crate::machine::Machine;
use crate::wire::{End, IDLE, KEEP_ALIVE, Wire};

/// Milliseconds between two rounds of the leader.
const ROUND: u64 = 500;
/// As the real one: how long an answer looks for another place, and a request for its first.
const REPLACE: u64 = 12_000;
const EXPECT: u64 = 5_000;
const REPLACE_BATCH: u64 = 120_000;
/// An answer that found no better place stays for so long.
const STAY: u64 = 2_000;
/// Answers that ask for better places at once.
const ASK: usize = 4;
/// A place promises or refuses within this time.
const GRANT: u64 = 5_000;

/// A connected node.
pub struct Connected {
    end: End,
    stored: Vec<ModelRecord>,
    report: Option<(u64, NodeReport)>,
    since: u64,
    told: Option<u64>,
    told_evict: bool,
    told_relief: Option<Relief>,
}

/// Where an answer stands.
enum Stage {
    /// A node was asked, at this time.
    Asked(NodeId, u64),
    /// A node makes it.
    Made(NodeId),
    /// Nobody has it, since then.
    Homeless(u64),
}

/// One answer for a client.
struct Answer {
    generation: Generation,
    relay: Option<Relay<NodeId>>,
    stage: Stage,
    /// Nodes that refused since the last success.
    refused: Vec<NodeId>,
    moves: u32,
    /// A node that was asked to go on with it while the present one makes it, and when.
    better: Option<(NodeId, u64)>,
    /// It does not ask again before this time.
    stays_until: u64,
}

/// What a client hears.
pub enum Told {
    Event(u64, GenerationEvent),
    /// It ended here after so many moves.
    Ended(u64, GenerationEvent, u32),
}

/// What a coordinator wants done.
pub enum Wish {
    Send(NodeId, Wire),
    /// Tells the other end that its session has ended.
    Close(NodeId, u64),
    Commit(Command),
    Tell(Told),
}

pub struct Coordinator {
    pub number: u64,
    pub machine: Machine,
    pub state: ClusterState,
    pub applied: usize,
    pub sessions: BTreeMap<NodeId, Connected>,
    answers: BTreeMap<u64, Answer>,
    watch: SleepWatch,
    patience: Patience,
    gates: GateWatch,
    ladder: Ladder,
    planned: u64,
    said: u64,
}

impl Coordinator {
    pub fn new(number: u64) -> Self {
        Self {
            number,
            machine: Machine::default(),
            state: ClusterState::default(),
            applied: 0,
            sessions: BTreeMap::new(),
            answers: BTreeMap::new(),
            watch: SleepWatch::default(),
            patience: Patience::default(),
            gates: GateWatch::default(),
            ladder: Ladder::default(),
            planned: 0,
            said: 0,
        }
    }

    /// Its process starts anew: what was agreed on is on the disk, the rest is lost.
    pub fn restart(&mut self) {
        let fresh = Self::new(self.number);
        let old = std::mem::replace(self, fresh);
        self.machine = old.machine;
        (self.state, self.applied) = (old.state, old.applied);
    }

    pub fn presence(&self, node: NodeId, now: u64) -> Presence {
        let role = self
            .state
            .nodes
            .get(&node)
            .map_or_else(Default::default, |node| node.role);
        let awake = self.machine.awake(now);
        let age = self.sessions.get(&node).map(|connected| {
            let heard = connected.report.as_ref().map_or(connected.since, |(at, _)| *at);
            heard_ago(awake - heard)
        });
        presence(role, age)
    }

    pub fn inventory(&self, now: u64) -> Inventory {
        let awake = self.machine.awake(now);
        let seen = self.sessions.iter().filter_map(|(id, connected)| {
            let (at, report) = connected.report.as_ref()?;
            let store = StoreInventory {
                stored: connected.stored.clone(),
                ..StoreInventory::default()
            };
            Some((*id, NodeInventory::of(report, heard_ago(awake - at), store, None)))
        });
        seen.collect()
    }

    /// The session with a node; 0 when there is none.
    pub fn session(&self, node: NodeId) -> u64 {
        self.sessions
            .get(&node)
            .map_or(0, |connected| connected.end.session)
    }

    pub fn answers(&self) -> usize {
        self.answers.len()
    }

    /// Some time went by.
    pub fn tick(&mut self, now: u64, leads: bool, now_s: u64) -> Vec<Wish> {
        let mut wishes = Vec::new();
        let awake = self.machine.awake(now);
        if self.watch.look(self.machine.reading(now)).is_some() {
            for node in self.sessions.keys().copied().collect::<Vec<_>>() {
                wishes.push(Wish::Close(node, self.session(node)));
                wishes.extend(self.lose(node, now));
            }
        }
        let silent: Vec<NodeId> = self
            .sessions
            .iter()
            .filter(|(_, connected)| awake >= connected.end.heard + IDLE)
            .map(|(node, _)| *node)
            .collect();
        for node in silent {
            wishes.extend(self.lose(node, now));
        }
        let shut_out = |node: &NodeId| !self.state.nodes.contains_key(node);
        let revoked: Vec<NodeId> = self.sessions.keys().copied().filter(shut_out).collect();
        for node in revoked {
            wishes.push(Wish::Close(node, self.session(node)));
            wishes.extend(self.lose(node, now));
        }
        if awake >= self.said + KEEP_ALIVE {
            self.said = awake;
            wishes.extend(self.sessions.keys().map(|to| Wish::Send(*to, Wire::KeepAlive)));
        }
        wishes.extend(self.news());
        if !leads {
            self.patience = Patience::default();
            (self.gates, self.ladder) = Default::default();
        } else if awake >= self.planned + ROUND {
            self.planned = awake;
            wishes.extend(self.lead(now, now_s));
        }
        for answer in self.answers.keys().copied().collect::<Vec<_>>() {
            wishes.extend(self.look_after(answer, now, now_s));
        }
        wishes
    }

    /// Targets and evictions that nodes have not been told.
    fn news(&mut self) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for (id, connected) in &mut self.sessions {
            let mut tell = |message| wishes.push(Wish::Send(*id, Wire::FromCoordinator(Box::new(message))));
            if let Some(target) = self.state.plan.nodes.get(id)
                && connected.told != Some(target.generation)
            {
                connected.told = Some(target.generation);
                tell(CoordinatorMessage::Target(target.clone()));
            }
            let relief = self.state.relief(*id);
            if connected.told_relief != Some(relief) {
                connected.told_relief = Some(relief);
                let applied = self.applied as u64;
                tell(CoordinatorMessage::Relief { applied, relief });
            }
            let lease = self.state.leases.of_nodes.get(id);
            if lease.is_some_and(|lease| lease.evicting) && !connected.told_evict {
                connected.told_evict = true;
                tell(CoordinatorMessage::Evict);
            }
        }
        wishes
    }

    fn lead(&mut self, now: u64, now_s: u64) -> Vec<Wish> {
        let missing = self.sessions.values().flat_map(|connected| &connected.stored);
        let missing = missing.filter(|record| !self.state.catalogue.contains_key(&record.name));
        let mut wishes: Vec<Wish> = missing
            .map(|record| Wish::Commit(Command::AddModel(record.clone())))
            .collect();
        wishes.extend(lease::due(&self.state, now_s).into_iter().map(Wish::Commit));
        let inventory = self.inventory(now);
        let awake = Duration::from_millis(self.machine.awake(now));
        if !self.patience.waits(&self.state, &inventory, awake)
            && let Some(step) = plan(&self.state, &inventory, now_s).step
        {
            wishes.push(Wish::Commit(Command::Replan { step, now_s }));
        }
        let signals = self.signals(now);
        let passed = self.gates.steps(&self.state, &signals, awake, now_s);
        let relieved = self.ladder.steps(&self.state, &signals, awake, now_s);
        wishes.extend(passed.into_iter().chain(relieved).map(Wish::Commit));
        wishes
    }

    fn signals(&self, now: u64) -> BTreeMap<NodeId, NodeSignals> {
        let awake = self.machine.awake(now);
        let seen = self.sessions.iter().filter_map(|(id, connected)| {
            let (at, report) = connected.report.as_ref()?;
            let heard = heard_ago(awake - at);
            Some((*id, NodeSignals::of(report, None, heard)))
        });
        seen.collect()
    }

    /// A session begins, and replaces an older one of the node.
    pub fn accept(&mut self, node: NodeId, session: u64, now: u64) {
        let since = self.machine.awake(now);
        let connected = Connected {
            end: End {
                session,
                heard: since,
            },
            stored: Vec::new(),
            report: None,
            since,
            told: None,
            told_evict: false,
            told_relief: None,
        };
        self.sessions.insert(node, connected);
    }

    /// A session ended: its answers go on elsewhere.
    pub fn lose(&mut self, node: NodeId, now: u64) -> Vec<Wish> {
        self.sessions.remove(&node);
        for answer in self.answers.values_mut() {
            answer.better = answer.better.filter(|(better, _)| *better != node);
        }
        let of_it =
            |answer: &Answer| matches!(answer.stage, Stage::Asked(at, _) | Stage::Made(at) if at == node);
        let lost: Vec<u64> = self
            .answers
            .iter()
            .filter(|(_, answer)| of_it(answer))
            .map(|(number, _)| *number)
            .collect();
        lost.into_iter()
            .flat_map(|answer| self.lost(answer, node, now))
            .collect()
    }

    fn lost(&mut self, number: u64, node: NodeId, now: u64) -> Vec<Wish> {
        let Some(answer) = self.answers.get_mut(&number) else {
            return Vec::new();
        };
        match (&answer.stage, &mut answer.relay) {
            (Stage::Made(_), Some(relay)) => {
                let next = relay.on_lost();
                self.follow(number, next, now)
            }
            _ => {
                answer.refused.push(node);
                answer.stage = Stage::Homeless(now);
                Vec::new()
            }
        }
    }

    pub fn on_message(&mut self, node: NodeId, session: u64, wire: Wire, now: u64, now_s: u64) -> Vec<Wish> {
        let awake = self.machine.awake(now);
        match self.sessions.get_mut(&node) {
            Some(connected) if connected.end.session == session => connected.end.heard = awake,
            _ => return Vec::new(),
        }
        match wire {
            Wire::Close => return self.lose(node, now),
            Wire::FromNode(message) => return self.learn(node, *message, awake, now_s),
            Wire::Event(answer, event) => return self.on_event(node, answer, event, now),
            Wire::FromCoordinator(_) | Wire::Open(..) | Wire::Cancel(_) | Wire::KeepAlive => {}
        }
        Vec::new()
    }

    fn learn(&mut self, node: NodeId, message: NodeMessage, awake: u64, now_s: u64) -> Vec<Wish> {
        let Some(connected) = self.sessions.get_mut(&node) else {
            return Vec::new();
        };
        match message {
            NodeMessage::Hello { models, .. } | NodeMessage::Store { models } => connected.stored = models,
            NodeMessage::Report(report) => connected.report = Some((awake, *report)),
            NodeMessage::Evicted => return vec![Wish::Commit(Command::RevokeNode { node, now_s })],
            _ => {}
        }
        Vec::new()
    }

    /// A client asks.
    pub fn ask(&mut self, number: u64, generation: Generation, now: u64) {
        let answer = Answer {
            generation,
            relay: None,
            stage: Stage::Homeless(now),
            refused: Vec::new(),
            moves: 0,
            better: None,
            stays_until: 0,
        };
        self.answers.insert(number, answer);
    }

    fn candidates(&self, generation: &Generation, now: u64, now_s: u64) -> Vec<Candidate> {
        let awake = self.machine.awake(now);
        let list = self.state.fallback(generation.class);
        let of_node = |(id, connected): (&NodeId, &Connected)| {
            let (at, report) = connected.report.as_ref()?;
            let loaded = report.engine.as_ref()?.models.get(&generation.model)?;
            Some(Candidate {
                node: *id,
                heard: heard_ago(awake - at),
                queued: loaded.running + loaded.waiting,
                in_flight: 0,
                draining: self.state.availability(*id, now_s).is_draining(),
                spared: self.state.relief(*id).rung.spares(generation.class),
                rank: self
                    .state
                    .rank(&list, (&generation.model, &generation.pools), *id)?,
                full: false,
                warm: 0,
            })
        };
        self.sessions.iter().filter_map(of_node).collect()
    }

    /// Finds a place for an answer that has none, or gives it up.
    fn look_after(&mut self, number: u64, now: u64, now_s: u64) -> Vec<Wish> {
        let Some(answer) = self.answers.get(&number) else {
            return Vec::new();
        };
        let since = match answer.stage {
            Stage::Homeless(since) => since,
            Stage::Asked(node, at) if now >= at + GRANT => return self.lost(number, node, now),
            Stage::Made(node) => return self.look_for_better(number, node, now, now_s),
            Stage::Asked(..) => return Vec::new(),
        };
        let avoid = answer.relay.as_ref().map(|relay| relay.failed().to_vec());
        let avoid: Vec<NodeId> = avoid.unwrap_or_default();
        let candidates = self.candidates(&answer.generation, now, now_s);
        let (others, fresh): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|candidate| avoid.contains(&candidate.node));
        let order = route(&fresh).into_iter().chain(route(&others));
        let refused = &answer.refused;
        let best = order.map(|route| route.node).find(|node| !refused.contains(node));
        let generation = answer.relay.as_ref().map_or(&answer.generation, Relay::rest);
        let patience = match (generation.class, &answer.relay) {
            (Class::Batch, _) => REPLACE_BATCH,
            (_, Some(_)) => REPLACE,
            (_, None) => EXPECT,
        };
        let (generation, is_over) = (generation.clone(), now >= since + patience);
        let Some(answer) = self.answers.get_mut(&number) else {
            return Vec::new();
        };
        match best {
            Some(node) => {
                answer.stage = Stage::Asked(node, now);
                vec![Wish::Send(node, Wire::Open(number, Box::new(generation)))]
            }
            None if is_over => {
                let moves = answer.moves;
                self.answers.remove(&number);
                let failure = pomona_common::Failure::NodeLost;
                vec![Wish::Tell(Told::Ended(
                    number,
                    GenerationEvent::Failed(failure),
                    moves,
                ))]
            }
            None => {
                // Whoever refused is asked again.
                answer.refused.clear();
                Vec::new()
            }
        }
    }

    /// Asks another node to go on with a batch answer whose own node is relieved so far that it leaves.
    fn look_for_better(&mut self, number: u64, maker: NodeId, now: u64, now_s: u64) -> Vec<Wish> {
        let asking = self
            .answers
            .values()
            .filter(|answer| answer.better.is_some())
            .count();
        let Some(answer) = self.answers.get(&number) else {
            return Vec::new();
        };
        if let Some((node, at)) = answer.better {
            return if now >= at + GRANT {
                self.stay(number, node, now)
            } else {
                Vec::new()
            };
        }
        let Some(relay) = answer.relay.as_ref().filter(|relay| relay.may_shift()) else {
            return Vec::new();
        };
        let leaves = match relay.has_begun() {
            true => Rung::MoveRunning,
            false => Rung::MoveQueued,
        };
        let is_batch = answer.generation.class == Class::Batch;
        let is_due = now >= answer.stays_until && asking < ASK;
        if !is_batch || !is_due || self.state.relief(maker).rung < leaves {
            return Vec::new();
        }
        let mut others = self.candidates(&answer.generation, now, now_s);
        others.retain(|one| one.node != maker && !one.spared && !one.draining);
        let Some(best) = route(&others).first().map(|route| route.node) else {
            return Vec::new();
        };
        let rest = relay.rest().clone();
        if let Some(answer) = self.answers.get_mut(&number) {
            answer.better = Some((best, now));
        }
        vec![Wish::Send(best, Wire::Open(number, Box::new(rest)))]
    }

    /// No better place was found.
    fn stay(&mut self, number: u64, asked: NodeId, now: u64) -> Vec<Wish> {
        if let Some(answer) = self.answers.get_mut(&number) {
            answer.better = None;
            answer.stays_until = now + STAY;
        }
        vec![Wish::Send(asked, Wire::Cancel(number))]
    }

    fn on_event(&mut self, node: NodeId, number: u64, event: GenerationEvent, now: u64) -> Vec<Wish> {
        let Some(answer) = self.answers.get_mut(&number) else {
            return vec![Wish::Send(node, Wire::Cancel(number))];
        };
        match answer.stage {
            Stage::Asked(asked, _) if asked == node => {
                if matches!(event, GenerationEvent::Failed(_)) {
                    return self.refused(number, node, now);
                }
                answer.stage = Stage::Made(node);
                answer.refused.clear();
                match &mut answer.relay {
                    Some(relay) => relay.moved(node, node),
                    none => *none = Some(Relay::new(answer.generation.clone(), node, node)),
                }
            }
            Stage::Made(maker) if maker == node => {}
            Stage::Made(maker) if answer.better.is_some_and(|(better, _)| better == node) => {
                answer.better = None;
                answer.stays_until = now + STAY;
                if matches!(event, GenerationEvent::Failed(_)) {
                    return Vec::new();
                }
                let Some(relay) = &mut answer.relay else {
                    return Vec::new();
                };
                // It has promised to go on: only now the other one is left.
                relay.shift();
                relay.moved(node, node);
                answer.stage = Stage::Made(node);
                return vec![Wish::Send(maker, Wire::Cancel(number))];
            }
            _ => return vec![Wish::Send(node, Wire::Cancel(number))],
        }
        let Some(relay) = &mut answer.relay else {
            return Vec::new();
        };
        let next = relay.on_event(event);
        self.follow(number, next, now)
    }

    fn refused(&mut self, number: u64, node: NodeId, now: u64) -> Vec<Wish> {
        if let Some(answer) = self.answers.get_mut(&number) {
            answer.refused.push(node);
            answer.stage = Stage::Homeless(now);
        }
        Vec::new()
    }

    /// Does what the relay says.
    fn follow(&mut self, number: u64, next: Next, now: u64) -> Vec<Wish> {
        let Some(answer) = self.answers.get_mut(&number) else {
            return Vec::new();
        };
        match next {
            Next::Wait => Vec::new(),
            Next::Pass(event) => vec![Wish::Tell(Told::Event(number, event))],
            Next::Last(event) => {
                let moves = answer.moves;
                self.answers.remove(&number);
                vec![Wish::Tell(Told::Ended(number, event, moves))]
            }
            Next::Move => {
                let from = match answer.stage {
                    Stage::Made(node) => Some(node),
                    _ => None,
                };
                answer.stage = Stage::Homeless(now);
                answer.moves += 1;
                from.map(|node| Wish::Send(node, Wire::Cancel(number)))
                    .into_iter()
                    .collect()
            }
        }
    }
}

/// The simulated network is a LAN.
fn heard_ago(age_ms: u64) -> Heard {
    Heard { age_ms, ..Heard::NOW }
}
