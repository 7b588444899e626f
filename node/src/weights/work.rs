//! Which chunk is fetched next, and which are there. Pure.

use std::collections::VecDeque;

/// A chunk of a file of the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) file: u16,
    pub(crate) chunk: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Work {
    todo: VecDeque<Piece>,
    under_way: usize,
}

impl Work {
    /// Everything that is missing, in this order.
    pub(crate) fn new(missing: impl IntoIterator<Item = Piece>) -> Self {
        Self {
            todo: missing.into_iter().collect(),
            under_way: 0,
        }
    }

    /// The next piece to fetch; to be given back by one of the other functions.
    pub(crate) fn next(&mut self) -> Option<Piece> {
        let piece = self.todo.pop_front()?;
        self.under_way += 1;
        Some(piece)
    }

    /// A piece is there and right.
    pub(crate) fn arrived(&mut self) {
        self.under_way -= 1;
    }

    /// A piece has to come from somebody else: soon, because others may wait for the file's end.
    pub(crate) fn failed(&mut self, piece: Piece) {
        self.under_way -= 1;
        self.todo.push_front(piece);
    }

    /// Whether nothing is missing.
    pub(crate) fn is_done(&self) -> bool {
        self.todo.is_empty() && self.under_way == 0
    }

    /// Whether nothing can be taken now, though pieces that are under way may come back.
    pub(crate) fn is_waiting(&self) -> bool {
        self.todo.is_empty() && self.under_way > 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However sources fail, every piece arrives exactly once, and the end is seen then and not
        /// before.
        #[test]
        fn every_piece_arrives_once(pieces in 0..40u32, script in prop::collection::vec((0..4usize, any::<bool>()), 0..400)) {
            let piece = |chunk| Piece { file: 0, chunk };
            let mut work = Work::new((0..pieces).map(piece));
            let (mut held, mut arrived) = (Vec::new(), BTreeSet::new());
            let mut step = |work: &mut Work, held: &mut Vec<Piece>, take: bool, fails: bool| {
                if take {
                    held.extend(work.next());
                } else if let Some(piece) = held.pop() {
                    if fails {
                        work.failed(piece);
                    } else {
                        work.arrived();
                        assert!(arrived.insert(piece.chunk), "twice");
                    }
                }
                arrived.len() as u32
            };
            for (what, fails) in script {
                let there = step(&mut work, &mut held, what > 0, fails);
                prop_assert_eq!(work.is_done(), there == pieces);
                prop_assert!(!(work.is_done() && work.is_waiting()));
            }
            for i in 0..1000 {
                step(&mut work, &mut held, i % 2 == 0, false);
            }
            prop_assert!(work.is_done());
        }
    }
}
