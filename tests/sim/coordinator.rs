//! A coordinator: sessions, reports, the leader's round, and answers that move.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_clocks::SleepWatch;
use pomona_common::control::{CoordinatorMessage, NodeMessage};
use pomona_common::report::NodeReport;
use pomona_common::{Generation, GenerationEvent, ModelName, ModelRecord, NodeId};
use pomona_decide::{
    Candidate, ClusterState, Command, Heard, Inventory, Next, NodeInventory, Patience, Presence, Relay,
    StoreInventory, lease, plan, presence, route,
};

use crate::machine::Machine;
use crate::wire::{End, IDLE, KEEP_ALIVE, Wire};

/// Milliseconds between two rounds of the leader.
const ROUND: u64 = 500;
/// As the real one: how long an answer looks for another place, and a request for its first.
const REPLACE: u64 = 12_000;
const EXPECT: u64 = 5_000;
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
        wishes
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
        };
        self.sessions.insert(node, connected);
    }

    /// A session ended: its answers go on elsewhere.
    pub fn lose(&mut self, node: NodeId, now: u64) -> Vec<Wish> {
        self.sessions.remove(&node);
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
        };
        self.answers.insert(number, answer);
    }

    fn candidates(&self, model: &ModelName, now: u64, now_s: u64) -> Vec<Candidate> {
        let awake = self.machine.awake(now);
        let of_node = |(id, connected): (&NodeId, &Connected)| {
            let (at, report) = connected.report.as_ref()?;
            let loaded = report.engine.as_ref()?.models.get(model)?;
            Some(Candidate {
                node: *id,
                heard: heard_ago(awake - at),
                queued: loaded.running + loaded.waiting,
                in_flight: 0,
                draining: self.state.availability(*id, now_s).is_draining(),
                spared: false,
                shunned: false,
                full: false,
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
            Stage::Asked(..) | Stage::Made(_) => return Vec::new(),
        };
        let avoid = answer.relay.as_ref().map(|relay| relay.failed().to_vec());
        let avoid: Vec<NodeId> = avoid.unwrap_or_default();
        let candidates = self.candidates(&answer.generation.model, now, now_s);
        let (others, fresh): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|candidate| avoid.contains(&candidate.node));
        let order = route(&fresh).into_iter().chain(route(&others));
        let refused = &answer.refused;
        let best = order.map(|route| route.node).find(|node| !refused.contains(node));
        let generation = answer.relay.as_ref().map_or(&answer.generation, Relay::rest);
        let patience = if answer.relay.is_some() { REPLACE } else { EXPECT };
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
