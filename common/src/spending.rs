//! What API keys take: amounts, accounts, and windows of time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{KeyId, ModelName, NodeId};

/// Seconds of a minute.
pub const MINUTE_S: u64 = 60;
const DAY_S: u64 = 24 * 3600;
/// Clocks of machines that work differ by less.
const AHEAD_MINUTES: u64 = 15;

/// Requests, and the tokens of their prompts and answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Requests.
    pub requests: u64,
    /// Tokens.
    pub tokens: u64,
}

impl Amount {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            tokens: self.tokens.saturating_add(other.tokens),
        }
    }

    /// What is left without the other.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            tokens: self.tokens.saturating_sub(other.tokens),
        }
    }

    /// The part of it that `left` of `whole` is, rounded down: who may ask once a minute may do so again
    /// in the next.
    fn part(self, left: u64, whole: u64) -> Self {
        let of = |n: u64| (u128::from(n) * u128::from(left) / u128::from(whole)) as u64;
        Self {
            requests: of(self.requests),
            tokens: of(self.tokens),
        }
    }
}

/// What is counted apart: a key, or one of the models that it has limits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Account {
    /// The key.
    pub key: KeyId,
    /// The model; all of them together otherwise.
    pub model: Option<ModelName>,
}

/// Where requests come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EntryId {
    /// The endpoint of the coordinator with this number.
    Coordinator(u64),
    /// A node's own.
    Node(NodeId),
}

/// The latest batch of an entry that was counted: its process, and the number of the batch.
pub type Charged = (u64, u64);

/// What was spent at an entry since its last batch. An entry has one batch on its way at a time, and sends it
/// again until it hears that it was counted, to whoever leads: it is counted once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The entry's process, drawn when it started.
    pub instance: u64,
    /// Counts up from 1 in a process.
    pub number: u64,
    /// At most [`BATCH_ENTRIES`](crate::limits::BATCH_ENTRIES).
    pub spent: Vec<Spent>,
}

impl Batch {
    /// Whether it was counted, where the latest that was is `charged`.
    #[must_use]
    pub fn is_in(&self, charged: Charged) -> bool {
        charged.0 == self.instance && charged.1 >= self.number
    }

    /// As whoever counts it at `now_s` dates it, in seconds since 1970, when the entry's own clock said `told_ms`, in
    /// milliseconds, so long ago. Clocks that differ by little are all right, and every entry's minute stays as it is.
    #[must_use]
    pub fn dated(mut self, told_ms: u64, ago: Duration, now_s: u64) -> Self {
        let (theirs_s, ours_s) = (told_ms / 1000, now_s.saturating_sub(ago.as_secs()));
        if theirs_s.abs_diff(ours_s) > AHEAD_MINUTES * MINUTE_S {
            for one in &mut self.spent {
                one.at_s = one.at_s.saturating_add(ours_s).saturating_sub(theirs_s);
            }
        }
        self
    }
}

/// What was spent in one minute: it counts for that one, however late the cluster hears of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Where it counts.
    pub account: Account,
    /// A moment of that minute, in seconds since 1970.
    pub at_s: u64,
    /// How much.
    pub amount: Amount,
}

/// Amounts of this minute, the one before, and the day (UTC).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windows {
    minute: u64,
    of_minute: Amount,
    of_minute_before: Amount,
    day: u64,
    of_day: Amount,
}

impl Windows {
    /// Adds what was spent at `at_s`, as it is seen at `now_s`, both in seconds since 1970. What nothing of
    /// now covers any more is not counted, and what is said to be of the future counts for now.
    pub fn add(&mut self, at_s: u64, now_s: u64, amount: Amount) {
        self.change(at_s, now_s, |window| window.plus(amount));
    }

    /// Takes out what was added so and is counted elsewhere now.
    pub fn take_out(&mut self, at_s: u64, now_s: u64, amount: Amount) {
        self.change(at_s, now_s, |window| window.less(amount));
    }

    fn change(&mut self, at_s: u64, now_s: u64, how: impl Fn(Amount) -> Amount) {
        *self = self.at(now_s);
        let at_s = at_s.min(now_s);
        let (minute, day) = (at_s / MINUTE_S, at_s / DAY_S);
        if minute == self.minute {
            self.of_minute = how(self.of_minute);
        } else if minute + 1 == self.minute {
            self.of_minute_before = how(self.of_minute_before);
        }
        if day == self.day {
            self.of_day = how(self.of_day);
        }
    }

    /// The last sixty seconds, estimated: all of this minute, and the part of the one before that they
    /// still cover, as if it had been even.
    pub fn minute(&self, at_s: u64) -> Amount {
        let now = self.at(at_s);
        let left = MINUTE_S - at_s.max(now.minute * MINUTE_S) % MINUTE_S;
        now.of_minute.plus(now.of_minute_before.part(left, MINUTE_S))
    }

    /// The day so far.
    pub fn day(&self, at_s: u64) -> Amount {
        self.at(at_s).of_day
    }

    /// Whether nothing of it counts any more.
    pub fn is_over(&self, at_s: u64) -> bool {
        let now = self.at(at_s);
        [now.of_minute, now.of_minute_before, now.of_day] == [Amount::default(); 3]
    }

