//! Where KV caches lie: slabs of equal rows per model and capacity, under one budget. The pool
//! decides; the engine carries out [`KvOp`]s in order and holds the memory.

use std::collections::BTreeMap;

use pomona_common::ModelName;

use crate::sequence::SequenceId;

/// Rows hold a power-of-two multiple of this many tokens, so that shapes repeat (mlx-lm grows
/// its caches in steps of 256 as well).
pub const CAPACITY_STEP: u32 = 256;

/// A row of a slab.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowPlace {
    /// The model.
    pub model: ModelName,
    /// Tokens a row of this slab holds.
    pub capacity: u32,
    /// Index of the row.
    pub row: u32,
}

/// A change of the slabs, to be carried out in order before the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvOp {
    /// Give the slab this many rows, keeping the contents of those that stay; 0 frees it.
    Resize {
        /// The model.
        model: ModelName,
        /// Which slab.
        capacity: u32,
        /// New number of rows.
        rows: u32,
    },
    /// Copy a row over another; the source is free afterwards.
    Move {
        /// The model.
        model: ModelName,
        /// Which slab.
        capacity: u32,
        /// Source row.
        from: u32,
        /// Destination row.
        to: u32,
    },
}

#[derive(Debug, Clone, Default)]
struct Slab {
    rows: u32,
    /// Occupants, without holes.
    used: Vec<SequenceId>,
}

/// The slabs of all models. Invariant: bytes of all allocated rows never exceed the budget.
#[derive(Debug, Clone, Default)]
pub struct KvPool {
    budget: u64,
    /// Of the budget, what others keep there and give up when a row needs it.
    kept: u64,
    bytes_per_token: BTreeMap<ModelName, u64>,
    slabs: BTreeMap<(ModelName, u32), Slab>,
    places: BTreeMap<SequenceId, (ModelName, u32, u32)>,
    ops: Vec<KvOp>,
}

impl KvPool {
    /// An empty pool under a budget in bytes.
    pub fn new(budget: u64) -> Self {
        Self {
            budget,
            ..Self::default()
        }
    }

    /// Changes the budget. Rows in use stay; nothing new fits until they are under it.
    pub fn set_budget(&mut self, budget: u64) {
        self.budget = budget;
    }

    /// Others keep so many bytes of the budget, and give them up when a row needs them. A slab grows by no more than
    /// it needs at their cost.
    pub fn set_kept(&mut self, bytes: u64) {
        self.kept = bytes;
    }

    /// The budget in bytes.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Makes a model known.
    pub fn add_model(&mut self, model: ModelName, bytes_per_token: u64) {
        self.bytes_per_token.insert(model, bytes_per_token.max(1));
    }

    /// Forgets a model whose sequences are all released.
    pub fn remove_model(&mut self, model: &ModelName) {
        self.bytes_per_token.remove(model);
        self.slabs.retain(|(owner, _), _| owner != model);
    }

    /// Bytes of all allocated rows.
    pub fn allocated(&self) -> u64 {
        self.slabs
            .iter()
            .map(|((model, capacity), slab)| u64::from(slab.rows) * self.row_bytes(model, *capacity))
            .sum()
    }

    /// Bytes that a sequence of this many tokens takes.
    pub fn bytes_for(&self, model: &ModelName, tokens: u32) -> u64 {
        self.row_bytes(model, capacity_for(tokens))
    }

    /// Whether a row would fit after everything in use by `without` is given back.
    pub fn would_fit(&self, model: &ModelName, tokens: u32, without: &[SequenceId]) -> bool {
        let freed: u64 = without
            .iter()
            .filter_map(|id| self.places.get(id))
            .map(|(model, capacity, _)| self.row_bytes(model, *capacity))
            .sum();
        self.in_use() - freed + self.bytes_for(model, tokens) <= self.budget
    }

