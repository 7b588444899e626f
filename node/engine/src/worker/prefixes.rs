//! What is kept of KV caches for prompts to come: beginnings that prompts share, and whole answers of conversations,
//! whose next turn begins with them.

use std::time::Duration;

use mlx_rs::error::Exception;
use pomona_common::Class;
use pomona_sched::{RowWork, SequenceId};

use crate::lane::Lane;
use crate::prefix::MIN_TOKENS;
use crate::worker::{PREFIX_SHARE, Worker};

impl Worker {
    /// Gives just admitted sequences what is kept of their prompts.
    pub(super) fn use_prefixes(&mut self, admitted: &[SequenceId]) -> Result<(), Exception> {
        let now = self.now();
        let longest = self.prefix_budget();
        for id in admitted {
            let (Some(sequence), Some(place)) = (self.sequences.get_mut(id), self.scheduler.place(*id))
            else {
                continue;
            };
            let Some(lane) = self.lanes.get_mut(&place.model) else {
                continue;
            };
            sequence.prefill_started.get_or_insert(now);
            let known = sequence.known();
            let salt = sequence.generation.cache_salt;
            let mut found = 0;
            if let Some((len, saved)) = lane.prefixes.find(salt, &known, now) {
                lane.kv.restore(place.capacity, place.row, saved, len)?;
                self.scheduler.skip_prefix(*id, len);
                found = len;
            }
            if !sequence.admitted_before {
                let longest = (longest / lane.kv_token_bytes) as usize;
                sequence.cached = found;
                sequence.keep = lane
                    .prefixes
                    .remember(salt, &sequence.generation.prompt, found, longest);
                sequence.admitted_before = true;
            }
        }
        Ok(())
    }

    /// Keeps the shared beginning of a prompt as soon as it is in the cache.
    pub(super) fn keep_prefix(&mut self, row: &RowWork) {
        let Some(sequence) = self.sequences.get_mut(&row.id) else {
            return;
        };
        let Some(keep) = sequence.keep.filter(|keep| row.start + row.len >= *keep) else {
            return;
        };
        sequence.keep = None;
        let Some(lane) = self.lanes.get_mut(&row.place.model) else {
            return;
        };
        // Failing to keep a prefix costs time, never an answer.
        if let Ok(saved) = lane.kv.save(row.place.capacity, row.place.row, keep) {
            let tokens = &sequence.generation.prompt[..keep as usize];
            let salt = sequence.generation.cache_salt;
            lane.prefixes.keep(salt, tokens, saved, self.started.elapsed());
            self.trim_prefixes();
        }
    }

    /// Keeps a whole answer with its prompt: the next turn of a conversation begins with both. Of batch work only what
    /// went on from something kept, since most of it does not go on at all.
    pub(super) fn keep_answer(&mut self, row: &RowWork) {
        let Some(sequence) = self.sequences.get(&row.id) else {
            return;
        };
        let goes_on = sequence.generation.class != Class::Batch || sequence.cached > 0;
        let mut tokens = sequence.known();
        // The last one was not fed.
        tokens.pop();
        if !goes_on || sequence.is_canary() || tokens.len() < MIN_TOKENS {
            return;
        }
        let salt = sequence.generation.cache_salt;
        let budget = self.prefix_budget();
        let Some(lane) = self.lanes.get(&row.place.model) else {
            return;
        };
        let needs = tokens.len() as u64 * lane.kv_token_bytes;
        if needs > budget {
            return;
        }
        self.trim_prefixes_to(budget - needs);
        let Some(lane) = self.lanes.get_mut(&row.place.model) else {
            return;
        };
        if let Ok(saved) = lane
            .kv
            .save(row.place.capacity, row.place.row, tokens.len() as u32)
        {
            lane.prefixes.keep(salt, &tokens, saved, self.started.elapsed());
        }
    }

    /// Bytes that the kept prefixes of all models may take together: the share that is theirs, and what no row has of
    /// the rest.
    fn prefix_budget(&self) -> u64 {
        let of_rows = self.scheduler.knobs().kv_budget_bytes;
        let theirs = of_rows / (PREFIX_SHARE - 1);
        theirs + of_rows.saturating_sub(self.scheduler.kv_allocated())
    }

    /// Forgets the prefixes that were not used for longest, of whatever model, until all fit.
    pub(super) fn trim_prefixes(&mut self) {
        let budget = self.prefix_budget();
        self.trim_prefixes_to(budget);
    }

    /// Forgets all of them: memory is short.
    pub(super) fn forget_prefixes(&mut self) {
        self.trim_prefixes_to(0);
    }

    fn trim_prefixes_to(&mut self, budget: u64) {
        let bytes = |lane: &Lane| lane.prefixes.tokens() as u64 * lane.kv_token_bytes;
        while self.lanes.values().map(bytes).sum::<u64>() > budget {
            let lanes = self.lanes.values_mut();
            let oldest = lanes.min_by_key(|lane| lane.prefixes.oldest().unwrap_or(Duration::MAX));
            let Some(lane) = oldest else {
                return;
            };
            lane.prefixes.forget_oldest();
        }
    }
}
