//! Noticing that the machine has slept.

use std::time::Duration;

use crate::{Reading, read};

/// Clocks that are read one after the other differ by less, and a nap that is shorter has ended no
/// session.
const NAP: Duration = Duration::from_millis(1500);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(250);

/// Compares readings. Pure.
#[derive(Debug, Default)]
pub struct SleepWatch {
    last: Option<Reading>,
}

impl SleepWatch {
    /// How long the machine slept since the last look, if it did.
    pub fn look(&mut self, now: Reading) -> Option<Duration> {
        let last = self.last.replace(now)?;
        let awake = now.awake.saturating_sub(last.awake);
        let slept = now.boot.saturating_sub(last.boot).saturating_sub(awake);
        (slept >= NAP).then_some(slept)
    }
}

/// Comes back when the machine has slept, with how long. Cancel-safe: `watch` keeps the last look.
pub async fn next_wake(watch: &mut SleepWatch) -> Duration {
    loop {
        if let Some(slept) = watch.look(read()) {
            return slept;
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(awake_ms: u64, boot_ms: u64) -> Reading {
        Reading {
            awake: Duration::from_millis(awake_ms),
            boot: Duration::from_millis(boot_ms),
        }
    }

    #[test]
    fn sleep_is_what_only_one_clock_counts() {
        let mut watch = SleepWatch::default();
        assert_eq!(watch.look(at(0, 90_000)), None, "the first look compares nothing");
        assert_eq!(watch.look(at(250, 90_250)), None);
        assert_eq!(watch.look(at(500, 97_500)), Some(Duration::from_millis(7_000)));
        assert_eq!(watch.look(at(750, 97_750)), None, "said once");
    }

    /// SIGSTOP, or swapping: the process stood still, the machine did not.
    #[test]
    fn a_stall_is_no_sleep() {
        let mut watch = SleepWatch::default();
        watch.look(at(0, 0));
        assert_eq!(watch.look(at(60_000, 60_000)), None);
    }

    #[test]
    fn a_clock_that_goes_back_is_no_sleep() {
        let mut watch = SleepWatch::default();
        watch.look(at(5_000, 5_000));
        assert_eq!(watch.look(at(5_250, 1_000)), None);
        assert_eq!(watch.look(at(5_500, 1_250)), None);
    }
}