    /// Takes a row for a sequence.
    ///
    /// # Errors
    /// The budget does not allow one.
    pub fn take(&mut self, id: SequenceId, model: &ModelName, tokens: u32) -> Result<(), NoRoom> {
        if !self.would_fit(model, tokens, &[]) {
            return Err(NoRoom);
        }
        let capacity = capacity_for(tokens);
        let key = (model.clone(), capacity);
        let slab = self.slabs.get(&key).cloned().unwrap_or_default();
        if slab.used.len() as u32 == slab.rows {
            self.grow(&key, slab.rows)?;
        }
        let slab = self.slabs.entry(key).or_default();
        let row = slab.used.len() as u32;
        slab.used.push(id);
        self.places.insert(id, (model.clone(), capacity, row));
        Ok(())
    }

    /// Gives a row back; the last row of the slab moves into the hole.
    pub fn release(&mut self, id: SequenceId) {
        let Some((model, capacity, row)) = self.places.remove(&id) else {
            return;
        };
        let Some(slab) = self.slabs.get_mut(&(model.clone(), capacity)) else {
            return;
        };
        slab.used.swap_remove(row as usize);
        if let Some(moved) = slab.used.get(row as usize) {
            let from = slab.used.len() as u32;
            self.places.insert(*moved, (model.clone(), capacity, row));
            self.ops.push(KvOp::Move {
                model,
                capacity,
                from,
                to: row,
            });
        }
    }

    /// The row of a sequence.
    pub fn place(&self, id: SequenceId) -> Option<RowPlace> {
        self.places.get(&id).map(|(model, capacity, row)| RowPlace {
            model: model.clone(),
            capacity: *capacity,
            row: *row,
        })
    }

    /// The changes since the last call.
    pub fn drain_ops(&mut self) -> Vec<KvOp> {
        std::mem::take(&mut self.ops)
    }

    fn in_use(&self) -> u64 {
        self.places
            .values()
            .map(|(model, capacity, _)| self.row_bytes(model, *capacity))
            .sum()
    }

    fn row_bytes(&self, model: &ModelName, capacity: u32) -> u64 {
        u64::from(capacity) * self.bytes_per_token.get(model).copied().unwrap_or(1)
    }

    /// Doubles a slab where the budget allows it, else adds one row; idle rows of other slabs
    /// are given back first when they are in the way.
    fn grow(&mut self, key: &(ModelName, u32), rows: u32) -> Result<(), NoRoom> {
        let row = self.row_bytes(&key.0, key.1);
        let wanted = (rows * 2).clamp(1, 64.max(rows + 1));
        let fits = |pool: &Self, rows_new: u32, budget: u64| {
            pool.allocated() + u64::from(rows_new - rows) * row <= budget
        };
        let new_rows = if fits(self, wanted, self.budget.saturating_sub(self.kept)) {
            wanted
        } else {
            self.trim(Some(key));
            if !fits(self, rows + 1, self.budget) {
                return Err(NoRoom);
            }
            rows + 1
        };
        self.slabs.entry(key.clone()).or_default().rows = new_rows;
        self.resize(key, new_rows);
        Ok(())
    }

    /// A resize writes the whole slab anew: one that is to be followed by another is left out.
    fn resize(&mut self, key: &(ModelName, u32), rows: u32) {
        let is_its = |op: &KvOp| match op {
            KvOp::Resize { model, capacity, .. } | KvOp::Move { model, capacity, .. } => {
                (model, *capacity) == (&key.0, key.1)
            }
        };
        if let Some(last) = self.ops.iter().rposition(is_its)
            && matches!(self.ops[last], KvOp::Resize { .. })
        {
            self.ops.remove(last);
        }
        self.ops.push(KvOp::Resize {
            model: key.0.clone(),
            capacity: key.1,
            rows,
        });
    }

    /// Gives back the rows that nobody uses.
    pub fn shrink(&mut self) {
        self.trim(None);
    }

    /// Gives back those that nobody uses of slabs of which hardly any are: where as many come and go, nothing is written
    /// anew.
    pub fn shrink_idle(&mut self) {
        let idle: Vec<(ModelName, u32)> = self
            .slabs
            .iter()
            .filter(|(_, slab)| slab.rows >= 2 * slab.used.len() as u32)
            .map(|(key, _)| key.clone())
            .collect();
        self.fit(idle);
    }

