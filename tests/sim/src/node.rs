//! A node: contacts, sessions, the target it follows, its engine, its reports, and its own endpoint.

mod entry;
mod power;
mod prompts;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use pomona_clocks::SleepWatch;
use pomona_common::control::{CoordinatorMessage, NodeMessage};
use pomona_common::generation::GenerationEvent;
use pomona_common::plan::NodeTarget;
use pomona_common::report::{NodeReport, REPORT_VERSION};
use pomona_common::signs::Signs;
use pomona_common::unit::{Bytes, Reading};
use pomona_common::{Class, EngineKnobs, Fallback, Generation, ModelName, ModelRecord, NodeId, Relief, Rung};
use pomona_decide::{EntryPlace, Pacer, Promptness, Scarcity, Watchdog};
use pomona_link::{Contacts, Source};

use crate::answers::{self, Answers};
use crate::cluster::BEGAN_S;
use crate::engine::{Asker, Engine, Out};
use crate::mac::Mac;
use crate::machine::Machine;
use crate::quotas::Quota;
use crate::wire::{End, IDLE, Wire};
use entry::View;

/// Milliseconds that a load takes.
const LOAD: u64 = 400;
/// Milliseconds between reports.
const REPORT: u64 = 1000;

pub struct Node {
    pub id: NodeId,
    pub machine: Machine,
    pub mac: Mac,
    /// What is on its disk.
    pub stored: Vec<ModelRecord>,
    knobs: EngineKnobs,
    contacts: Contacts,
    watch: SleepWatch,
    /// By the number of the coordinator.
    pub sessions: BTreeMap<u64, End>,
    slept_ms: Option<u64>,
    pub generation: u64,
    pub target: BTreeSet<ModelName>,
    loading: BTreeMap<ModelName, u64>,
    pub engine: Engine,
    /// Answers of its own endpoint.
    pub answers: Answers<EntryPlace>,
    /// How far it is relieved, and how new that is.
    relief: (u64, Relief),
    pacer: Pacer,
    passed: u64,
    reported: u64,
    said: u64,
    /// Whether it went back to an older target.
    pub went_back: bool,
    /// Whether it has destroyed what it held.
    pub gone: bool,
    /// Seconds above what is comfortable there, and of those the ones in which aggregate work ran lately.
    pub hot_s: (f64, f64),
    /// Energy that the engine took, in joules.
    pub joules: f64,
    /// Seconds in which aggregate work ran.
    pub busy_s: f64,
    /// What its endpoint's key takes.
    pub quota: Quota,
    /// How often the system killed its engine, by the model that is to blame.
    pub kills: BTreeMap<ModelName, u64>,
    /// Whether it takes nothing but what a person waits for when its system is short of memory.
    pub guards_memory: bool,
    /// When aggregate work ran last.
    worked: Option<u64>,
    /// When something took speed from its engine last, and how many times as long prompts took, by its Mac's own truth.
    slowed: Option<(u64, f64)>,
    /// Whether it keeps to what is comfortable.
    pub is_paced: bool,
    /// What is comfortable, in watts.
    pub comfort: Option<f64>,
    /// Its watch over the engine.
    watchdog: Watchdog,
    /// How often it found it wedged.
    pub wedged: u64,
    /// The share of the time for batch, in percent.
    pace: u32,
    scarcity: Scarcity,
    promptness: Promptness,
    /// Whether it asks elsewhere first for what comes late here because it is slowed down.
    pub leaves_late: bool,
    /// Its wall clock is off by so many seconds.
    pub clock_off_s: i64,
}

/// What a node wants done.
pub enum Wish {
    Dial(SocketAddr),
    Send(u64, Wire),
    /// Tells the other end that its session has ended.
    Close(u64, u64),
    /// For a client of its own endpoint, and after how many moves it ended, if it did.
    Tell(u64, GenerationEvent, Option<u32>),
    /// An interactive answer of its own endpoint is asked for elsewhere first, although its engine has the model.
    Strays(u64),
}

