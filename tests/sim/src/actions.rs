//! What happens to the world from outside.

use pomona_decide::Command;

use crate::client::{End, Request};
use crate::mac::Person;
use crate::machine::Machine;
use crate::wire::Id;
use crate::world::{World, addresses};

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
    Commit(Command),
    /// What a person does at a node from now on.
    Person(usize, Person),
    /// Its probe says so many watts from now on, whatever it draws; or what it draws again.
    SaysWatts(usize, Option<f32>),
    /// Memory pressure of its system, in percent, that comes from elsewhere; or none.
    Pressed(usize, Option<f32>),
    /// Its engine dies, and is started anew.
    Crash(usize),
    Ask(Id, Request),
}

impl World {
    pub fn act(&mut self, action: Action) {
        if !matches!(action, Action::Ask(..)) {
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
                machine.off = false;
                machine.boots += 1;
            }
            Action::Cut(from, to, true) => {
                self.cuts.insert((from, to));
            }
            Action::Cut(from, to, false) => {
                self.cuts.remove(&(from, to));
            }
            Action::Person(node, person) => self.nodes[node].mac.person = person,
            Action::SaysWatts(node, watts) => self.nodes[node].mac.said_watts = watts,
            Action::Pressed(node, percent) => self.nodes[node].mac.pressed = percent,
            Action::Crash(node) => {
                if self.nodes[node].machine.runs() {
                    let wishes = self.nodes[node].crash(now);
                    self.carry_out_node(node, wishes);
                }
            }
            Action::Commit(command) => self.log.commit(command, &mut self.random),
            Action::Ask(entry, request) => {
                self.ask(entry, request, None);
            }
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