    fn trim(&mut self, keep: Option<&(ModelName, u32)>) {
        let is_idle = |(key, slab): &(&(ModelName, u32), &Slab)| {
            Some(*key) != keep && slab.rows > slab.used.len() as u32
        };
        let idle: Vec<(ModelName, u32)> = self
            .slabs
            .iter()
            .filter(is_idle)
            .map(|(key, _)| key.clone())
            .collect();
        self.fit(idle);
    }

    /// Gives back all rows of these slabs that nobody uses.
    fn fit(&mut self, slabs: Vec<(ModelName, u32)>) {
        for key in slabs {
            let slab = self.slabs.entry(key.clone()).or_default();
            slab.rows = slab.used.len() as u32;
            let rows = slab.rows;
            self.resize(&key, rows);
        }
        self.slabs.retain(|_, slab| slab.rows > 0);
    }
}

/// The budget allows no further row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the KV budget allows no further row")]
pub struct NoRoom;

/// Tokens of the row that a sequence of `tokens` gets.
pub fn capacity_for(tokens: u32) -> u32 {
    let steps = tokens.div_ceil(CAPACITY_STEP).max(1);
    steps.next_power_of_two() * CAPACITY_STEP
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Result<ModelName, pomona_common::id::IdError> {
        "m".parse()
    }

    #[test]
    fn capacities_are_powers_of_two_of_the_step() {
        assert_eq!(
            [0, 1, 256, 257, 513, 1025].map(capacity_for),
            [256, 256, 256, 512, 1024, 2048]
        );
    }

    #[test]
    fn a_released_row_is_filled_by_the_last_one() -> Result<(), Box<dyn std::error::Error>> {
        let mut pool = KvPool::new(1 << 20);
        pool.add_model(model()?, 1);
        for id in 0..3 {
            pool.take(id, &model()?, 100)?;
        }
        pool.drain_ops();
        pool.release(0);
        let expected = KvOp::Move {
            model: model()?,
            capacity: 256,
            from: 2,
            to: 0,
        };
        assert_eq!(pool.drain_ops(), [expected]);
        assert_eq!(pool.place(2).map(|place| place.row), Some(0));
        Ok(())
    }

    #[test]
    fn a_slab_grows_by_no_more_than_it_needs_where_others_keep_the_room()
    -> Result<(), Box<dyn std::error::Error>> {
        let mut pool = KvPool::new(256 * 6);
        pool.add_model(model()?, 1);
        pool.take(0, &model()?, 256)?;
        pool.take(1, &model()?, 256)?;
        pool.set_kept(256 * 3);
        pool.take(2, &model()?, 256)?;
        assert_eq!(pool.allocated(), 256 * 3, "not doubled");
        for id in 3..6 {
            pool.take(id, &model()?, 256)?;
        }
        assert_eq!(
            pool.allocated(),
            256 * 6,
            "what others keep is theirs only until a row needs it"
        );
        Ok(())
    }

    #[test]
    fn a_slab_is_written_anew_once_whatever_comes_at_once() -> Result<(), Box<dyn std::error::Error>> {
        let mut pool = KvPool::new(256 * 64);
        pool.add_model(model()?, 1);
        pool.set_kept(256 * 64);
        for id in 0..16 {
            pool.take(id, &model()?, 256)?;
        }
        assert_eq!(pool.drain_ops().len(), 1);
        (0..4).for_each(|id| pool.release(id));
        pool.drain_ops();
        pool.shrink_idle();
        assert_eq!(pool.drain_ops(), [], "twelve of sixteen are in use");
        (4..10).for_each(|id| pool.release(id));
        pool.drain_ops();
        pool.shrink_idle();
        assert_eq!((pool.drain_ops().len(), pool.allocated()), (1, 256 * 6));
        Ok(())
    }

    #[test]
    fn idle_rows_of_another_slab_make_room() -> Result<(), Box<dyn std::error::Error>> {
        let mut pool = KvPool::new(1024);
        pool.add_model(model()?, 1);
        for id in 0..4 {
            pool.take(id, &model()?, 256)?;
        }
        for id in 0..4 {
            pool.release(id);
        }
        pool.take(9, &model()?, 1024)?;
        assert_eq!(pool.allocated(), 1024);
        assert_eq!(pool.take(10, &model()?, 1), Err(NoRoom));
        Ok(())
    }
}
