//! Leaves a server alone that fails: pure, times are passed in. After a few failures in a row nobody is sent there
//! for a while; then one request tries, and what it meets decides for all (Nygard, Release It!, ch. 5.2).

use std::time::Duration;

/// Failures in a row until it is left alone: one may be an accident.
const FAILURES: u32 = 3;
/// How long it is left alone at first; twice as long after each try that fails.
const SHORTEST: Duration = Duration::from_secs(5);
/// And at most: also when it asks for more.
const LONGEST: Duration = Duration::from_secs(300);

/// See the module's documentation. Times count from any moment, the same for all calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Breaker {
    failures: u32,
    /// Until when it is left alone, and how long that was.
    open: Option<(Duration, Duration)>,
    /// A request is trying it.
    trial: bool,
}

impl Breaker {
    /// Lets a request through; every one that was let through ends in one of the other calls.
    ///
    /// # Errors
    /// How long it is left alone yet.
    pub fn admit(&mut self, now: Duration) -> Result<(), Duration> {
        let Some((until, _)) = self.open else {
            return Ok(());
        };
        if now < until {
            return Err(until - now);
        }
        if self.trial {
            return Err(SHORTEST);
        }
        self.trial = true;
        Ok(())
    }

    /// It sent text.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// It did not, or broke off.
    pub fn failed(&mut self, now: Duration, retry_after: Option<Duration>) {
        let was_trial = std::mem::take(&mut self.trial);
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES && retry_after.is_none() && !was_trial {
            return;
        }
        let before = self.open.map(|(_, wait)| wait);
        let doubled = match before {
            // Requests of before it was left alone end as they were bound to.
            Some(wait) if !was_trial => wait,
            Some(wait) => wait * 2,
            None => SHORTEST,
        };
        let wait = doubled.max(retry_after.unwrap_or_default()).min(LONGEST);
        let until = self.open.map_or(Duration::ZERO, |(until, _)| until);
        self.open = Some(((now + wait).max(until), wait));
    }

    /// The client left, or the request itself was at fault: that says nothing.
    pub fn gave_up(&mut self) {
        self.trial = false;
    }

    /// How long it is left alone yet, if it is.
    pub fn left_alone(&self, now: Duration) -> Option<Duration> {
        let (until, _) = self.open?;
        Some(until.saturating_sub(now))
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
    fn one_that_fails_is_left_alone_longer_and_longer_and_comes_back_by_one_answer() {
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES {
            assert_eq!(breaker.admit(s(0)), Ok(()));
            breaker.failed(s(0), None);
        }
        assert_eq!(breaker.admit(s(1)), Err(s(4)));
        assert_eq!(breaker.admit(s(5)), Ok(()), "one tries");
        assert_eq!(breaker.admit(s(5)), Err(SHORTEST), "and nobody else");
        breaker.failed(s(6), None);
        assert_eq!(breaker.admit(s(7)), Err(s(9)));
        assert_eq!(breaker.admit(s(16)), Ok(()));
        breaker.gave_up();
        assert_eq!(breaker.admit(s(16)), Ok(()));
        breaker.succeeded();
        assert_eq!((breaker.admit(s(16)), breaker.admit(s(16))), (Ok(()), Ok(())));
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn what_it_asks_for_is_kept_within_reason() {
        for (asked, waits) in [(s(60), s(60)), (s(86_400), LONGEST)] {
            let mut breaker = Breaker::default();
            breaker.failed(s(1), Some(asked));
            assert_eq!(breaker.admit(s(1)), Err(waits));
        }
    }

    proptest! {
        /// A server that is well again is asked again, whatever came before.
        #[test]
        fn it_always_comes_back(steps in prop::collection::vec((0..4u8, 0..400u64), 0..60)) {
            let (mut breaker, mut now, mut under_way) = (Breaker::default(), s(0), 0u32);
            for (step, seconds) in steps {
                match step {
                    0 => under_way += u32::from(breaker.admit(now).is_ok()),
                    1 if under_way > 0 => { breaker.failed(now, None); under_way -= 1 }
                    2 if under_way > 0 => { breaker.gave_up(); under_way -= 1 }
                    3 => now += s(seconds),
                    _ => {}
                }
            }
            while under_way > 0 {
                breaker.gave_up();
                under_way -= 1;
            }
            now += LONGEST;
            prop_assert_eq!(breaker.admit(now), Ok(()));
            breaker.succeeded();
            prop_assert_eq!(breaker.admit(now), Ok(()));
        }
    }
}
