//! Beginnings of prompts that are kept, as the product's engine does it; without their KV.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::{ModelName, ModelRecord};
use pomona_sched::{Kin, RowWork, SequenceId, goes_on};

use super::Engine;

impl Engine {
    pub(super) fn use_prefixes(&mut self, admitted: &[SequenceId]) {
        let (now, budget) = (Duration::from_micros(self.now), self.scheduler.prefix_budget());
        for id in admitted {
            let Some(making) = self.sequences.get_mut(id) else {
                continue;
            };
            let known = making.known(making.generation.prompt.len() as u32 + making.emitted);
            let found = self.prefixes.find(Kin::of(&making.generation), &known, now);
            let found = found.map_or(0, |(len, ())| len);
            self.scheduler.skip_prefix(*id, found);
            self.copies
                .restore(found, token_bytes(&self.models, &making.generation.model));
            self.cached[making.generation.class.index()] += u64::from(found);
            making.started.get_or_insert(self.now);
            if making.cached.is_none() {
                let prompt = &making.generation.prompt;
                making.keep = self
                    .prefixes
                    .remember(Kin::of(&making.generation), prompt, found, budget);
                making.cached = Some(found.min(making.generation.prompt.len() as u32));
            }
        }
    }

    pub(super) fn keep_prefix(&mut self, row: &RowWork) {
        let Some(making) = self.sequences.get_mut(&row.id) else {
            return;
        };
        if let Some(keep) = making.keep.take_if(|keep| row.start + row.len >= *keep) {
            self.keep(row.id, keep);
        }
    }

    pub(super) fn keep_answer(&mut self, id: SequenceId) {
        if let Some(making) = self.sequences.get(&id)
            && goes_on(making.generation.class, making.cached.unwrap_or(0))
        {
            self.keep(id, self.scheduler.cached(id));
        }
    }

    fn keep(&mut self, id: SequenceId, len: u32) {
        let Some(making) = self.sequences.get(&id) else {
            return;
        };
        let tokens = making.known(len);
        if let Some(bytes) = self.prefixes.bytes_with(Kin::of(&making.generation), &tokens) {
            self.scheduler.make_room_for_prefixes(bytes);
        }
        self.follow_kv_ops();
        let Some(making) = self.sequences.get(&id) else {
            return;
        };
        let (now, budget) = (Duration::from_micros(self.now), self.scheduler.prefix_budget());
        let save = || {
            self.copies
                .save(len, token_bytes(&self.models, &making.generation.model));
            Some(())
        };
        self.prefixes
            .keep(Kin::of(&making.generation), &tokens, budget, now, save);
        self.scheduler.set_prefix_bytes(self.prefixes.bytes());
    }

    /// Writes slabs as the scheduler wants them; whether there was anything to do.
    pub(super) fn follow_kv_ops(&mut self) -> bool {
        let ops = self.scheduler.kv_ops();
        self.copies.follow(&ops, |model| token_bytes(&self.models, model));
        !ops.is_empty()
    }

    /// Forgets what has no room in so many bytes.
    pub(super) fn trim_prefixes(&mut self, budget: u64) {
        self.prefixes.trim(budget);
        self.scheduler.set_prefix_bytes(self.prefixes.bytes());
    }
}

/// What a token of a model takes.
fn token_bytes(models: &BTreeMap<ModelName, ModelRecord>, model: &ModelName) -> u64 {
    models.get(model).map_or(0, |record| record.kv_bytes_per_token)
}
