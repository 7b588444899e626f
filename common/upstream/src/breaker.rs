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
    /// Whether it asked for that itself.
    asked: bool,
    /// A request is trying it.
    trial: bool,
}

impl Breaker {
    /// Lets a request through, and says whether it is the one that tries. Every one that was let through ends in one
    /// of the other calls, which it tells that.
    ///
    /// # Errors
    /// How long it is left alone yet.
    pub fn admit(&mut self, now: Duration) -> Result<bool, Duration> {
        let Some((until, _)) = self.open else {
            return Ok(false);
        };
        if now < until {
            return Err(until - now);
        }
        if self.trial {
            return Err(SHORTEST);
        }
        self.trial = true;
        Ok(true)
    }

    /// It has begun to answer: others may ask again. It has to end an answer before its failures are forgotten, since
    /// some break off every time.
    pub fn began(&mut self, is_trial: bool) {
        if is_trial {
            self.open = None;
            self.trial = false;
            self.failures = FAILURES - 1;
        }
    }

    /// It made a whole answer.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// It did not.
    pub fn failed(&mut self, is_trial: bool, now: Duration, retry_after: Option<Duration>) {
        let is_trial = is_trial && std::mem::take(&mut self.trial);
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES && retry_after.is_none() && !is_trial {
            return;
        }
        let waits = match self.open {
            // Requests of before it was left alone end as they were bound to.
            Some((_, wait)) if !is_trial => wait,
            Some((_, wait)) => wait * 2,
            None => SHORTEST,
        };
        let wait = waits.max(retry_after.unwrap_or_default()).min(LONGEST);
        let until = self.open.map_or(Duration::ZERO, |(until, _)| until);
        self.open = Some(((now + wait).max(until), wait));
        self.asked = retry_after.is_some();
    }

    /// The client left, or the request itself was at fault: that says nothing.
    pub fn gave_up(&mut self, is_trial: bool) {
        self.trial &= !is_trial;
    }

    /// Whether it asked itself to be left alone: it has room then.
    pub fn asked_for_it(&self) -> bool {
        self.asked
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
            assert_eq!(breaker.admit(s(0)), Ok(false));
            breaker.failed(false, s(0), None);
        }
        assert_eq!(breaker.admit(s(1)), Err(s(4)));
        assert_eq!(breaker.admit(s(5)), Ok(true), "one tries");
        assert_eq!(breaker.admit(s(5)), Err(SHORTEST), "and nobody else");
        // One of before ends: that is not what the one that tries has met.
        breaker.gave_up(false);
        assert_eq!(breaker.admit(s(5)), Err(SHORTEST));
        breaker.failed(true, s(6), None);
        assert_eq!(breaker.admit(s(7)), Err(s(9)));
        assert_eq!(breaker.admit(s(16)), Ok(true));
        breaker.gave_up(true);
        assert_eq!(breaker.admit(s(16)), Ok(true));
        breaker.began(true);
        assert_eq!(
            (breaker.admit(s(16)), breaker.admit(s(16))),
            (Ok(false), Ok(false))
        );
        // One that begins and breaks off is no better.
        breaker.failed(false, s(17), None);
        assert_eq!(breaker.admit(s(18)), Err(s(4)));
        assert_eq!(breaker.admit(s(22)), Ok(true));
        breaker.began(true);
        breaker.succeeded();
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn what_it_asks_for_is_kept_within_reason() {
        for (asked, waits) in [(s(60), s(60)), (s(86_400), LONGEST)] {
            let mut breaker = Breaker::default();
            breaker.failed(false, s(1), Some(asked));
            assert_eq!(breaker.admit(s(1)), Err(waits));
        }
    }

    proptest! {
        /// A server that is well again is asked again, whatever came before; and one request tries at a time.
        #[test]
        fn it_always_comes_back(steps in prop::collection::vec((0..5u8, 0..400u64), 0..60)) {
            let (mut breaker, mut now, mut under_way) = (Breaker::default(), s(0), Vec::new());
            for (step, seconds) in steps {
                match (step, under_way.len()) {
                    (0, _) => under_way.extend(breaker.admit(now).ok()),
                    (1, 1..) => breaker.failed(under_way.remove(seconds as usize % under_way.len()), now, None),
                    (2, 1..) => breaker.gave_up(under_way.remove(seconds as usize % under_way.len())),
                    (3, 1..) => {
                        let which = seconds as usize % under_way.len();
                        breaker.began(std::mem::take(&mut under_way[which]));
                    }
                    (4, _) => now += s(seconds),
                    _ => {}
                }
                prop_assert!(under_way.iter().filter(|is_trial| **is_trial).count() <= 1);
            }
            under_way.into_iter().for_each(|is_trial| breaker.gave_up(is_trial));
            now += LONGEST;
            prop_assert!(breaker.admit(now).is_ok());
            breaker.succeeded();
            prop_assert_eq!(breaker.admit(now), Ok(false));
        }
    }
}
