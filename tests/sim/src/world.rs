//! Everything together: one queue of events, one clock, one source of randomness.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::net::SocketAddr;

use pomona_common::{Class, NodeId, Rung};
use pomona_decide::{ClusterState, Command, apply_proposal};

use crate::actions::Action;
use crate::client::Client;
use crate::cluster::BEGAN_S;
use crate::coordinator::{self, Coordinator};
use crate::engine::Asker;
use crate::log::Log;
use crate::node::{self, Node};
use crate::policy::{Policy, Router, Tuning};
use crate::promises::step_of;
use crate::spills::Book;
use crate::wire::{Id, Wire};
use pomona_tests::Random;

/// Milliseconds between two looks of a machine, and before a message that found nobody is sent again.
const TICK: u64 = 100;
const AGAIN: u64 = 100;
/// A packet that was lost comes so many milliseconds later.
const RESENT: (u64, u64) = (50, 900);
/// A handshake that nobody answers.
const HANDSHAKE: u64 = 3_000;

enum Event {
    Tick(Id),
    /// A node's engine has something to say.
    Due(usize),
    Pump(Id, Id),
    Dialled(usize, SocketAddr, u64),
    Do(Action),
}

/// Messages on their way, each with the time of its arrival and its session.
type Channel = VecDeque<(u64, u64, Wire)>;

pub struct World {
    pub now: u64,
    pub count: u64,
    queue: BTreeMap<(u64, u64), Event>,
    /// When each node's engine is called next.
    due: Vec<u64>,
    pub random: Random,
    pub nodes: Vec<Node>,
    pub coordinators: Vec<Coordinator>,
    pub log: Log,
    pub cuts: BTreeSet<(Id, Id)>,
    /// Between whom packets get lost.
    pub lossy: BTreeSet<(Id, Id)>,
    pub channels: BTreeMap<(Id, Id), Channel>,
    pub clients: BTreeMap<u64, Client>,
    /// Answers that have ended since somebody looked.
    pub ended: Vec<u64>,
    /// What happened, line by line: the same for the same seed. Nothing is written down of a long run.
    pub trace: String,
    pub is_long: bool,
    /// Whether there is a machine to which nothing happens and that takes work, so that whoever asks gets an answer.
    pub has_refuge: bool,
    /// Promises that were broken.
    pub broken: Vec<String>,
    /// What operators said of the cloud.
    pub book: Book,
    /// Steps of the offload ladder: when, which node, from where and to where.
    pub rungs: Vec<(u64, NodeId, Rung, Rung)>,
}

pub fn address(coordinator: u64) -> SocketAddr {
    ([10, 0, 0, coordinator as u8], 7712).into()
}

pub fn addresses(coordinators: u64) -> Vec<SocketAddr> {
    (1..=coordinators).map(address).collect()
}

impl World {
    /// A cluster that is switched on: this state is what its log says so far.
    pub fn new(seed: u64, coordinators: u64, nodes: Vec<Node>, founding: &[Command]) -> Self {
        let mut world = Self {
            now: 0,
            count: 0,
            queue: BTreeMap::new(),
            due: vec![u64::MAX; nodes.len()],
            random: Random::new(seed),
            nodes,
            coordinators: (1..=coordinators).map(Coordinator::new).collect(),
            log: Log::default(),
            cuts: BTreeSet::new(),
            lossy: BTreeSet::new(),
            channels: BTreeMap::new(),
            clients: BTreeMap::new(),
            ended: Vec::new(),
            trace: String::new(),
            is_long: false,
            has_refuge: true,
            broken: Vec::new(),
            book: Book::default(),
            rungs: Vec::new(),
        };
        for node in &mut world.nodes {
            node.engine.differ_by(Random::new(seed ^ node.id.bits() as u64));
        }
        for command in founding {
            world.log.commit(command.clone(), &mut world.random);
        }
        let everybody = world.everybody();
        for id in everybody {
            let at = world.random.between(0, TICK);
            world.schedule(at, Event::Tick(id));
        }
        world
    }

