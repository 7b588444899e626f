//! Requests of clients, and whether what they get is what they must get.

use pomona_common::{
    Class, ClassReason, Generation, GenerationEvent, ModelDigests, ModelName, RequestId, Sampling,
};

use crate::coordinator::Told;
use crate::wire::Id;
use crate::world::World;

/// A request of a client, and what came of it.
#[derive(Debug)]
pub struct Client {
    pub coordinator: u64,
    pub class: Class,
    prompt: Vec<u32>,
    tokens: u32,
    got: u32,
    last: u64,
    pub longest_pause: u64,
    pub end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Finished,
    Failed {
        moves: u32,
    },
    /// Its coordinator was killed.
    WithCoordinator,
}

impl World {
    pub fn hear(&mut self, heard: Told) {
        let (number, event, ended) = match heard {
            Told::Event(number, event) => (number, event, None),
            Told::Ended(number, event, moves) => (number, event, Some(moves)),
        };
        let now = self.now;
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        if client.end.is_some() {
            self.broken
                .push(format!("{now}: answer {number} goes on after its end"));
            return;
        }
        client.longest_pause = client.longest_pause.max(now - client.last);
        client.last = now;
        if let GenerationEvent::Chunk(chunk) = &event {
            let right = |i: u32| pomona_node::echo::token(&client.prompt, i);
            let expected: Vec<u32> = (client.got..client.got + chunk.tokens.len() as u32)
                .map(right)
                .collect();
            if chunk.position != client.got || chunk.tokens != expected {
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
            GenerationEvent::Finished { .. } => End::Finished,
            _ => End::Failed { moves },
        };
        client.end = Some(end);
        let (got, wanted) = (client.got, client.tokens);
        if end == End::Finished && got != wanted {
            self.broken.push(format!(
                "{now}: answer {number} finished with {got} of {wanted} tokens"
            ));
        }
        self.say(format_args!("answer {number}: {end:?} after {moves} moves"));
    }

    pub fn ask(&mut self, coordinator: u64, model: ModelName, class: Class, tokens: u32) {
        if !self.runs(Id::Coordinator(coordinator)) {
            return;
        }
        self.count += 1;
        let number = self.count;
        let prompt: Vec<u32> = (0..4).map(|_| self.random.between(0, 1000) as u32).collect();
        let generation = Generation {
            request: RequestId::from_bits(number.into()),
            choice: 0,
            model,
            digests: ModelDigests::default(),
            class,
            class_reason: ClassReason::Default,
            prompt: prompt.clone(),
            resume: Vec::new(),
            max_tokens: tokens,
            stop_tokens: Vec::new(),
            sampling: Sampling::greedy(),
            cache_salt: 0,
            pools: pomona_common::Pools::default(),
            text: None,
        };
        let client = Client {
            coordinator,
            class,
            prompt,
            tokens,
            got: 0,
            last: self.now,
            longest_pause: 0,
            end: None,
        };
        self.clients.insert(number, client);
        let now = self.now;
        self.coordinator(coordinator).ask(number, generation, now);
    }
}
