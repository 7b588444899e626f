//! A coordinator: sessions, reports, the leader's round, and answers that move.

mod view;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pomona_clocks::SleepWatch;
use pomona_common::control::{CoordinatorMessage, NodeMessage};
use pomona_common::generation::GenerationEvent;
use pomona_common::plausible::keep_plausible;
use pomona_common::report::NodeReport;
use pomona_common::signs::{Signs, Speeds};
use pomona_common::spending::{Batch, Charged, EntryId};
use pomona_common::{Generation, ModelRecord, NodeId, Relief};
use pomona_decide::gates::are_counted;
use pomona_decide::{
    Affinity, ClusterState, Command, GateWatch, Heard, Inventory, Ladder, Marks, NodeInventory, NodeSignals,
    Patience, Prefills, Presence, StoreInventory, apply, lease, plan, presence,
};

use crate::answers::{self, Answers};
use crate::machine::Machine;
use crate::policy::Router;
use crate::quotas;
use crate::wire::{End, IDLE, KEEP_ALIVE, Wire};
use view::View;

/// Milliseconds between two rounds of the leader.
const ROUND: u64 = 500;
/// How long a model that is being loaded is waited for.
const EXPECT: u64 = 5_000;

/// A connected node.
pub struct Connected {
    end: End,
    stored: Vec<ModelRecord>,
    report: Option<(u64, NodeReport)>,
    signs: Option<Arc<Signs>>,
    speeds: Option<Speeds>,
    /// What keys took at its endpoint, and what it was told is counted of it.
    spent: Option<Batch>,
    told_spent: Option<Charged>,
    /// The node's process.
    instance: u64,
    since: u64,
    told: Option<u64>,
    told_evict: bool,
    told_relief: Option<Relief>,
}

/// What a coordinator wants done.
pub enum Wish {
    Send(NodeId, Wire),
    /// Tells the other end that its session has ended.
    Close(NodeId, u64),
    Commit(Command),
    /// For a client, and after how many moves its answer ended, if it did.
    Tell(u64, GenerationEvent, Option<u32>),
}

pub struct Coordinator {
    pub number: u64,
    pub machine: Machine,
    pub state: ClusterState,
    pub applied: usize,
    pub sessions: BTreeMap<NodeId, Connected>,
    answers: Answers<NodeId>,
    /// Answers that a node's own endpoint asked for.
    asked_by: BTreeMap<u64, NodeId>,
    affinity: Affinity,
    prefills: Prefills,
    /// Who decides where requests go, if it is not the product.
    pub router: Option<Router>,
    watch: SleepWatch,
    patience: Patience,
    gates: GateWatch,
    ladder: Ladder,
    planned: u64,
    said: u64,
    /// By how many seconds its wall clock is off.
    pub clock_off_s: i64,
}

impl Coordinator {
    pub fn new(number: u64) -> Self {
        Self {
            number,
            machine: Machine::default(),
            state: ClusterState::default(),
            applied: 0,
            sessions: BTreeMap::new(),
            answers: Answers::default(),
            asked_by: BTreeMap::new(),
            affinity: Affinity::default(),
            prefills: Prefills::default(),
            router: None,
            watch: SleepWatch::default(),
            patience: Patience::default(),
            gates: GateWatch::default(),
            ladder: Ladder::default(),
            planned: 0,
            said: 0,
            clock_off_s: 0,
        }
    }

    /// Its process starts anew: what was agreed on is on the disk, the rest is lost.
    pub fn restart(&mut self) {
        let fresh = Self::new(self.number);
        let old = std::mem::replace(self, fresh);
        self.machine = old.machine;
        (self.state, self.applied, self.router) = (old.state, old.applied, old.router);
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
        if !self.answers.is_empty() {
            let next = self.with_view(now, now_s, |answers, view| answers.tick(view, now));
            wishes.extend(self.follow(next, now));
        }
        wishes
    }

