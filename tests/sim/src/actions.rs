//! What happens to the world from outside.

use pomona_common::signs::FirstToken;
use pomona_decide::{Command, SpillId};

use crate::client::{End, Request};
use crate::engine::Wedged;
use crate::mac::Person;
use crate::machine::Machine;
use crate::trouble::model;
use crate::wire::Id;
use crate::world::{World, addresses};

/// A clock that is set by less is none that is wrong, in seconds: what is dated by it stays where it is.
const NOTICED_S: u64 = 900;

/// One such thing.
#[derive(Debug, Clone)]
pub enum Action {
    Sleep(Id),
    Wake(Id),
    Stall(Id, bool),
    Kill(Id),
    Start(Id),
    /// Nothing gets from the first to the second any more, or again.
    Cut(Id, Id, bool),
    /// Packets between the two get lost, or do no more: what they say comes late.
    Loses(Id, Id, bool),
    /// The cloud is approved for so many seconds and tokens, or no more.
    Approve(Option<(u64, u64)>),
    /// Whether the second model is private.
    SetPrivate(bool),
    /// Nobody takes a request at this coordinator.
    Spill(u64),
    /// A cloud's answer took so many tokens.
    Settle(SpillId, u64),
    /// A request with a key takes so many tokens at a node's endpoint.
    Take(usize, u64),
    /// A machine's wall clock is off by so many seconds from now on.
    Steps(Id, i64),
    Commit(Command),
    /// What a person does at a node from now on.
    Person(usize, Person),
    /// Its probe says so many watts from now on, whatever it draws; or what it draws again.
    SaysWatts(usize, Option<f32>),
    /// Memory pressure of its system, in percent, that comes from elsewhere; or none.
    Pressed(usize, Option<f32>),
    /// The footprint of its engine, in percent of the memory, whatever it is; or what it is again.
    SaysResident(usize, Option<f32>),
    /// Swap in use in MB, and whether more is being written, likewise.
    SaysSwap(usize, Option<(f32, bool)>),
    /// Its engine says that an interactive answer began, when none did.
    SaysBegan(usize, FirstToken),
    /// Total and available memory that its probe says, of what is there in all, likewise.
    SaysMemory(usize, Option<(f64, f64)>),
    /// Its battery holds so many percent.
    Battery(usize, f64),
    /// Its engine does nothing any more, or goes on.
    Wedge(usize, Option<Wedged>),
    /// Its engine dies, and is started anew.
    Crash(usize),
    /// The system kills its engine, for want of memory.
    Kills(usize),
    Ask(Id, Request),
}

impl World {
    pub fn act(&mut self, action: Action) {
        if !matches!(action, Action::Ask(..) | Action::SaysBegan(..)) {
            self.say(format_args!("{action:?}"));
        }
        let now = self.now;
        match action {
            Action::Sleep(id) => self.machine(id).sleep(now),
            Action::Wake(id) => self.machine(id).wake(now),
            Action::Stall(id, stalled) => self.machine(id).stall(stalled, now),
            Action::Kill(id) => self.kill(id),
            Action::Start(id) => {
                let machine = self.machine(id);
                if std::mem::take(&mut machine.off) {
                    machine.boots += 1;
                }
            }
            Action::Cut(from, to, true) => {
                self.cuts.insert((from, to));
            }
            Action::Cut(from, to, false) => {
                self.cuts.remove(&(from, to));
            }
            Action::Person(node, person) => {
                self.nodes[node].mac.person = person;
                if !person.unplugged && self.nodes[node].mac.has_gone_out() {
                    self.nodes[node].mac.charge(1.0);
                    self.machine(Id::Node(node)).wake(now);
                }
            }
            Action::Battery(node, percent) => self.nodes[node].mac.charge(percent),
            Action::Wedge(node, wedged) => {
                if self.nodes[node].machine.runs() {
                    let wishes = self.nodes[node].wedge(wedged, now);
                    self.carry_out_node(node, wishes);
                }
            }
            Action::SaysMemory(node, memory) => self.nodes[node].mac.says.memory = memory,
            Action::SaysWatts(node, watts) => self.nodes[node].mac.says.watts = watts,
            Action::Pressed(node, percent) => self.nodes[node].mac.says.pressure = percent,
            Action::SaysResident(node, percent) => self.nodes[node].mac.says.resident = percent,
            Action::SaysSwap(node, swap) => self.nodes[node].mac.says.swap = swap,
            Action::SaysBegan(node, first) => self.nodes[node].engine.note(Some(first)),
            Action::Crash(node) => self.crash(node),
            Action::Kills(node) => {
                if self.nodes[node].machine.runs() {
                    self.nodes[node].count_kill();
                }
                self.crash(node);
            }
            Action::Loses(from, to, true) => {
                self.lossy.insert((from, to));
            }
            Action::Loses(from, to, false) => {
                self.lossy.remove(&(from, to));
            }
            Action::Approve(approval) => self.approve(approval),
            Action::SetPrivate(private) => self.set_private(private),
            Action::Spill(number) => self.spill(number),
            Action::Settle(id, tokens) => self.settle(id, tokens),
            Action::Take(node, tokens) => {
                if self.nodes[node].machine.runs() {
                    let now_s = self.nodes[node].now_s(now);
                    self.nodes[node].quota.take(&model(0), tokens, now_s);
                }
            }
            Action::Steps(Id::Coordinator(number), seconds) => self.coordinator(number).clock_off_s = seconds,
            Action::Steps(Id::Node(node), seconds) => {
                let before = std::mem::replace(&mut self.nodes[node].clock_off_s, seconds);
                if before.abs_diff(seconds) > NOTICED_S {
                    self.nodes[node].quota.stepped();
                }
            }
            Action::Commit(command) => self.log.commit(command, &mut self.random),
            Action::Ask(entry, request) => {
                self.ask(entry, request, None);
            }
        }
    }

    fn crash(&mut self, node: usize) {
        if self.nodes[node].machine.runs() {
            let wishes = self.nodes[node].crash(self.now);
            self.carry_out_node(node, wishes);
        }
    }

    fn machine(&mut self, id: Id) -> &mut Machine {
        match id {
            Id::Node(node) => &mut self.nodes[node].machine,
            Id::Coordinator(number) => &mut self.coordinator(number).machine,
        }
    }

    fn kill(&mut self, id: Id) {
        let known = addresses(self.coordinators.len() as u64);
        let now = self.now;
        match id {
            Id::Node(node) => self.nodes[node].restart(&known, now),
            Id::Coordinator(number) => self.coordinator(number).restart(),
        }
        for client in self.clients.values_mut() {
            if client.entry == id && client.end.is_none() {
                client.end = Some(End::WithEntry);
            }
        }
        self.machine(id).off = true;
        self.channels.retain(|(from, to), _| *from != id && *to != id);
    }
}
