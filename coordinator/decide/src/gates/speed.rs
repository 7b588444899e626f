//! Whether interactive answers come slower than is promised, token by token.

use std::collections::VecDeque;
use std::time::Duration;

use pomona_common::signs::Speeds;

use super::tail::{ENOUGH, WINDOW};

/// Between two looks that are remembered: five seconds of three hundred.
const LOOK: Duration = Duration::from_secs(5);

/// The answers of one node.
#[derive(Debug, Clone, Default)]
pub(super) struct Speed {
    /// What the node had counted, and when; the oldest is the last one from before the window.
    told: VecDeque<(Duration, Speeds)>,
}

impl Speed {
    /// Takes what a node has counted. Nothing it counted before it was heard of says anything.
    pub(super) fn take(&mut self, speeds: Speeds, now: Duration) {
        let last = self.told.back().copied();
        let is_again = last.is_some_and(|(_, last)| last.answers > speeds.answers || last.slow > speeds.slow);
        if is_again {
            // It was started again, and counts from nothing.
            self.told.clear();
            self.told.push_back((now, Speeds::default()));
        }
        if is_again || last.is_none_or(|(at, _)| now.saturating_sub(at) >= LOOK) {
            self.told.push_back((now, speeds));
        }
        let is_old = |(at, _): &(Duration, Speeds)| now.saturating_sub(*at) >= WINDOW;
        while self.told.get(1).is_some_and(is_old) {
            self.told.pop_front();
        }
    }

    /// Whether more than one in twenty of the latest answers were slower than is promised, of enough.
    pub(super) fn is_slow(&self) -> bool {
        let (Some((_, first)), Some((_, last))) = (self.told.front(), self.told.back()) else {
            return false;
        };
        let answers = last.answers.saturating_sub(first.answers);
        let slow = last.slow.saturating_sub(first.slow);
        answers >= ENOUGH as u64 && slow.saturating_mul(20) > answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_slow_while_more_than_one_in_twenty_were() {
        let s = Duration::from_secs;
        let told = |answers, slow| Speeds {
            answers,
            slow,
            ..Speeds::default()
        };
        let mut speed = Speed::default();
        // What was before it was heard of.
        speed.take(told(500, 400), s(1000));
        assert!(!speed.is_slow());
        speed.take(told(519, 419), s(1010));
        assert!(!speed.is_slow(), "too few");
        for (at, answers, slow, expected) in [
            // Counted less than before: another process.
            (1020, 30, 2, true),
            (1100, 40, 2, false),
            (1200, 60, 5, true),
            // Some of them were slow within five minutes, and then none.
            (1450, 90, 5, true),
            (1505, 190, 5, false),
        ] {
            speed.take(told(answers, slow), s(at));
            assert_eq!(speed.is_slow(), expected, "at {at}");
        }
        assert!(speed.told.len() < 70);
    }
}
