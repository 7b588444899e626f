//! A node: contacts, sessions, the target it follows, an echo engine, its reports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use pomona_clocks::SleepWatch;
use pomona_common::control::{CoordinatorMessage, NodeMessage};
use pomona_common::report::{
    ClassReport, EngineReport, LoadedModel, MachineReport, NodeReport, REPORT_VERSION,
};
use pomona_common::unit::{Bytes, Reading};
use pomona_common::{
    Accounting, Chunk, Class, Failure, FinishReason, Generation, GenerationEvent, ModelName, ModelRecord,
    NodeId, Relief, Rung, Watts,
};
use pomona_link::{Contacts, Source};

use crate::heat::Heat;
use crate::machine::Machine;
use crate::wire::{End, IDLE, Wire};

/// Milliseconds that a load takes.
const LOAD: u64 = 400;
/// Milliseconds between reports.
const REPORT: u64 = 1000;

/// One answer in the engine.
#[derive(Debug, Clone)]
pub struct Sequence {
    coordinator: u64,
    session: u64,
    generation: Generation,
    emitted: u32,
}

impl Sequence {
    /// Whether it makes an interactive answer for the session that its coordinator has with this node.
    pub fn is_well(&self, session: u64) -> bool {
        self.session == session && self.generation.class == Class::Interactive
    }
}

pub struct Node {
    pub id: NodeId,
    pub machine: Machine,
    /// What is on its disk.
    pub stored: Vec<ModelRecord>,
    memory: u64,
    contacts: Contacts,
    watch: SleepWatch,
    /// By the number of the coordinator.
    pub sessions: BTreeMap<u64, End>,
    slept_ms: Option<u64>,
    pub generation: u64,
    pub target: BTreeSet<ModelName>,
    pub loaded: BTreeSet<ModelName>,
    loading: BTreeMap<ModelName, u64>,
    /// By the coordinator that asked, and its number for the answer.
    pub sequences: BTreeMap<(u64, u64), Sequence>,
    pub heat: Heat,
    /// How far it is relieved, and how new that is.
    relief: (u64, Relief),
    steps: u64,
    reported: u64,
    said: u64,
    /// Whether it has destroyed what it held.
    pub gone: bool,
}

/// What a node wants done.
pub enum Wish {
    Dial(SocketAddr),
    Send(u64, Wire),
    /// Tells the other end that its session has ended.
    Close(u64, u64),
}

impl Node {
    pub fn new(id: NodeId, memory: u64, stored: Vec<ModelRecord>, coordinators: &[SocketAddr]) -> Self {
        let mut contacts = Contacts::default();
        for address in coordinators {
            contacts.learn(*address, Source::Configured, None, Duration::ZERO);
        }
        Self {
            id,
            machine: Machine::default(),
            stored,
            memory,
            contacts,
            watch: SleepWatch::default(),
            sessions: BTreeMap::new(),
            slept_ms: None,
            generation: 0,
            target: BTreeSet::new(),
            loaded: BTreeSet::new(),
            loading: BTreeMap::new(),
            sequences: BTreeMap::new(),
            heat: Heat::default(),
            relief: Default::default(),
            steps: 0,
            reported: 0,
            said: 0,
            gone: false,
        }
    }

    /// Its process starts anew: what is not on the disk is lost.
    pub fn restart(&mut self, coordinators: &[SocketAddr]) {
        let machine = std::mem::take(&mut self.machine);
        let gone = self.gone;
        *self = Self::new(
            self.id,
            self.memory,
            std::mem::take(&mut self.stored),
            coordinators,
        );
        self.machine = machine;
        self.gone = gone;
    }