impl Node {
    pub fn new(
        id: NodeId,
        mac: Mac,
        knobs: EngineKnobs,
        stored: Vec<ModelRecord>,
        coordinators: &[SocketAddr],
    ) -> Self {
        let mut contacts = Contacts::default();
        for address in coordinators {
            contacts.learn(*address, Source::Configured, None, Duration::ZERO);
        }
        Self {
            id,
            machine: Machine::default(),
            mac,
            stored,
            contacts,
            watch: SleepWatch::default(),
            sessions: BTreeMap::new(),
            slept_ms: None,
            generation: 0,
            target: BTreeSet::new(),
            loading: BTreeMap::new(),
            engine: Engine::new(knobs.clone(), 0),
            answers: Answers::default(),
            knobs,
            relief: Default::default(),
            pacer: Pacer::default(),
            passed: 0,
            reported: 0,
            said: 0,
            went_back: false,
            gone: false,
            hot_s: (0.0, 0.0),
            joules: 0.0,
            busy_s: 0.0,
            quota: Quota::new(id),
            kills: BTreeMap::new(),
            guards_memory: true,
            worked: None,
            slowed: None,
            is_paced: true,
            comfort: None,
            watchdog: Watchdog::default(),
            wedged: 0,
            pace: 100,
            scarcity: Scarcity::default(),
            promptness: Promptness::new(id),
            leaves_late: true,
            clock_off_s: 0,
        }
    }

    /// By its wall clock.
    pub fn now_s(&self, now: u64) -> u64 {
        (BEGAN_S + now / 1000).saturating_add_signed(self.clock_off_s)
    }

    /// Its process starts anew: what is not on the disk is lost.
    pub fn restart(&mut self, coordinators: &[SocketAddr], now: u64) {
        let (stored, knobs) = (std::mem::take(&mut self.stored), self.knobs.clone());
        let fresh = Self::new(self.id, self.mac.clone(), knobs, stored, coordinators);
        let old = std::mem::replace(self, fresh);
        self.machine = old.machine;
        self.quota = old.quota.restarted();
        self.engine = Engine::new(self.knobs.clone(), self.machine.running(now) * 1000);
        (self.gone, self.passed, self.went_back) = (old.gone, old.passed, old.went_back);
        (self.hot_s, self.joules) = (old.hot_s, old.joules);
        (self.comfort, self.is_paced) = (old.comfort, old.is_paced);
        (self.guards_memory, self.clock_off_s) = (old.guards_memory, old.clock_off_s);
        self.leaves_late = old.leaves_late;
        self.wedged = old.wedged;
        self.engine.tokens = old.engine.tokens;
        (self.engine.prefilled, self.busy_s) = (old.engine.prefilled, old.busy_s);
        self.engine.cached = old.engine.cached;
    }

    /// When its engine has something to say, in milliseconds of the simulation.
    pub fn due(&self, now: u64) -> Option<u64> {
        let due = self.engine.due();
        (due < u64::MAX && self.machine.runs())
            .then(|| now + due.div_ceil(1000).saturating_sub(self.machine.running(now)))
    }

    /// Lets the engine work until now.
    pub fn catch_up(&mut self, now: u64) -> Vec<Wish> {
        let to = self.machine.running(now) * 1000;
        let out = self.engine.advance(&self.mac, to);
        self.note_prompts(now);
        self.pass_on(out, now)
    }

