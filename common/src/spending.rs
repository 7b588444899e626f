//! What API keys take: amounts, accounts, and windows of time.

use serde::{Deserialize, Serialize};

use crate::id::{KeyId, ModelName, NodeId};

const MINUTE_S: u64 = 60;
const DAY_S: u64 = 24 * 3600;

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

    /// The part of it that `left` of `whole` is, rounded up.
    fn part(self, left: u64, whole: u64) -> Self {
        let of = |n: u64| (u128::from(n) * u128::from(left)).div_ceil(u128::from(whole)) as u64;
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
    /// By account; at most [`BATCH_ACCOUNTS`](crate::limits::BATCH_ACCOUNTS).
    pub spent: Vec<(Account, Amount)>,
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
    /// Adds what was spent at this time, in seconds since 1970. A clock that is behind does not turn the
    /// windows back.
    pub fn add(&mut self, at_s: u64, amount: Amount) {
        *self = self.at(at_s);
        self.of_minute = self.of_minute.plus(amount);
        self.of_day = self.of_day.plus(amount);
    }

    /// Takes out what is counted elsewhere now: of the older minute first.
    pub fn take_out(&mut self, amount: Amount) {
        let newer = amount.less(self.of_minute_before);
        self.of_minute_before = self.of_minute_before.less(amount);
        self.of_minute = self.of_minute.less(newer);
        self.of_day = self.of_day.less(amount);
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

    fn at(&self, at_s: u64) -> Self {
        let mut now = *self;
        let (minute, day) = (at_s / MINUTE_S, at_s / DAY_S);
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
        windows.add(DAY_S - 60, tokens(600));
        assert_eq!(windows.minute(DAY_S - 60).tokens, 600);
        assert_eq!(windows.minute(DAY_S + 30).tokens, 300);
        assert_eq!(windows.minute(DAY_S + 60).tokens, 0);
        assert_eq!(
            (windows.day(DAY_S - 1).tokens, windows.day(DAY_S).tokens),
            (600, 0)
        );
        assert!(!windows.is_over(DAY_S + 59) && windows.is_over(DAY_S + 60));
        // A clock that is behind.
        windows.add(DAY_S + 5, tokens(10));
        windows.add(DAY_S - 70, tokens(10));
        assert_eq!(windows.day(DAY_S + 5).tokens, 20);
    }

    #[test]
    fn what_is_counted_elsewhere_is_taken_out_once() {
        let mut windows = Windows::default();
        windows.add(30, tokens(100));
        windows.add(70, tokens(50));
        windows.take_out(Amount {
            requests: 1,
            tokens: 120,
        });
        assert_eq!(windows.minute(70).tokens, 30);
        assert_eq!(windows.day(70), tokens(30));
        windows.take_out(tokens(1000));
        assert!(windows.is_over(70));
    }
}
