//! What a provider lets an account take in a minute: pure, times are passed in. It counts what this process asks
//! for; others with the same account count by themselves.

use std::collections::VecDeque;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
/// Requests of a minute that are remembered: more are not let in, limit or none.
const MOST: usize = 16_384;

/// A bound on requests and on tokens of the last sixty seconds.
#[derive(Debug, Clone, Default)]
pub struct Rate {
    requests: Option<u32>,
    tokens: Option<u64>,
    /// When each came, its number, and what it takes.
    recent: VecDeque<(Duration, u64, u64)>,
    next: u64,
}

impl Rate {
    /// None of either is no bound.
    pub fn new(requests: Option<u32>, tokens: Option<u64>) -> Self {
        Self {
            requests,
            tokens,
            ..Self::default()
        }
    }

    /// Lets a request in that takes so many tokens at most; its number is for [`Rate::took`].
    ///
    /// # Errors
    /// How long until there is room. One that takes more than a minute has is let in when nothing else was.
    pub fn admit(&mut self, now: Duration, tokens: u64) -> Result<u64, Duration> {
        while self.recent.front().is_some_and(|(at, ..)| *at + MINUTE <= now) {
            self.recent.pop_front();
        }
        let most = self.requests.map_or(MOST, |most| MOST.min(most as usize));
        let mut left = self.recent.len();
        let mut taken = self
            .recent
            .iter()
            .fold(0u64, |sum, (.., tokens)| sum.saturating_add(*tokens));
        let is_full = |left: usize, taken: u64| {
            let tokens = self
                .tokens
                .is_some_and(|most| left > 0 && taken.saturating_add(tokens) > most);
            left >= most.max(1) || tokens
        };
        let mut wait = Duration::ZERO;
        for (at, _, tokens) in &self.recent {
            if !is_full(left, taken) {
                break;
            }
            wait = (*at + MINUTE).saturating_sub(now);
            (left, taken) = (left - 1, taken.saturating_sub(*tokens));
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        self.next += 1;
        self.recent.push_back((now, self.next, tokens));
        Ok(self.next)
    }

    /// What a request took in the end.
    pub fn took(&mut self, number: u64, tokens: u64) {
        if let Some(one) = self.recent.iter_mut().find(|(_, own, _)| *own == number) {
            one.2 = tokens;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_full_says_when_there_is_room() {
        let mut rate = Rate::new(Some(2), Some(100));
        assert_eq!(rate.admit(s(0), 60), Ok(1));
        assert_eq!(rate.admit(s(10), 60), Err(s(50)));
        rate.took(1, 20);
        assert_eq!(rate.admit(s(10), 60), Ok(2));
        assert_eq!(rate.admit(s(11), 1), Err(s(49)));
        assert_eq!(rate.admit(s(60), 500), Err(s(10)), "alone or not at all");
        assert_eq!(rate.admit(s(70), 500), Ok(3));
    }

    proptest! {
        /// No window of a minute has more than the bounds, and whoever waits as told is let in.
        #[test]
        fn no_minute_has_too_much(steps in prop::collection::vec((0..20u64, 1..60u64), 1..80)) {
            let (mut rate, mut now) = (Rate::new(Some(5), Some(100)), s(0));
            let mut let_in: Vec<(Duration, u64)> = Vec::new();
            for (pause, tokens) in steps {
                now += s(pause);
                if let Err(wait) = rate.admit(now, tokens) {
                    now += wait;
                    prop_assert!(rate.admit(now, tokens).is_ok());
                }
                let_in.push((now, tokens));
                let minute = let_in.iter().filter(|(at, _)| *at + MINUTE > now);
                let (count, sum) = minute.fold((0, 0), |(count, sum), (_, tokens)| (count + 1, sum + tokens));
                prop_assert!(count <= 5 && sum <= 100, "{count} {sum}");
            }
        }
    }
}