    /// Some time went by.
    pub fn tick(&mut self, now: u64) -> Vec<Wish> {
        let mut wishes = Vec::new();
        let awake = self.machine.awake(now);
        if let Some(slept) = self.watch.look(self.machine.reading(now)) {
            self.slept_ms = Some(slept.as_millis() as u64);
            for (coordinator, end) in self.sessions.clone() {
                wishes.push(Wish::Close(coordinator, end.session));
                self.lose(coordinator);
            }
        }
        let silent = |end: &End| awake >= end.heard + IDLE;
        let lost: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, end)| silent(end))
            .map(|(number, _)| *number)
            .collect();
        for coordinator in lost {
            self.lose(coordinator);
        }
        if !self.gone {
            while let Some(address) = self.contacts.next_dial(Duration::from_millis(awake)) {
                wishes.push(Wish::Dial(address));
            }
        }
        let done: Vec<ModelName> = self
            .loading
            .iter()
            .filter(|(_, ready)| awake >= **ready)
            .map(|(model, _)| model.clone())
            .collect();
        for model in done {
            self.loading.remove(&model);
            self.loaded.insert(model);
        }
        if awake >= self.reported + REPORT {
            self.reported = awake;
            let report = Wire::FromNode(Box::new(NodeMessage::Report(Box::new(self.report()))));
            wishes.extend(self.sessions.keys().map(|to| Wish::Send(*to, report.clone())));
        }
        if awake >= self.said + crate::wire::KEEP_ALIVE {
            self.said = awake;
            wishes.extend(self.sessions.keys().map(|to| Wish::Send(*to, Wire::KeepAlive)));
        }
        wishes
    }

    fn report(&self) -> NodeReport {
        let bytes = |n: u64| Reading::Measured(Bytes(n));
        let models = self.loaded.iter().map(|model| {
            let running = self
                .sequences
                .values()
                .filter(|one| one.generation.model == *model);
            let loaded = LoadedModel {
                running: running.count() as u32,
                ..LoadedModel::default()
            };
            (model.clone(), loaded)
        });
        NodeReport {
            version: REPORT_VERSION,
            machine: MachineReport {
                memory_total: bytes(self.memory),
                memory_available: bytes(self.memory / 2),
                power: Reading::Measured(Watts(self.heat.watts)),
                chip: "Apple M4 Max".into(),
                ..MachineReport::default()
            },
            engine: Some(EngineReport {
                models: models.collect(),
                classes: Class::ALL.map(|class| (class, self.of_class(class))).into(),
                ..EngineReport::default()
            }),
            reached_generation: self.generation,
            ..NodeReport::default()
        }
    }

    fn of_class(&self, class: Class) -> ClassReport {
        let running = self
            .sequences
            .values()
            .filter(|one| one.generation.class == class);
        ClassReport {
            running: running.count() as u32,
            ..ClassReport::default()
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
        let hello = NodeMessage::Hello {
            name: String::new(),
            version: String::new(),
            instance: self.machine.boots,
            models: self.stored.clone(),
        };
        let woke = self.slept_ms.map(|slept_ms| NodeMessage::Woke { slept_ms });
        let report = NodeMessage::Report(Box::new(self.report()));
        [Some(hello), woke, Some(report)]
            .into_iter()
            .flatten()
            .map(|message| Wish::Send(number, Wire::FromNode(Box::new(message))))
            .collect()
    }

    /// A session ended: what was being made for it is made elsewhere.
    pub fn lose(&mut self, coordinator: u64) {
        if self.sessions.remove(&coordinator).is_some() {
            self.contacts.ended(coordinator);
        }
        self.sequences.retain(|(asked_by, _), _| *asked_by != coordinator);
    }

    /// A message of a session that stands.
    pub fn on_message(&mut self, coordinator: u64, session: u64, wire: Wire, now: u64) -> Vec<Wish> {
        let awake = self.machine.awake(now);
        match self.sessions.get_mut(&coordinator) {
            Some(end) if end.session == session => end.heard = awake,
            _ => return Vec::new(),
        }
        match wire {
            Wire::Close => self.lose(coordinator),
            Wire::Open(answer, generation) => return self.start(coordinator, answer, *generation),
            Wire::Cancel(answer) => {
                self.sequences.remove(&(coordinator, answer));
            }
            Wire::FromCoordinator(message) => return self.obey(coordinator, *message, awake),
            Wire::KeepAlive | Wire::FromNode(_) | Wire::Event(..) => {}
        }
        Vec::new()
    }

    fn obey(&mut self, coordinator: u64, message: CoordinatorMessage, awake: u64) -> Vec<Wish> {
        match message {
            // An older target never wins over a newer one.
            CoordinatorMessage::Target(target) if target.generation >= self.generation => {
                self.generation = target.generation;
                self.target = target.models.into_keys().collect();
                self.loaded.retain(|model| self.target.contains(model));
                self.loading.retain(|model, _| self.target.contains(model));
                for model in &self.target {
                    let stored = self.stored.iter().any(|record| record.name == *model);
                    if stored && !self.loaded.contains(model) {
                        self.loading.entry(model.clone()).or_insert(awake + LOAD);
                    }
                }
                let (target, sequences) = (&self.target, &self.sequences);
                let unwanted = sequences
                    .iter()
                    .filter(|(_, one)| !target.contains(&one.generation.model));
                let ended: Vec<(u64, u64)> = unwanted.map(|(key, _)| *key).collect();
                let tell = |(to, answer): &(u64, u64)| {
                    let failure = Failure::ModelNotLoaded {
                        model: String::new(),
                        detail: "unloaded".into(),
                    };
                    Wish::Send(*to, Wire::Event(*answer, GenerationEvent::Failed(failure)))
                };
                let told = ended.iter().map(tell).collect();
                ended.iter().for_each(|key| drop(self.sequences.remove(key)));
                told
            }
            CoordinatorMessage::Relief { applied, relief } if applied >= self.relief.0 => {
                self.relief = (applied, relief);
                Vec::new()
            }
            CoordinatorMessage::Evict => {
                self.stored.clear();
                self.target.clear();
                self.loaded.clear();
                self.loading.clear();
                self.generation = u64::MAX;
                self.gone = true;
                let evicted = Wire::FromNode(Box::new(NodeMessage::Evicted));
                vec![Wish::Send(coordinator, evicted)]
            }
            _ => Vec::new(),
        }
    }

    fn start(&mut self, coordinator: u64, answer: u64, generation: Generation) -> Vec<Wish> {
        let is_held = generation.class == Class::Batch && self.relief.1.rung > Rung::Normal;
        let event = if self.loaded.contains(&generation.model) && !is_held {
            let sequence = Sequence {
                coordinator,
                session: self.sessions[&coordinator].session,
                // Some begin with what was said already.
                emitted: (generation.resume.len() as u32).saturating_sub((answer % 3) as u32),
                generation,
            };
            self.sequences.insert((coordinator, answer), sequence);
            GenerationEvent::Granted
        } else {
            GenerationEvent::Failed(Failure::ModelNotLoaded {
                model: generation.model.to_string(),
                detail: "not here".into(),
            })
        };
        vec![Wish::Send(coordinator, Wire::Event(answer, event))]
    }

    /// One step of the engine: a token of every answer, of batch as far as it is not relieved of it.
    pub fn step(&mut self, milliseconds: u64) -> Vec<Wish> {
        let mut wishes = Vec::new();
        self.steps += 1;
        let batch_too = match self.relief.1.rung {
            Rung::Normal | Rung::Hold => true,
            Rung::Tighten => self.steps.is_multiple_of(10),
            Rung::Pause | Rung::MoveQueued | Rung::MoveRunning => false,
        };
        let works = |one: &Sequence| batch_too || one.generation.class != Class::Batch;
        let rows = self.sequences.values().filter(|one| works(one)).count();
        self.heat.work(rows, milliseconds);
        for ((coordinator, answer), one) in self.sequences.iter_mut().filter(|(_, one)| works(one)) {
            let token = pomona_node::echo::token(&one.generation.prompt, one.emitted);
            let chunk = Chunk {
                position: one.emitted,
                tokens: vec![token],
                logprobs: Vec::new(),
            };
            one.emitted += 1;
            let mut send = |event| wishes.push(Wish::Send(*coordinator, Wire::Event(*answer, event)));
            send(GenerationEvent::Chunk(chunk));
            if one.emitted >= one.generation.max_tokens {
                let accounting = Accounting {
                    completion_tokens: one.emitted,
                    ..Accounting::default()
                };
                let reason = FinishReason::Length;
                send(GenerationEvent::Finished { reason, accounting });
            }
        }
        self.sequences
            .retain(|_, one| one.emitted < one.generation.max_tokens);
        wishes
    }

    /// Answers that run here for a session that has ended.
    pub fn orphans(&self) -> usize {
        let is_orphan = |one: &&Sequence| {
            let session = self.sessions.get(&one.coordinator);
            session.is_none_or(|end| end.session != one.session)
        };
        self.sequences.values().filter(is_orphan).count()
    }
}
