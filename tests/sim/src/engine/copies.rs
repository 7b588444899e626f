//! What an engine copies of KV caches beside its steps: rows that move, slabs that are written anew, beginnings that are
//! kept and given back.

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
                    // All of the new slab is written, and what stays of the old one read.
                    let moved = u64::from(*rows) + u64::from(had.min(*rows));
                    self.bytes += moved * u64::from(*capacity) * token(model);
                }
                KvOp::Move { model, capacity, .. } => self.copy(*capacity, token(model)),
            }
        }
    }

    /// Reads so many tokens and writes them elsewhere.
    pub(super) fn copy(&mut self, tokens: u32, token: u64) {
        self.bytes += 2 * u64::from(tokens) * token;
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
        assert_eq!(copies.take(), (1 + 3 + 2 + 2) * 2560);
        copies.copy(100, 10);
        assert_eq!((copies.take(), copies.take()), (2000, 0));
    }
}
