//! One loaded model with its memory, and the sequences that run on it.

use std::time::Duration;

use pomona_common::{Accounting, ClassReason, Generation};

use crate::kv::KvSlabs;
use crate::llama::Llama;

/// A loaded model.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) llama: Llama,
    pub(crate) kv: KvSlabs,
    pub(crate) weight_bytes: u64,
    pub(crate) vocab: u32,
}

/// What the engine knows of a sequence beyond the scheduler's counts. Times are since the
/// engine started.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) generation: Generation,
    /// Tokens emitted, here or by the node that it is resumed from.
    pub(crate) answer: Vec<u32>,
    pub(crate) arrived: Duration,
    pub(crate) prefill_started: Option<Duration>,
    pub(crate) first_token: Option<Duration>,
    pub(crate) last_token: Option<Duration>,
    pub(crate) step_share_ms: f64,
    /// Prompt tokens taken from a kept prefix.
    pub(crate) cached: u32,
    /// Prompt tokens to keep once they are in the cache.
    pub(crate) keep: Option<u32>,
    pub(crate) admitted_before: bool,
}

impl Sequence {
    pub(crate) fn new(generation: Generation, arrived: Duration) -> Self {
        Self {
            answer: generation.resume.clone(),
            generation,
            arrived,
            prefill_started: None,
            first_token: None,
            last_token: None,
            step_share_ms: 0.0,
            cached: 0,
            keep: None,
            admitted_before: false,
        }
    }

    /// Whether the node asks on its own behalf: nobody's load, and not counted.
    pub(crate) fn is_canary(&self) -> bool {
        self.generation.class_reason == ClassReason::Canary
    }

    /// Prompt and answer so far.
    pub(crate) fn known(&self) -> Vec<u32> {
        [&self.generation.prompt[..], &self.answer].concat()
    }

    /// `len` known tokens from `start` on.
    pub(crate) fn span(&self, start: u32, len: u32) -> Vec<u32> {
        let prompt = &self.generation.prompt;
        (start as usize..(start + len) as usize)
            .map(|i| match prompt.get(i) {
                Some(token) => *token,
                None => self.answer[i - prompt.len()],
            })
            .collect()
    }

    pub(crate) fn accounting(&self, now: Duration, knob_version: u64, build: &str) -> Accounting {
        let ms = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64() * 1e3;
        let started = self.prefill_started.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        Accounting {
            queue_ms: ms(self.arrived, started),
            prefill_ms: ms(started, first),
            decode_ms: ms(first, self.last_token.unwrap_or(first)),
            step_share_ms: self.step_share_ms,
            prompt_tokens: self.generation.prompt.len() as u32,
            cached_tokens: self.cached,
            completion_tokens: self.answer.len() as u32,
            knob_version,
            node: None,
            build: build.to_owned(),
        }
    }
}
