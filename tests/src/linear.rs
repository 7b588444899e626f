//! Whether a history of reads and writes of one register is linearizable, when every written
//! value is written once: by the zones of Gibbons and Korach (Testing Shared Memories, SIAM J.
//! Comput. 26(4), 1997, section 5), which is exact for such histories and quadratic at worst.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was acknowledged.
    Done,
    /// It certainly did nothing.
    Failed,
    /// It may have acted, then or later.
    Unknown,
}

/// One operation as its client saw it. Times are of one clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Whether it wrote; it read otherwise.
    pub write: bool,
    /// What was written or read.
    pub value: String,
    /// When the client asked.
    pub asked: u64,
    /// When the client had its answer.
    pub answered: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// The operations on one value.
#[derive(Debug, Clone, Copy)]
struct Zone {
    /// When the first of them had ended.
    first_end: u64,
    /// When the last of them began.
    last_begin: u64,
}

impl Zone {
    /// The value was certainly there for a while, from `first_end` to `last_begin`.
    fn is_forward(self) -> bool {
        self.first_end < self.last_begin
    }
}

/// Checks the history of a register that held `initial` at the beginning.
///
/// # Errors
/// What is wrong, in words.
pub fn check(initial: &str, history: &[Operation]) -> Result<(), String> {
    let mut zones: BTreeMap<&str, Zone> = BTreeMap::new();
    let beginning = Zone {
        first_end: 0,
        last_begin: 0,
    };
    zones.insert(initial, beginning);
    let reads = || {
        history
            .iter()
            .filter(|op| !op.write && op.outcome == Outcome::Done)
    };
    for write in history.iter().filter(|op| op.write) {
        let seen = reads().filter(|read| read.value == write.value);
        let first_seen = seen.map(|read| read.answered).min();
        let answered = match (write.outcome, first_seen) {
            (Outcome::Done, _) => write.answered,
            (Outcome::Failed, Some(_)) => {
                return Err(format!("`{}` was refused, and read", write.value));
            }
            // Nobody can tell an unknown one that is not read from one that never was.
            (Outcome::Failed | Outcome::Unknown, None) => continue,
            (Outcome::Unknown, Some(first_seen)) => first_seen,
        };
        let zone = Zone {
            first_end: answered,
            last_begin: write.asked,
        };
        if zones.insert(&write.value, zone).is_some() {
            return Err(format!(
                "`{}` is written twice: this history cannot be checked",
                write.value
            ));
        }
        if let Some(early) = reads().find(|read| read.value == write.value && read.answered < write.asked) {
            return Err(format!(
                "`{}` was read at {}, before it was written",
                early.value, early.answered
            ));
        }
    }
    for read in reads() {
        let Some(zone) = zones.get_mut(read.value.as_str()) else {
            return Err(format!("`{}` was read, and never written", read.value));
        };
        zone.first_end = zone.first_end.min(read.answered);
        zone.last_begin = zone.last_begin.max(read.asked);
    }
    let forward: Vec<(&str, Zone)> = zones
        .iter()
        .map(|(v, z)| (*v, *z))
        .filter(|(_, z)| z.is_forward())
        .collect();
    for (i, (value, zone)) in forward.iter().enumerate() {
        for (other, inner) in &zones {
            let clash = if inner.is_forward() {
                let earlier = forward[..i].iter().any(|(seen, _)| seen == other);
                !earlier
                    && other != value
                    && zone.first_end < inner.last_begin
                    && inner.first_end < zone.last_begin
            } else {
                zone.first_end < inner.last_begin && inner.first_end < zone.last_begin
            };
            if clash {
                return Err(format!(
                    "`{value}` and `{other}` were both there between {} and {}",
                    zone.first_end, zone.last_begin
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn op(write: bool, value: &str, asked: u64, answered: u64, outcome: Outcome) -> Operation {
        Operation {
            write,
            value: value.into(),
            asked,
            answered,
            outcome,
        }
    }

    fn write(value: &str, asked: u64, answered: u64) -> Operation {
        op(true, value, asked, answered, Outcome::Done)
    }

    fn read(value: &str, asked: u64, answered: u64) -> Operation {
        op(false, value, asked, answered, Outcome::Done)
    }

    #[test]
    fn good_histories_pass() {
        let unknown = op(true, "b", 30, 35, Outcome::Unknown);
        for history in [
            vec![read("0", 1, 2), write("a", 3, 10), read("a", 11, 12)],
            vec![write("a", 3, 10), read("0", 4, 5), read("a", 6, 7)],
            vec![write("a", 1, 9), write("b", 2, 8), read("b", 10, 11)],
            vec![write("a", 1, 9), write("b", 2, 8), read("a", 10, 11)],
            vec![write("a", 1, 2), unknown.clone(), read("a", 40, 41)],
            vec![write("a", 1, 2), unknown, read("a", 40, 41), read("b", 50, 51)],
            vec![op(true, "c", 1, 2, Outcome::Failed), read("0", 3, 4)],
        ] {
            assert_eq!(check("0", &history), Ok(()), "{history:?}");
        }
    }

    #[test]
    fn bad_histories_are_found() {
        for history in [
            // A stale read after an acknowledged write.
            vec![write("a", 3, 10), read("0", 11, 12)],
            // A lost write.
            vec![write("a", 1, 2), write("b", 3, 4), read("a", 5, 6)],
            // A value from the future, or from nowhere.
            vec![read("a", 1, 2), write("a", 3, 4)],
            vec![read("x", 1, 2)],
            // New, then old again, while the write is under way.
            vec![write("a", 1, 20), read("a", 2, 3), read("0", 4, 5)],
            // A refused write that acted.
            vec![op(true, "a", 1, 2, Outcome::Failed), read("a", 3, 4)],
            // An unknown write that acted twice.
            vec![
                op(true, "a", 1, 2, Outcome::Unknown),
                read("a", 3, 4),
                write("b", 5, 6),
                read("b", 7, 8),
                read("a", 9, 10),
            ],
            // Two readers that see two writes in different orders.
            vec![
                write("a", 1, 20),
                write("b", 1, 20),
                read("a", 2, 3),
                read("b", 4, 5),
                read("a", 6, 7),
            ],
        ] {
            assert!(check("0", &history).is_err(), "{history:?}");
        }
    }

    /// Tries every order: what linearizable means, word by word.
    fn brute_force(current: &str, left: &[Operation]) -> bool {
        let must = |op: &&Operation| op.outcome == Outcome::Done;
        if !left.iter().any(|op| must(&op)) {
            return true;
        }
        let first_end = left.iter().filter(must).map(|op| op.answered).min().unwrap_or(0);
        (0..left.len()).any(|i| {
            let op = &left[i];
            if op.asked > first_end || op.outcome == Outcome::Failed {
                return false;
            }
            let rest: Vec<Operation> = left
                .iter()
                .enumerate()
                .filter(|(j, _)| *j != i)
                .map(|(_, op)| op.clone())
                .collect();
            match (op.write, op.value == current) {
                (true, _) => brute_force(&op.value, &rest),
                (false, same) => same && brute_force(current, &rest),
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

        /// On small histories the zones say what trying every order says.
        #[test]
        fn zones_agree_with_every_order(
            script in prop::collection::vec((any::<bool>(), 0..4usize, 0..12u64, 0..6u64, 0..8u8), 1..7),
        ) {
            let names = ["0", "a", "b", "c"];
            let mut written = std::collections::BTreeSet::from(["0"]);
            let mut history = Vec::new();
            for (i, (is_write, value, asked, took, how)) in script.into_iter().enumerate() {
                // No two instants are the same: ties have no meaning.
                let (asked, answered) = ((asked * 100 + i as u64) + 1, (asked + took) * 100 + 50 + i as u64);
                let value = names[value];
                let outcome = match (is_write, how) {
                    (true, 0) => Outcome::Failed,
                    (true, 1 | 2) => Outcome::Unknown,
                    _ => Outcome::Done,
                };
                if is_write && !written.insert(value) {
                    continue;
                }
                history.push(op(is_write, value, asked, answered, outcome));
            }
            let zones = check("0", &history);
            prop_assert_eq!(zones.is_ok(), brute_force("0", &history), "{:?}: {:?}", zones, history);
        }
    }
}
