//! What is kept of KV caches for prompts to come: beginnings that prompts share, and what ended answers leave.

use mlx_rs::error::Exception;
use pomona_sched::{Kin, RowWork, SequenceId, goes_on};

use crate::worker::steps::lost_rows;
use crate::worker::{Disconnected, Worker};

impl Worker {
    /// Gives just admitted sequences what is kept of their prompts.
    pub(super) fn use_prefixes(&mut self, admitted: &[SequenceId]) -> Result<(), Exception> {
        let now = self.now();
        let budget = self.scheduler.prefix_budget();
        for id in admitted {
            let (Some(sequence), Some(place)) = (self.sequences.get_mut(id), self.scheduler.place(*id))
            else {
                continue;
            };
            let Some(lane) = self.lanes.get_mut(&place.model) else {
                continue;
            };
            sequence.prefill_started.get_or_insert(now);
            let mut found = 0;
            let kept = self
                .prefixes
                .find(Kin::of(&sequence.generation), &sequence.known(), now);
            if let Some((len, saved)) = kept {
                lane.kv.restore(place.capacity, place.row, saved, len)?;
                self.scheduler.skip_prefix(*id, len);
                // More than the prompt, where an answer goes on that was begun here.
                found = len.min(sequence.generation.prompt.len() as u32);
            }
            if !sequence.admitted_before {
                sequence.cached = found;
                let prompt = &sequence.generation.prompt;
                sequence.keep = self
                    .prefixes
                    .remember(Kin::of(&sequence.generation), prompt, found, budget);
                sequence.admitted_before = true;
            }
        }
        Ok(())
    }

    /// Keeps the shared beginning of a prompt as soon as it is in the cache.
    pub(super) fn keep_prefix(&mut self, row: &RowWork) -> Result<(), Disconnected> {
        let Some(sequence) = self.sequences.get_mut(&row.id) else {
            return Ok(());
        };
        match sequence.keep.take_if(|keep| row.start + row.len >= *keep) {
            Some(keep) => self.keep(row.id, keep),
            None => Ok(()),
        }
    }

    /// Keeps what an answer leaves in the cache that ends now, where that may go on. It may have come to its end, or
    /// nobody waits for it any more: its text had a stop string, its client left.
    pub(super) fn keep_answer(&mut self, id: SequenceId) -> Result<(), Disconnected> {
        match self.sequences.get(&id) {
            Some(sequence)
                if goes_on(sequence.generation.class, sequence.cached) && !sequence.is_canary() =>
            {
                self.keep(id, self.scheduler.cached(id))
            }
            _ => Ok(()),
        }
    }

    /// Keeps the first `len` tokens of a sequence.
    fn keep(&mut self, id: SequenceId, len: u32) -> Result<(), Disconnected> {
        let now = self.now();
        let Some(sequence) = self.sequences.get(&id) else {
            return Ok(());
        };
        let tokens = sequence.span(0, len);
        let with_it = self.prefixes.bytes_with(Kin::of(&sequence.generation), &tokens);
        let is_tight = with_it.is_some_and(|bytes| self.scheduler.make_room_for_prefixes(bytes));
        // Rows that are still to move lie elsewhere than the scheduler says.
        let gives_back = self.apply_kv_ops().map_err(|error| lost_rows(&error))?;
        if is_tight && gives_back {
            // Else MLX keeps what rows had for arrays of their size.
            let _ = mlx_rs::memory::clear_cache();
        }
        let budget = self.scheduler.prefix_budget();
        let (Some(sequence), Some(place)) = (self.sequences.get(&id), self.scheduler.place(id)) else {
            return Ok(());
        };
        if let Some(lane) = self.lanes.get_mut(&place.model) {
            let save = || lane.kv.save(place.capacity, place.row, len).ok();
            self.prefixes
                .keep(Kin::of(&sequence.generation), &tokens, budget, now, save);
            self.scheduler.set_prefix_bytes(self.prefixes.bytes());
        }
        Ok(())
    }

    /// Forgets what has no room in so many bytes.
    pub(super) fn trim_prefixes(&mut self, budget: u64) {
        self.prefixes.trim(budget);
        self.scheduler.set_prefix_bytes(self.prefixes.bytes());
    }
}
