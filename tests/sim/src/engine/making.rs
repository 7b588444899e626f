//! An answer that an engine makes.

use pomona_common::generation::{Chunk, GenerationEvent};
use pomona_common::signs::FirstToken;
use pomona_common::{Class, Generation};

use super::{Asker, Out};
use crate::tokens;

pub(super) struct Making {
    pub(super) asked: (Asker, u64),
    pub(super) generation: Generation,
    /// Of its prompt, see [`tokens`].
    pub(super) seed: u32,
    /// Tokens of the whole answer that are made.
    pub(super) emitted: u32,
    pub(super) arrived: u64,
    /// When it was in a slot, and when its first token came.
    pub(super) started: Option<u64>,
    pub(super) began: Option<u64>,
    /// Prompt tokens taken from a kept beginning, once it was in a slot.
    pub(super) cached: Option<u32>,
    /// Prompt tokens to keep once they are in the cache.
    pub(super) keep: Option<u32>,
    /// Made and not told yet.
    pub(super) untold: Vec<u32>,
}

impl Making {
    /// The first `len` of prompt and answer so far.
    pub(super) fn known(&self, len: u32) -> Vec<u32> {
        let prompt = &self.generation.prompt;
        let prompt_len = prompt.len() as u32;
        let answer = (0..len.saturating_sub(prompt_len)).map(|i| tokens::token(self.seed, i));
        let prompt = &prompt[..len.min(prompt_len) as usize];
        prompt.iter().copied().chain(answer).collect()
    }

    pub(super) fn first(&self, now: u64, given_up: bool) -> Option<FirstToken> {
        let took = now - self.arrived;
        (self.generation.class == Class::Interactive).then(|| FirstToken {
            model: self.generation.model.clone(),
            uncached: self.generation.prompt.len() as u32 - self.cached.unwrap_or(0),
            ttft_ms: took as f32 / 1000.0,
            took_ms: (took / 1000) as u32,
            given_up,
        })
    }

    /// How long it waited for a slot.
    pub(super) fn waited_us(&self) -> u64 {
        self.started.unwrap_or(self.arrived) - self.arrived
    }

    /// From there to its first token.
    pub(super) fn prefilled_us(&self) -> u64 {
        self.began
            .map_or(0, |began| began - self.started.unwrap_or(self.arrived))
    }

    pub(super) fn chunk(&mut self) -> Option<Out> {
        if self.untold.is_empty() {
            return None;
        }
        let tokens = std::mem::take(&mut self.untold);
        let chunk = Chunk {
            position: self.emitted - tokens.len() as u32,
            tokens,
            logprobs: Vec::new(),
        };
        Some((self.asked, GenerationEvent::Chunk(chunk)))
    }
}
