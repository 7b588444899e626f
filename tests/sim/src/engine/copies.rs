//! What an engine copies of KV caches beside its steps: rows that move, slabs that are written anew, beginnings that are
//! kept and given back; as often as `node/engine/src/kv.rs` has MLX read and write it.

use std::collections::BTreeMap;

use pomona_common::ModelName;
use pomona_sched::KvOp;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Copies {
    /// Rows of each slab.
    rows: BTreeMap<(ModelName, u32), u32>,
    bytes: u64,
}

impl Copies {
    /// Carries out what the scheduler wants of the slabs, with the bytes that a token takes.
    pub(super) fn follow(&mut self, ops: &[KvOp], token: impl Fn(&ModelName) -> u64) {
        for op in ops {
            match op {
                KvOp::Resize {
                    model,
                    capacity,
                    rows,
                } => {
                    let key = (model.clone(), *capacity);
                    let had = self.rows.insert(key, *rows).unwrap_or(0);
                    // All of the new slab is written, and what stays of the old one read and written.
                    let moved = u64::from(*rows) + 2 * u64::from(had.min(*rows));
                    self.bytes += moved * u64::from(*capacity) * token(model);
                }
                KvOp::Move { model, capacity, .. } => {
                    self.save(*capacity, token(model));
                    self.restore(*capacity, token(model));
                }
            }
        }
    }

    /// So many tokens are taken out of a slab, and out of what MLX makes of that.
    pub(super) fn save(&mut self, tokens: u32, token: u64) {
        self.bytes += 4 * u64::from(tokens) * token;
    }

    /// So many tokens are written into a row.
    pub(super) fn restore(&mut self, tokens: u32, token: u64) {
        self.bytes += 2 * u64::from(tokens) * token;
    }

    /// Nothing of a model is there any more.
    pub(super) fn forget(&mut self, model: &ModelName) {
        self.rows.retain(|(of, _), _| of != model);
    }

    /// Bytes read and written since the last call.
    pub(super) fn take(&mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_and_written_counts() {
        let model: ModelName = "m".parse().unwrap();
        let resize = |rows| KvOp::Resize {
            model: model.clone(),
            capacity: 256,
            rows,
        };
        let moved = KvOp::Move {
            model: model.clone(),
            capacity: 256,
            from: 1,
            to: 0,
        };
        let mut copies = Copies::default();
        copies.follow(&[resize(1), resize(2), moved, resize(1), resize(0)], |_| 10);
        // One new; two, of which one stays; a move; one that stays; none.
        assert_eq!(copies.take(), (1 + 4 + 6 + 3) * 2560);
        copies.save(100, 10);
        copies.restore(100, 10);
        assert_eq!((copies.take(), copies.take()), (6000, 0));
        copies.follow(&[resize(1)], |_| 10);
        copies.forget(&model);
        copies.follow(&[resize(1)], |_| 10);
        assert_eq!(copies.take(), 2 * 2560);
    }
}