    /// Lets the answers look at what is known.
    fn with_view<T>(
        &mut self,
        now: u64,
        now_s: u64,
        look: impl FnOnce(&mut Answers<NodeId>, &View<'_>) -> T,
    ) -> T {
        let mut answers = std::mem::take(&mut self.answers);
        let in_flight = answers.in_flight();
        let view = View {
            coordinator: self,
            in_flight: RefCell::new(in_flight),
            now,
            now_s,
        };
        let done = look(&mut answers, &view);
        self.answers = answers;
        done
    }

    /// Does what its answers want.
    fn follow(&mut self, next: Vec<answers::Wish<NodeId>>, now: u64) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for one in next {
            match one {
                answers::Wish::Open(node, number, generation) => {
                    if let Some(router) = &mut self.router {
                        router.asked(node, number, generation.class, now);
                    }
                    wishes.push(Wish::Send(node, Wire::Open(number, generation)));
                }
                answers::Wish::Cancel(node, number) => wishes.push(Wish::Send(node, Wire::Cancel(number))),
                answers::Wish::Tell(number, event) => wishes.push(match self.asked_by.get(&number) {
                    Some(node) => Wish::Send(*node, Wire::Event(number, event)),
                    None => Wish::Tell(number, event, None),
                }),
                answers::Wish::End(number, event, moves) => {
                    if let Some(router) = &mut self.router {
                        router.ended(number, &event, now);
                    }
                    wishes.push(match self.asked_by.remove(&number) {
                        Some(node) => Wish::Send(node, Wire::Event(number, event)),
                        None => Wish::Tell(number, event, Some(moves)),
                    });
                }
            }
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
            let charged = self.state.keys.charged.get(&EntryId::Node(*id));
            let charged = charged.map(|counted| counted.latest);
            if let Some(charged) = charged.filter(|_| connected.told_spent != charged) {
                connected.told_spent = Some(charged);
                tell(quotas::news(&self.state, *id, self.applied as u64, charged));
            }
            let lease = self.state.leases.of_nodes.get(id);
            if lease.is_some_and(|lease| lease.evicting) && !connected.told_evict {
                connected.told_evict = true;
                tell(CoordinatorMessage::Evict);
            }
        }
        wishes
    }

    /// As `coordinator/src/leader.rs`: each step goes by what the ones before it did.
    fn lead(&mut self, now: u64, now_s: u64) -> Vec<Wish> {
        let missing = self.sessions.values().flat_map(|connected| &connected.stored);
        let missing = missing.filter(|record| !self.state.catalogue.contains_key(&record.name));
        let mut due: Vec<Command> = missing.map(|record| Command::AddModel(record.clone())).collect();
        due.extend(lease::due(&self.state, now_s));
        due.extend(self.charges(now, now_s));
        let (inventory, mut signals) = (self.inventory(now), self.signals(now));
        let awake = Duration::from_millis(self.machine.awake(now));
        let mut known = Known::of(&self.state, &due);
        if self.router.is_none() {
            let killed = self.sessions.iter().filter_map(|(node, connected)| {
                let (instance, totals) = (connected.instance, &connected.signs.as_ref()?.kills);
                let is_new = !are_counted(&known.state, *node, instance, totals);
                is_new.then(|| Command::CountKills {
                    node: *node,
                    instance,
                    totals: totals.clone(),
                    now_s,
                })
            });
            let killed: Vec<Command> = killed.collect();
            known.take(killed, &mut due);
            let passed = self.gates.steps(&known.state, &signals, awake, now_s);
            known.take(passed, &mut due);
            self.gates.advise(&known.state, &mut signals, awake, now_s);
            let relieved = self.ladder.steps(&known.state, &signals, awake, now_s);
            known.take(relieved, &mut due);
        }
        if !self.patience.waits(&known.state, &inventory, awake)
            && let Some(step) = plan(&known.state, &inventory, now_s).step
        {
            due.push(Command::Replan { step, now_s });
        }
        due.into_iter().map(Wish::Commit).collect()
    }

    /// Counts what keys took at nodes' endpoints.
    fn charges(&self, now: u64, now_s: u64) -> Option<Command> {
        let awake = self.machine.awake(now);
        let of_node = |(node, connected): (&NodeId, &Connected)| {
            let (entry, batch) = (EntryId::Node(*node), connected.spent.clone()?);
            let (at, report) = connected.report.as_ref()?;
            let ago = Duration::from_millis(awake - at);
            let is_new = !self.state.keys.has_counted(entry, &batch);
            (is_new && self.state.keys_for(*node).is_some())
                .then(|| (entry, batch.dated(report.wall_ms, ago, now_s)))
        };
        let charges: Vec<(EntryId, Batch)> = self.sessions.iter().filter_map(of_node).collect();
        (!charges.is_empty()).then_some(Command::ChargeKeys { charges, now_s })
    }

    /// Whether a node's reports come, one a second.
    pub fn hears(&self, node: NodeId, now: u64) -> bool {
        let awake = self.machine.awake(now);
        let report = self.sessions.get(&node).and_then(|one| one.report.as_ref());
        report.is_some_and(|(at, _)| awake - at < 1_500)
    }