    fn pass_on(&mut self, out: Vec<Out>, now: u64) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for ((asker, number), mut event) in out {
            if let GenerationEvent::Finished { accounting, .. } = &mut event {
                accounting.node = Some(self.id);
            }
            match asker {
                Asker::Coordinator(to) => wishes.push(Wish::Send(to, Wire::Event(number, event))),
                Asker::Here => {
                    let place = EntryPlace::Here;
                    self.note_end(number, &event, now);
                    let next = self.answers.on_event(place, self.id, number, event, now);
                    wishes.extend(self.follow(next, now));
                }
            }
        }
        wishes
    }

    /// Does what its endpoint's answers want.
    fn follow(&mut self, next: Vec<answers::Wish<EntryPlace>>, now: u64) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for one in next {
            match one {
                answers::Wish::Open(EntryPlace::Here, number, generation) => {
                    if let Some(event) = self.start((Asker::Here, number), *generation) {
                        let place = EntryPlace::Here;
                        let next = self.answers.on_event(place, self.id, number, event, now);
                        wishes.extend(self.follow(next, now));
                    }
                }
                answers::Wish::Open(EntryPlace::Coordinator(to), number, generation) => {
                    let is_made_here = self.engine.makes((Asker::Here, number)).is_some();
                    if generation.class == Class::Interactive
                        && is_made_here
                        && !self.may_leave(&generation, now)
                    {
                        wishes.push(Wish::Strays(number));
                    }
                    wishes.push(Wish::Send(to, Wire::Open(number, generation)));
                }
                answers::Wish::Cancel(EntryPlace::Here, number) => {
                    self.engine.cancel((Asker::Here, number));
                }
                answers::Wish::Cancel(EntryPlace::Coordinator(to), number) => {
                    wishes.push(Wish::Send(to, Wire::Cancel(number)));
                }
                answers::Wish::Tell(number, event) => wishes.push(Wish::Tell(number, event, None)),
                answers::Wish::End(number, event, moves) => {
                    wishes.push(Wish::Tell(number, event, Some(moves)));
                }
            }
        }
        wishes
    }

    /// A client asks its endpoint.
    pub fn ask(&mut self, number: u64, generation: Generation, now: u64) -> Vec<Wish> {
        let mut wishes = self.catch_up(now);
        let (class, model) = (generation.class, generation.model.clone());
        let hold = Fallback::of(class).hold().as_millis() as u64;
        let view = self.view(Some(&generation), now);
        let may_leave = self.may_leave(&generation, now);
        self.answers.ask(number, generation, hold, now);
        let next = self.answers.look_at(number, &view, now);
        let strays = class == Class::Interactive
            && !may_leave
            && self.engine.has(&model)
            && !self.engine.is_wedged()
            && next
                .iter()
                .any(|wish| matches!(wish, answers::Wish::Open(EntryPlace::Coordinator(_), ..)));
        if strays {
            wishes.push(Wish::Strays(number));
        }
        wishes.extend(self.follow(next, now));
        wishes
    }

    /// A client of its endpoint goes away.
    pub fn give_up(&mut self, number: u64, now: u64) -> Vec<Wish> {
        let mut wishes = self.catch_up(now);
        let next = self.answers.drop_answer(number);
        wishes.extend(self.follow(next, now));
        wishes
    }

    /// What its endpoint goes by; of an answer that is asked for now, whether it comes late here.
    fn view(&self, asked: Option<&Generation>, now: u64) -> View {
        View {
            rung: self.relief.1.rung,
            loaded: self.engine.models().map(|record| record.name.clone()).collect(),
            expected: self.loading.keys().cloned().collect(),
            reachable: self.sessions.keys().copied().collect(),
            is_late: asked.is_some_and(|asked| self.is_late(asked, 0, now)),
            late: self.late(now),
        }
    }

    /// Some time went by.
    pub fn tick(&mut self, now: u64) -> Vec<Wish> {
        let mut wishes = self.catch_up(now);
        self.pass(now);
        let awake = self.machine.awake(now);
        if let Some(slept) = self.watch.look(self.machine.reading(now)) {
            self.slept_ms = Some(slept.as_millis() as u64);
            self.mac.cool(slept.as_millis() as u64);
            for (coordinator, end) in self.sessions.clone() {
                wishes.push(Wish::Close(coordinator, end.session));
                wishes.extend(self.lose(coordinator, now));
            }
        }
        let silent = |end: &End| awake >= end.heard + IDLE;
        let lost = self.sessions.iter().filter(|(_, end)| silent(end));
        for coordinator in lost.map(|(number, _)| *number).collect::<Vec<u64>>() {
            wishes.extend(self.lose(coordinator, now));
        }
        if !self.gone {
            while let Some(address) = self.contacts.next_dial(Duration::from_millis(awake)) {
                wishes.push(Wish::Dial(address));
            }
        }
        self.end_loads(awake);
        if !self.answers.is_empty() {
            let view = self.view(None, now);
            let next = self.answers.tick(&view, now);
            wishes.extend(self.follow(next, now));
        }
        if awake >= self.reported + REPORT {
            self.reported = awake;
            self.keep_pace(now);
            wishes.extend(self.watch(now));
            wishes.extend(self.reports(now));
        }
        if awake >= self.said + crate::wire::KEEP_ALIVE {
            self.said = awake;
            wishes.extend(self.sessions.keys().map(|to| Wish::Send(*to, Wire::KeepAlive)));
        }
        wishes
    }

    fn end_loads(&mut self, awake: u64) {
        let done = self.loading.iter().filter(|(_, ready)| awake >= **ready);
        for model in done.map(|(model, _)| model.clone()).collect::<Vec<ModelName>>() {
            self.loading.remove(&model);
            if let Some(record) = self.stored.iter().find(|record| record.name == model) {
                self.engine.add_model(record);
                self.promptness.forget(&model);
            }
        }
    }

    /// What is told each second.
    fn reports(&mut self, now: u64) -> Vec<Wish> {
        let report = NodeMessage::Report(Box::new(self.report(now)));
        let (answers, first_tokens) = self.engine.first_tokens();
        let signs = NodeMessage::Signs(Box::new(Signs {
            swapped_out: Reading::Measured(Bytes(self.mac.swapped_out as u64)),
            kills: self.kills.clone(),
            answers,
            first_tokens,
        }));
        let speeds = NodeMessage::Speeds(self.engine.speeds());
        let mut wishes = Vec::new();
        for to in self.sessions.keys() {
            let spent = self.quota.news(*to).map(NodeMessage::Spent);
            let messages = [report.clone(), signs.clone(), speeds.clone()]
                .into_iter()
                .chain(spent);
            wishes.extend(messages.map(|message| Wish::Send(*to, Wire::FromNode(Box::new(message)))));
        }
        wishes
    }

    fn report(&mut self, now: u64) -> NodeReport {
        NodeReport {
            version: REPORT_VERSION,
            wall_ms: self.now_s(now) * 1000,
            machine: self.mac.report(),
            engine: Some(self.engine.report()),
            reached_generation: self.generation,
            kv_budget_bytes: self.knobs.kv_budget_bytes,
            ..NodeReport::default()
        }
    }

    /// A dial ended: a session with this coordinator, or nobody answered.
    pub fn dialled(&mut self, address: SocketAddr, answered: Option<(u64, u64)>, now: u64) -> Vec<Wish> {
        let awake = self.machine.awake(now);
        let at = Duration::from_millis(awake);
        self.contacts
            .dialled(address, answered.map(|(number, _)| number), at);
        let Some((number, session)) = answered.filter(|_| !self.gone) else {
            return Vec::new();
        };
        if !self.contacts.began(number) {
            self.contacts.ended(number);
            return Vec::new();
        }
        let end = End {
            session,
            heard: awake,
        };
        self.sessions.insert(number, end);
        self.quota.begins(number);
        let hello = NodeMessage::Hello {
            name: String::new(),
            version: String::new(),
            instance: self.machine.boots,
            models: self.stored.clone(),
        };
        let woke = self.slept_ms.map(|slept_ms| NodeMessage::Woke { slept_ms });
        let report = NodeMessage::Report(Box::new(self.report(now)));
        [Some(hello), woke, Some(report)]
            .into_iter()
            .flatten()
            .map(|message| Wish::Send(number, Wire::FromNode(Box::new(message))))
            .collect()
    }

    /// A session ended: what was being made for it is made elsewhere, and what it made for clients here as well.
    pub fn lose(&mut self, coordinator: u64, now: u64) -> Vec<Wish> {
        if self.sessions.remove(&coordinator).is_some() {
            self.contacts.ended(coordinator);
        }
        self.engine.cancel_all_of(Asker::Coordinator(coordinator));
        let next = self.answers.lose(EntryPlace::Coordinator(coordinator), now);
        self.follow(next, now)
    }

    /// A message of a session that stands.
    pub fn on_message(&mut self, coordinator: u64, session: u64, wire: Wire, now: u64) -> Vec<Wish> {
        let awake = self.machine.awake(now);
        match self.sessions.get_mut(&coordinator) {
            Some(end) if end.session == session => end.heard = awake,
            _ => return Vec::new(),
        }
        let mut wishes = match wire {
            Wire::KeepAlive | Wire::FromNode(_) => return Vec::new(),
            _ => self.catch_up(now),
        };
        match wire {
            Wire::Close => wishes.extend(self.lose(coordinator, now)),
            Wire::Open(answer, generation) => {
                let event = self.start((Asker::Coordinator(coordinator), answer), *generation);
                wishes.extend(event.map(|event| Wish::Send(coordinator, Wire::Event(answer, event))));
            }
            Wire::Cancel(answer) => self.engine.cancel((Asker::Coordinator(coordinator), answer)),
            Wire::FromCoordinator(message) => wishes.extend(self.obey(coordinator, *message, now)),
            Wire::Event(answer, event) => {
                let place = EntryPlace::Coordinator(coordinator);
                self.note_end(answer, &event, now);
                let node = match event {
                    GenerationEvent::GrantedBy(node) => node,
                    _ => self.id,
                };
                let next = self.answers.on_event(place, node, answer, event, now);
                wishes.extend(self.follow(next, now));
            }
            Wire::KeepAlive | Wire::FromNode(_) => {}
        }
        wishes
    }

    fn is_short_of_memory(&self) -> bool {
        self.guards_memory && self.scarcity.is_short()
    }

    /// Has the engine take work, unless it is spared of it.
    fn start(&mut self, asked: (Asker, u64), generation: Generation) -> Option<GenerationEvent> {
        if generation.class != Class::Interactive && self.is_short_of_memory() {
            return Some(GenerationEvent::Failed(pomona_common::Failure::Overloaded {
                detail: "this node is short of memory".into(),
                retry_after_s: 10,
            }));
        }
        let rung = self.relief.1.rung;
        let is_held = rung > Rung::Normal && (generation.resume.is_empty() || rung >= Rung::Pause);
        if generation.class == Class::Batch && is_held {
            return Some(GenerationEvent::Failed(pomona_common::Failure::Overloaded {
                detail: "this node is relieved of batch work".into(),
                retry_after_s: 5,
            }));
        }
        self.engine.start(asked, generation)
    }

    fn obey(&mut self, coordinator: u64, message: CoordinatorMessage, now: u64) -> Vec<Wish> {
        match message {
            CoordinatorMessage::Target(target)
                if NodeTarget::replaces(target.generation, self.generation) =>
            {
                self.went_back |= target.generation < self.generation;
                self.generation = target.generation;
                self.target = target.models.into_keys().collect();
                self.follow_target(now)
            }
            CoordinatorMessage::Relief { applied, relief } if applied >= self.relief.0 => {
                self.relief = (applied, relief);
                self.engine.set_knobs(self.knobs.relieved(relief));
                Vec::new()
            }
            CoordinatorMessage::Spent {
                applied,
                spent,
                charged,
            } => {
                let now_s = self.now_s(now);
                self.quota.learn(applied, spent, charged, now_s);
                Vec::new()
            }
            CoordinatorMessage::Evict => {
                self.stored.clear();
                self.target.clear();
                self.generation = u64::MAX;
                self.gone = true;
                let mut wishes = self.follow_target(now);
                let evicted = Wire::FromNode(Box::new(NodeMessage::Evicted));
                wishes.push(Wish::Send(coordinator, evicted));
                wishes
            }
            _ => Vec::new(),
        }
    }

    /// Its engine dies: what had begun goes on elsewhere, what had not is asked for anew, and models are loaded again.
    pub fn crash(&mut self, now: u64) -> Vec<Wish> {
        let mut wishes = self.catch_up(now);
        let fresh = Engine::new(
            self.knobs.relieved(self.relief.1),
            self.machine.running(now) * 1000,
        );
        let mut old = std::mem::replace(&mut self.engine, fresh);
        (self.engine.tokens, self.engine.prefilled) = (old.tokens, old.prefilled);
        self.engine.cached = old.cached;
        wishes.extend(self.pass_on(old.die(), now));
        self.loading.clear();
        self.watchdog = Watchdog::default();
        wishes.extend(self.follow_target(now));
        wishes
    }

    /// The heaviest of its models is to blame for a kill.
    pub fn count_kill(&mut self) {
        let models = self.engine.models();
        if let Some(record) = models.max_by_key(|record| record.weight_bytes) {
            *self.kills.entry(record.name.clone()).or_default() += 1;
        }
    }

    fn follow_target(&mut self, now: u64) -> Vec<Wish> {
        self.loading.retain(|model, _| self.target.contains(model));
        let awake = self.machine.awake(now);
        for model in &self.target {
            let stored = self.stored.iter().any(|record| record.name == *model);
            if stored && !self.engine.has(model) {
                self.loading.entry(model.clone()).or_insert(awake + LOAD);
            }
        }
        let loaded: Vec<ModelName> = self.engine.models().map(|record| record.name.clone()).collect();
        let unwanted = loaded.iter().filter(|model| !self.target.contains(*model));
        let out: Vec<Out> = unwanted
            .flat_map(|model| self.engine.remove_model(model))
            .collect();
        self.pass_on(out, now)
    }

    /// Memory for KV caches, bytes.
    pub fn kv_budget(&self) -> u64 {
        self.knobs.kv_budget_bytes
    }

    /// Answers that run here for a session that has ended.
    pub fn orphans(&self) -> usize {
        let is_orphan = |asker: Asker| match asker {
            Asker::Coordinator(number) => !self.sessions.contains_key(&number),
            Asker::Here => false,
        };
        self.engine
            .asked()
            .filter(|((asker, _), _)| is_orphan(*asker))
            .count()
    }
}
