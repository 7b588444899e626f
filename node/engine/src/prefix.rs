//! Beginnings of prompts that are in the KV cache already: prefilled once, then copied.
//!
//! A beginning becomes worth keeping when a prompt starts like a recent one. System prompts and templates are found
//! this way without being told. A whole answer with its prompt is the beginning of the next turn of its conversation.
//! Prompts share only under the same salt.

use std::collections::VecDeque;
use std::time::Duration;

use crate::kv::SavedKv;

/// Shortest prefix worth a copy: below it the copy costs as much as the tokens.
pub const MIN_TOKENS: usize = 16;
/// Recent prompts that new ones are compared with.
const HISTORY: usize = 64;
/// Tokens of a prompt that are remembered for comparison.
const HISTORY_TOKENS: usize = 4096;

/// One kept prefix.
#[derive(Debug)]
struct Entry {
    salt: u64,
    tokens: Vec<u32>,
    kv: SavedKv,
    used: Duration,
}

/// Prefixes of one model. Times are since the engine started.
#[derive(Debug, Default)]
pub struct PrefixCache {
    entries: Vec<Entry>,
    history: VecDeque<(u64, Vec<u32>)>,
}

impl PrefixCache {
    /// The longest kept prefix of a prompt, at least [`MIN_TOKENS`] and less than the prompt.
    pub fn find(&mut self, salt: u64, prompt: &[u32], now: Duration) -> Option<(u32, &SavedKv)> {
        let usable = prompt.len().saturating_sub(1);
        let (entry, len) = self
            .entries
            .iter_mut()
            .filter(|entry| entry.salt == salt)
            .map(|entry| {
                let len = common(&entry.tokens, &prompt[..usable]);
                (entry, len)
            })
            .max_by_key(|(_, len)| *len)?;
        if len < MIN_TOKENS {
            return None;
        }
        entry.used = now;
        Some((len as u32, &entry.kv))
    }

    /// Remembers a prompt, and says how many of its first tokens should be kept once they are
    /// in the KV cache: those it shares with a recent prompt beyond the `found` ones, unless they
    /// are more than `longest`.
    pub fn remember(&mut self, salt: u64, prompt: &[u32], found: u32, longest: usize) -> Option<u32> {
        let shared = self
            .history
            .iter()
            .filter(|(other, _)| *other == salt)
            .map(|(_, tokens)| common(tokens, prompt))
            .max()
            .unwrap_or(0)
            .min(prompt.len().saturating_sub(1));
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        let head = &prompt[..prompt.len().min(HISTORY_TOKENS)];
        self.history.push_back((salt, head.to_vec()));
        (shared >= found as usize + MIN_TOKENS && shared <= longest).then_some(shared as u32)
    }

    /// Keeps a prefix. The caller sees to the budget by [`PrefixCache::forget_oldest`].
    pub fn keep(&mut self, salt: u64, tokens: &[u32], kv: SavedKv, now: Duration) {
        // A longer entry serves every prompt that the shorter one did.
        self.entries
            .retain(|entry| entry.salt != salt || !tokens.starts_with(&entry.tokens));
        self.entries.push(Entry {
            salt,
            tokens: tokens.to_vec(),
            kv,
            used: now,
        });
    }

    /// When the entry that was not used for longest was used last.
    pub fn oldest(&self) -> Option<Duration> {
        self.entries.iter().map(|entry| entry.used).min()
    }

    /// Forgets the entry that was not used for longest.
    pub fn forget_oldest(&mut self) {
        if let Some(oldest) = (0..self.entries.len()).min_by_key(|i| self.entries[*i].used) {
            self.entries.swap_remove(oldest);
        }
    }

    /// Tokens in all entries.
    pub fn tokens(&self) -> usize {
        self.entries.iter().map(|entry| entry.tokens.len()).sum()
    }
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