    /// Whether nothing of it counts any more by any clock that is wrong by two days at most.
    pub fn is_long_over(&self, at_s: u64) -> bool {
        self.day.abs_diff(at_s / DAY_S) > 2
    }

    /// As they are at this time. A clock that is a little behind does not turn them back; windows that are
    /// far ahead were made by a clock that was wrong, and would never end.
    fn at(&self, at_s: u64) -> Self {
        let mut now = *self;
        let (minute, day) = (at_s / MINUTE_S, at_s / DAY_S);
        if now.minute > minute + AHEAD_MINUTES {
            now = Self::default();
        }
        if minute > now.minute {
            let follows = minute == now.minute + 1;
            now.of_minute_before = if follows { now.of_minute } else { Amount::default() };
            now.of_minute = Amount::default();
            now.minute = minute;
        }
        if day > now.day {
            now.of_day = Amount::default();
            now.day = day;
        }
        now
    }
}

/// Seconds from this time to the next midnight UTC.
pub fn until_midnight_s(at_s: u64) -> u64 {
    DAY_S - at_s % DAY_S
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(tokens: u64) -> Amount {
        Amount { requests: 1, tokens }
    }

    #[test]
    fn a_minute_slides_and_a_day_ends_at_midnight() {
        let mut windows = Windows::default();
        windows.add(DAY_S - 60, DAY_S - 60, tokens(600));
        assert_eq!(windows.minute(DAY_S - 60).tokens, 600);
        assert_eq!(windows.minute(DAY_S + 30).tokens, 300);
        assert_eq!(windows.minute(DAY_S + 60).tokens, 0);
        assert_eq!(
            (windows.day(DAY_S - 1).tokens, windows.day(DAY_S).tokens),
            (600, 0)
        );
        assert!(!windows.is_over(DAY_S + 59) && windows.is_over(DAY_S + 60));
    }

    #[test]
    fn what_a_wrong_clock_dates_counts_when_it_was_spent() {
        let now_s = 40 * DAY_S + 7_200;
        let spent = |at_s| {
            let key = KeyId::from_bits(7);
            let account = Account { key, model: None };
            let amount = tokens(5);
            vec![Spent {
                account,
                at_s,
                amount,
            }]
        };
        let batch = |at_s| Batch {
            instance: 1,
            number: 1,
            spent: spent(at_s),
        };
        for theirs_s in [now_s - DAY_S, now_s - 3_600, now_s + DAY_S] {
            // Ten minutes before the node said so.
            let told = batch(theirs_s - 600).dated(theirs_s * 1000, Duration::ZERO, now_s);
            assert_eq!(told, batch(now_s - 600));
            let told = batch(theirs_s - 600).dated(theirs_s * 1000, Duration::from_secs(5), now_s);
            assert_eq!(told, batch(now_s - 605));
        }
        for theirs_s in [now_s - 600, now_s, now_s + 5] {
            let told = batch(theirs_s - 90);
            assert_eq!(told.clone().dated(theirs_s * 1000, Duration::ZERO, now_s), told);
        }
        assert_eq!(batch(0).dated(now_s * 1000, Duration::ZERO, 0), batch(0));
    }

    #[test]
    fn what_is_heard_late_counts_for_its_own_minute_and_day() {
        let mut windows = Windows::default();
        windows.add(DAY_S - 70, DAY_S + 5, tokens(7));
        assert_eq!(
            (windows.minute(DAY_S + 5), windows.day(DAY_S + 5)),
            Default::default()
        );
        windows.add(DAY_S - 1, DAY_S + 30, tokens(60));
        assert_eq!(windows.minute(DAY_S + 30).tokens, 30);
        assert_eq!(windows.day(DAY_S + 30).tokens, 0);
        windows.add(DAY_S + 10, DAY_S + 200, tokens(5));
        assert_eq!(
            (
                windows.minute(DAY_S + 200).tokens,
                windows.day(DAY_S + 200).tokens
            ),
            (0, 5)
        );
    }

    #[test]
    fn what_is_taken_out_is_what_was_added_and_no_more() {
        let mut windows = Windows::default();
        windows.add(30, 30, tokens(900));
        windows.add(130, 130, tokens(800));
        // The first is no part of the minute any more, and must not take from the second.
        windows.take_out(30, 131, tokens(900));
        assert_eq!((windows.minute(131).tokens, windows.day(131).tokens), (800, 800));
        windows.take_out(130, 131, tokens(800));
        assert!(windows.is_over(131));
    }

    #[test]
    fn a_clock_that_was_wrong_does_not_stop_the_windows_for_good() {
        let mut windows = Windows::default();
        windows.add(400 * DAY_S, 400 * DAY_S, tokens(900));
        assert_eq!(windows.day(DAY_S).tokens, 0);
        windows.add(DAY_S, DAY_S, tokens(5));
        assert_eq!(windows.day(DAY_S).tokens, 5);
        // A little behind is as now.
        windows.add(DAY_S + 120, DAY_S + 120, tokens(6));
        assert_eq!(windows.day(DAY_S + 60).tokens, 11);
    }
}