    /// Lets another router decide, and nobody move anything.
    pub fn set_router(&mut self, policy: Policy, tuning: Tuning) {
        let machine = |node: &Node| {
            let kind = &node.mac.kind;
            (node.id, (kind.role, kind.bandwidth_gb_s.value))
        };
        let machines: BTreeMap<_, _> = self.nodes.iter().map(machine).collect();
        for coordinator in &mut self.coordinators {
            coordinator.router = Some(Router::new(policy, tuning, machines.clone()));
        }
    }

    pub fn everybody(&self) -> Vec<Id> {
        let coordinators = self.coordinators.iter().map(|one| Id::Coordinator(one.number));
        coordinators.chain((0..self.nodes.len()).map(Id::Node)).collect()
    }

    pub fn now_s(&self) -> u64 {
        BEGAN_S + self.now / 1000
    }

    /// By the wall clock of a coordinator.
    pub fn now_s_at(&self, number: u64) -> u64 {
        let off = self.coordinators[number as usize - 1].clock_off_s;
        self.now_s().saturating_add_signed(off)
    }

    /// Does this at that time.
    pub fn at(&mut self, at: u64, action: Action) {
        self.schedule(at, Event::Do(action));
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.count += 1;
        self.queue.insert((at, self.count), event);
    }

    /// Goes on until this time.
    pub fn run_until(&mut self, end: u64) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.handle(event);
        }
        self.now = end;
    }

    pub fn say(&mut self, text: std::fmt::Arguments<'_>) {
        if !self.is_long {
            let _ = writeln!(self.trace, "{:>7} {text}", self.now);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick(id) => {
                self.tick(id);
                self.schedule(self.now + TICK, Event::Tick(id));
            }
            Event::Due(node) => {
                if self.due[node] <= self.now {
                    self.due[node] = u64::MAX;
                    if self.nodes[node].machine.runs() {
                        let wishes = self.nodes[node].catch_up(self.now);
                        self.carry_out_node(node, wishes);
                    }
                }
            }
            Event::Pump(from, to) => self.pump(from, to),
            Event::Dialled(node, address, since) => self.dialled(node, address, since),
            Event::Do(action) => self.act(action),
        }
    }

    fn tick(&mut self, id: Id) {
        if !self.runs(id) {
            return;
        }
        match id {
            Id::Node(node) => {
                let wishes = self.nodes[node].tick(self.now);
                self.carry_out_node(node, wishes);
                if self.nodes[node].mac.has_gone_out() {
                    self.nodes[node].machine.sleep(self.now);
                }
            }
            Id::Coordinator(number) => {
                let numbers: Vec<u64> = self.coordinators.iter().map(|one| one.number).collect();
                let able = |one: &u64| {
                    let reached = numbers.iter().filter(|other| self.reaches(*one, **other));
                    self.runs(Id::Coordinator(*one)) && 2 * reached.count() > numbers.len()
                };
                let able: Vec<u64> = numbers.iter().copied().filter(able).collect();
                let before = self.log.leader;
                self.log.elect(self.now, &able);
                if self.log.leader != before {
                    let leader = self.log.leader;
                    self.say(format_args!("leader: {leader:?}"));
                }
                self.apply(number);
                let (now, now_s) = (self.now, self.now_s_at(number));
                let leads = self.log.leader == Some(number);
                let wishes = self.coordinator(number).tick(now, leads, now_s);
                self.carry_out_coordinator(number, wishes);
            }
        }
    }

    /// Whether two coordinators can talk, both ways.
    fn reaches(&self, one: u64, other: u64) -> bool {
        let (a, b) = (Id::Coordinator(one), Id::Coordinator(other));
        one == other || self.runs(b) && !self.is_cut(a, b) && !self.is_cut(b, a)
    }

    /// Whether a coordinator is heard by a leader.
    pub fn has_quorum(&self, number: u64) -> bool {
        let reaches = |leader| self.reaches(number, leader);
        self.runs(Id::Coordinator(number)) && self.log.leader.is_some_and(reaches)
    }

    /// Lets a coordinator know what was committed, if it reaches the leader.
    pub fn apply(&mut self, number: u64) {
        if !self.log.leader.is_some_and(|leader| self.reaches(number, leader)) {
            return;
        }
        let World {
            coordinators, log, ..
        } = self;
        if let Some(own) = coordinators.iter_mut().find(|one| one.number == number) {
            for (index, proposal) in log.entries.iter().enumerate().skip(own.applied) {
                apply_proposal(&mut own.state, index as u64 + 1, proposal);
            }
            own.applied = log.entries.len();
        }
    }

    pub fn coordinator(&mut self, number: u64) -> &mut Coordinator {
        &mut self.coordinators[number as usize - 1]
    }

    /// The state that everything committed leads to.
    pub fn agreed(&self) -> ClusterState {
        let mut state = ClusterState::default();
        for (index, proposal) in self.log.entries.iter().enumerate() {
            apply_proposal(&mut state, index as u64 + 1, proposal);
        }
        state
    }

    pub fn runs(&self, id: Id) -> bool {
        match id {
            Id::Node(node) => self.nodes[node].machine.runs(),
            Id::Coordinator(number) => self.coordinators[number as usize - 1].machine.runs(),
        }
    }

    fn is_off(&self, id: Id) -> bool {
        match id {
            Id::Node(node) => self.nodes[node].machine.off,
            Id::Coordinator(number) => self.coordinators[number as usize - 1].machine.off,
        }
    }

    fn is_cut(&self, from: Id, to: Id) -> bool {
        self.cuts.contains(&(from, to))
    }

    fn send(&mut self, from: Id, to: Id, session: u64, wire: Wire) {
        let mut latency = self.random.between(1, 6);
        if self.lossy.contains(&(from, to)) && self.random.one_in(4) {
            // Sent again, once or a few times.
            latency += self.random.between(RESENT.0, RESENT.1);
        }
        let channel = self.channels.entry((from, to)).or_default();
        // In order, as in a stream.
        let at = channel.back().map_or(0, |(at, ..)| *at).max(self.now + latency);
        channel.push_back((at, session, wire));
        self.schedule(at, Event::Pump(from, to));
    }

    /// Delivers what is due, or tries again later: QUIC does until the session ends.
    fn pump(&mut self, from: Id, to: Id) {
        if self.is_off(to) {
            self.channels.remove(&(from, to));
            return;
        }
        if !self.runs(to) || self.is_cut(from, to) {
            self.schedule(self.now + AGAIN, Event::Pump(from, to));
            return;
        }
        loop {
            let channel = self.channels.entry((from, to)).or_default();
            let Some((_, session, wire)) = channel
                .front()
                .is_some_and(|(at, ..)| *at <= self.now)
                .then(|| channel.pop_front())
                .flatten()
            else {
                return;
            };
            let now = self.now;
            match (from, to) {
                (Id::Coordinator(number), Id::Node(node)) => {
                    let wishes = self.nodes[node].on_message(number, session, wire, now);
                    self.carry_out_node(node, wishes);
                }
                (Id::Node(node), Id::Coordinator(number)) => {
                    let (id, now_s) = (self.nodes[node].id, self.now_s_at(number));
                    let wishes = self.coordinator(number).on_message(id, session, wire, now, now_s);
                    self.carry_out_coordinator(number, wishes);
                }
                _ => {}
            }
        }
    }

    fn dialled(&mut self, node: usize, address: SocketAddr, since: u64) {
        if self.is_off(Id::Node(node)) {
            return;
        }
        let number = match address {
            SocketAddr::V4(v4) => u64::from(v4.ip().octets()[3]),
            SocketAddr::V6(_) => 0,
        };
        let (here, there) = (Id::Node(node), Id::Coordinator(number));
        let open = !self.is_cut(here, there) && !self.is_cut(there, here);
        if !self.runs(here) || (!(open && self.runs(there)) && self.now < since + HANDSHAKE) {
            self.schedule(self.now + AGAIN, Event::Dialled(node, address, since));
            return;
        }
        let id = self.nodes[node].id;
        let is_member = self.coordinator(number).state.nodes.contains_key(&id);
        self.count += 1;
        let session = self.count;
        let answered = (open && self.runs(there) && is_member).then_some((number, session));
        let now = self.now;
        let wishes = self.nodes[node].dialled(address, answered, now);
        if answered.is_some() && !wishes.is_empty() {
            // What is on its way from an older session is of no use.
            let lost = self.coordinator(number).lose(id, now);
            self.coordinator(number).accept(id, session, now);
            self.carry_out_coordinator(number, lost);
        }
        self.carry_out_node(node, wishes);
    }

    /// Calls a node's engine when it wants to be called.
    fn call(&mut self, node: usize) {
        if let Some(due) = self.nodes[node].due(self.now)
            && due < self.due[node]
        {
            self.due[node] = due;
            self.schedule(due, Event::Due(node));
        }
    }

    pub fn carry_out_node(&mut self, node: usize, wishes: Vec<node::Wish>) {
        for wish in wishes {
            match wish {
                node::Wish::Dial(address) => {
                    let at = self.now + self.random.between(2, 10);
                    self.schedule(at, Event::Dialled(node, address, self.now));
                }
                node::Wish::Send(number, wire) => {
                    let session = self.nodes[node]
                        .sessions
                        .get(&number)
                        .map_or(0, |end| end.session);
                    self.send(Id::Node(node), Id::Coordinator(number), session, wire);
                }
                node::Wish::Close(number, session) => {
                    self.send(Id::Node(node), Id::Coordinator(number), session, Wire::Close);
                }
                node::Wish::Tell(number, event, ended) => self.hear(number, event, ended),
                node::Wish::Strays(number) => {
                    let (now, node) = (self.now, self.nodes[node].id.short());
                    self.broken.push(format!(
                        "{now}: interactive answer {number} strays from {node}, which has its model"
                    ));
                }
            }
        }
        self.call(node);
    }

    pub fn carry_out_coordinator(&mut self, number: u64, wishes: Vec<coordinator::Wish>) {
        for wish in wishes {
            match wish {
                coordinator::Wish::Send(id, wire) => {
                    if let Wire::Open(answer, generation) = &wire
                        && generation.class == Class::Interactive
                    {
                        self.check_stays(number, *answer, id);
                    }
                    let session = self.coordinator(number).session(id);
                    if let Some(node) = self.nodes.iter().position(|node| node.id == id) {
                        self.send(Id::Coordinator(number), Id::Node(node), session, wire);
                    }
                }
                coordinator::Wish::Close(id, session) => {
                    if let Some(node) = self.nodes.iter().position(|node| node.id == id) {
                        self.send(Id::Coordinator(number), Id::Node(node), session, Wire::Close);
                    }
                }
                coordinator::Wish::Commit(command) => self.commit(number, command),
                coordinator::Wish::Tell(number, event, ended) => self.hear(number, event, ended),
            }
        }
    }

    /// A write goes to the leader, if there is one in reach.
    fn commit(&mut self, number: u64, command: Command) {
        if self.log.leader.is_some_and(|leader| self.reaches(number, leader)) {
            self.check(number, &command);
            if let Command::Replan { step, .. } = &command {
                for one in &step.moves {
                    let what = if one.load { "load" } else { "unload" };
                    let (model, node, why) = (&one.model, one.node.short(), &one.reason);
                    self.say(format_args!("{what} {model} on {node}: {why}"));
                }
            }
            if let Some((node, seen, relieved)) = step_of(&command) {
                let (to, why) = (relieved.relief.rung, &relieved.reason);
                self.rungs.push((self.now, node, seen, to));
                self.say(format_args!("{} {seen} to {to}: {why}", node.short()));
            }
            // Who hears no answer in time tells it again, which is another proposal.
            if matches!(command, Command::ChargeKeys { .. }) && self.random.one_in(4) {
                self.log.commit(command.clone(), &mut self.random);
            }
            self.log.commit(command, &mut self.random);
        }
    }

    /// An interactive answer stays with whoever makes it and is well.
    fn check_stays(&mut self, number: u64, answer: u64, to: NodeId) {
        let stands = |node: &Node| {
            let session = node.sessions.get(&number).map(|end| end.session);
            session == Some(self.coordinators[number as usize - 1].session(node.id))
        };
        let is_made = |node: &&Node| {
            let made = node.engine.makes((Asker::Coordinator(number), answer));
            made.is_some() && stands(node) && node.machine.runs()
        };
        if let Some(node) = self.nodes.iter().filter(|node| node.id != to).find(is_made) {
            let (now, node) = (self.now, node.id.short());
            self.broken.push(format!(
                "{now}: interactive answer {answer} left {node}, which made it"
            ));
        }
    }
}