    fn signals(&self, now: u64) -> BTreeMap<NodeId, NodeSignals> {
        let awake = self.machine.awake(now);
        let seen = self.sessions.iter().filter_map(|(id, connected)| {
            let (at, report) = connected.report.as_ref()?;
            let heard = heard_ago(awake - at);
            let mut signals = NodeSignals::of(report, connected.signs.clone(), heard);
            signals.speeds = connected.speeds;
            Some((*id, signals))
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
            signs: None,
            speeds: None,
            spent: None,
            told_spent: None,
            instance: 0,
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
        let of_it = self.asked_by.iter().filter(|(_, by)| **by == node);
        let mut next = Vec::new();
        for number in of_it.map(|(number, _)| *number).collect::<Vec<u64>>() {
            self.asked_by.remove(&number);
            next.extend(self.answers.drop_answer(number));
        }
        next.extend(self.answers.lose(node, now));
        self.follow(next, now)
    }

    pub fn on_message(&mut self, node: NodeId, session: u64, wire: Wire, now: u64, now_s: u64) -> Vec<Wish> {
        let awake = self.machine.awake(now);
        match self.sessions.get_mut(&node) {
            Some(connected) if connected.end.session == session => connected.end.heard = awake,
            _ => return Vec::new(),
        }
        match wire {
            Wire::Close => self.lose(node, now),
            Wire::FromNode(message) => self.learn(node, *message, awake, now_s),
            Wire::Event(answer, event) => {
                if let Some(router) = &mut self.router {
                    router.heard(answer, &event, now);
                }
                let at = Duration::from_millis(now);
                match (&event, self.answers.asked(answer)) {
                    (GenerationEvent::Granted, Some(asked)) => {
                        self.affinity.note(&Marks::of(asked), node, at);
                    }
                    (GenerationEvent::Finished { accounting, .. }, Some(asked))
                        if self.answers.is_whole(answer, accounting) =>
                    {
                        self.prefills.note(asked, accounting, at);
                    }
                    _ => {}
                }
                let next = self.answers.on_event(node, node, answer, event, now);
                self.follow(next, now)
            }
            Wire::Open(answer, generation) => {
                self.asked_by.insert(answer, node);
                // Holding is for the entry that the client asked.
                self.ask(answer, *generation, 0, now, now_s)
            }
            Wire::Cancel(answer) if self.asked_by.remove(&answer).is_some() => {
                let next = self.answers.drop_answer(answer);
                self.follow(next, now)
            }
            Wire::FromCoordinator(_) | Wire::Cancel(_) | Wire::KeepAlive => Vec::new(),
        }
    }

    fn learn(&mut self, node: NodeId, message: NodeMessage, awake: u64, now_s: u64) -> Vec<Wish> {
        let Some(connected) = self.sessions.get_mut(&node) else {
            return Vec::new();
        };
        match message {
            NodeMessage::Hello { models, instance, .. } => {
                (connected.stored, connected.instance) = (models, instance)
            }
            NodeMessage::Store { models } => connected.stored = models,
            NodeMessage::Report(mut report) => {
                keep_plausible(&mut report);
                connected.report = Some((awake, *report));
            }
            NodeMessage::Signs(signs) => connected.signs = Some(Arc::new(*signs)),
            NodeMessage::Spent(batch) => connected.spent = Some(batch),
            NodeMessage::Speeds(speeds) => connected.speeds = Some(speeds),
            NodeMessage::Evicted => return vec![Wish::Commit(Command::RevokeNode { node, now_s })],
            _ => {}
        }
        Vec::new()
    }

    /// Somebody asks, and waits for so many milliseconds when there is no place.
    pub fn ask(&mut self, number: u64, generation: Generation, hold: u64, now: u64, now_s: u64) -> Vec<Wish> {
        self.answers.ask(number, generation, hold, now);
        let next = self.with_view(now, now_s, |answers, view| answers.look_at(number, view, now));
        self.follow(next, now)
    }

    /// A client of its own goes away.
    pub fn give_up(&mut self, number: u64, now: u64) -> Vec<Wish> {
        if let Some(router) = &mut self.router {
            router.given_up(number);
        }
        let next = self.answers.drop_answer(number);
        self.follow(next, now)
    }

    /// A client of its own asks.
    pub fn on_client(&mut self, number: u64, generation: Generation, now: u64, now_s: u64) -> Vec<Wish> {
        let hold = self.state.fallback(generation.class).hold().as_millis() as u64;
        self.ask(number, generation, hold.max(EXPECT), now, now_s)
    }
}

/// What a leader knows in the middle of its round.
struct Known<'a> {
    state: Cow<'a, ClusterState>,
}

impl<'a> Known<'a> {
    fn of(state: &'a ClusterState, due: &[Command]) -> Self {
        let mut known = Self {
            state: Cow::Borrowed(state),
        };
        due.iter().for_each(|command| known.learn(command));
        known
    }

    fn learn(&mut self, command: &Command) {
        apply(self.state.to_mut(), command);
    }

    fn take(&mut self, commands: Vec<Command>, due: &mut Vec<Command>) {
        commands.iter().for_each(|command| self.learn(command));
        due.extend(commands);
    }
}

/// The simulated network is a LAN.
fn heard_ago(age_ms: u64) -> Heard {
    Heard { age_ms, ..Heard::NOW }
}
