//! Requests of clients, and whether what they get is what they must get.

use pomona_common::generation::GenerationEvent;
use pomona_common::{
    Class, ClassReason, Failure, Generation, ModelDigests, ModelName, NodeId, RequestId, Sampling, Seek,
};

use crate::engine::Asker;
use crate::node;
use crate::tokens;
use crate::wire::Id;
use crate::world::World;

/// A request of a client, and what came of it.
#[derive(Debug)]
pub struct Client {
    /// Whom it asks: a coordinator, or a node's own endpoint.
    pub entry: Id,
    pub class: Class,
    pub model: ModelName,
    seed: u32,
    tokens: u32,
    pub got: u32,
    /// Prompt tokens that whoever finished it had in a cache, or made it when it was given up.
    pub cached: u32,
    /// Who finished it.
    pub made_by: Option<NodeId>,
    pub asked: u64,
    /// When the first token came.
    pub first: Option<u64>,
    pub last: u64,
    /// Between two tokens.
    pub longest_pause: u64,
    pub end: Option<End>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub model: ModelName,
    pub class: Class,
    pub prompt: Vec<u32>,
    pub tokens: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Finished,
    Failed {
        moves: u32,
    },
    /// Whom it asked was killed.
    WithEntry,
    /// The client went away.
    GivenUp,
    /// Nobody who may answer it has the memory for it.
    TooLarge,
}

impl Request {
    /// As it travels, under a number.
    pub fn generation(self, number: u64) -> Generation {
        Generation {
            request: RequestId::from_bits(number.into()),
            choice: 0,
            model: self.model,
            digests: ModelDigests::default(),
            class: self.class,
            class_reason: ClassReason::Default,
            prompt: self.prompt,
            resume: Vec::new(),
            max_tokens: self.tokens,
            stop_tokens: Vec::new(),
            sampling: Sampling::greedy(),
            cache_salt: 0,
            pools: pomona_common::Pools::default(),
            text: None,
            seek: Seek::Any,
        }
    }
}

impl World {
    /// A client hears something; `ended` says after how many moves its answer ended, if it did.
    pub fn hear(&mut self, number: u64, event: GenerationEvent, ended: Option<u32>) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        if client.end.is_some() {
            self.broken
                .push(format!("{now}: answer {number} goes on after its end"));
            return;
        }
        if client.first.is_some() {
            client.longest_pause = client.longest_pause.max(now - client.last);
        }
        client.last = now;
        if let GenerationEvent::Chunk(chunk) = &event {
            client.first.get_or_insert(now);
            let expected = (client.got..).map(|i| tokens::token(client.seed, i));
            if chunk.position != client.got || !expected.zip(&chunk.tokens).all(|(a, b)| a == *b) {
                let (got, position) = (client.got, chunk.position);
                self.broken.push(format!(
                    "{now}: answer {number} had {got} tokens, then came {position}"
                ));
                return;
            }
            client.got += chunk.tokens.len() as u32;
        }
        let Some(moves) = ended else {
            return;
        };
        let end = match event {
            GenerationEvent::Finished { accounting, .. } => {
                client.cached = accounting.cached_tokens;
                client.made_by = accounting.node;
                End::Finished
            }
            GenerationEvent::Failed(Failure::TooLarge { .. }) => End::TooLarge,
            _ => End::Failed { moves },
        };
        client.end = Some(end);
        self.ended.push(number);
        let (got, wanted) = (client.got, client.tokens);
        if end == End::Finished && got != wanted {
            self.broken.push(format!(
                "{now}: answer {number} finished with {got} of {wanted} tokens"
            ));
        }
        self.say(format_args!("answer {number}: {end:?} after {moves} moves"));
    }

    /// A client goes away.
    pub fn give_up(&mut self, number: u64) {
        let entry = self.clients.get(&number).map(|client| client.entry);
        if let Some(Id::Node(node)) = entry {
            // What was made until now comes before.
            let wishes = self.nodes[node].catch_up(self.now);
            self.carry_out_node(node, wishes);
        }
        let Some(client) = self
            .clients
            .get_mut(&number)
            .filter(|client| client.end.is_none())
        else {
            return;
        };
        let asker = match client.entry {
            Id::Node(_) => Asker::Here,
            Id::Coordinator(coordinator) => Asker::Coordinator(coordinator),
        };
        let mut engines = self.nodes.iter().map(|node| &node.engine);
        client.cached = engines
            .find_map(|engine| engine.cached_of((asker, number)))
            .unwrap_or(0);
        client.end = Some(End::GivenUp);
        let (entry, now) = (client.entry, self.now);
        self.ended.push(number);
        match entry {
            Id::Coordinator(coordinator) => {
                let wishes = self.coordinator(coordinator).give_up(number, now);
                self.carry_out_coordinator(coordinator, wishes);
            }
            Id::Node(node) => {
                let wishes = self.nodes[node].give_up(number, now);
                self.carry_out_node(node, wishes);
            }
        }
    }

    /// A client asks; gives its number, if there is somebody to ask.
    /// `owner` is the machine of whoever asks, for routers that go by it.
    pub fn ask(&mut self, entry: Id, request: Request, owner: Option<NodeId>) -> Option<u64> {
        if !self.runs(entry) {
            return None;
        }
        self.count += 1;
        let (number, now) = (self.count, self.now);
        let client = Client {
            model: request.model.clone(),
            entry,
            class: request.class,
            seed: tokens::seed(&request.prompt),
            tokens: request.tokens,
            got: 0,
            cached: 0,
            made_by: None,
            asked: now,
            first: None,
            last: now,
            longest_pause: 0,
            end: None,
        };
        self.clients.insert(number, client);
        let generation = request.generation(number);
        match entry {
            Id::Coordinator(coordinator) => {
                if let (Some(router), Some(owner)) = (&mut self.coordinator(coordinator).router, owner) {
                    router.enters(number, owner);
                }
                let now_s = self.now_s_at(coordinator);
                let wishes = self
                    .coordinator(coordinator)
                    .on_client(number, generation, now, now_s);
                self.carry_out_coordinator(coordinator, wishes);
            }
            Id::Node(node) => {
                let wishes: Vec<node::Wish> = self.nodes[node].ask(number, generation, now);
                self.carry_out_node(node, wishes);
            }
        }
        Some(number)
    }
}
