//! What happens to a machine as a whole: its clocks, its sleep, its stalls, its end.

use std::time::Duration;

use pomona_clocks::Reading;

/// Times are in milliseconds since the simulation began.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    pub off: bool,
    asleep_since: Option<u64>,
    stalled: bool,
    slept: u64,
    halted_since: Option<u64>,
    halted: u64,
    /// How often it was switched on.
    pub boots: u64,
}

impl Machine {
    /// Whether its processes do anything.
    pub fn runs(&self) -> bool {
        !self.off && self.asleep_since.is_none() && !self.stalled
    }

    /// The clock that stands still while it sleeps.
    pub fn awake(&self, now: u64) -> u64 {
        let sleeping = self.asleep_since.map_or(0, |since| now - since);
        now - self.slept - sleeping
    }

    /// Time in which its processes got on: neither asleep nor stalled.
    pub fn running(&self, now: u64) -> u64 {
        let halted = self.halted_since.map_or(0, |since| now - since);
        now - self.halted - halted
    }

    /// Both clocks. A stall stops neither.
    pub fn reading(&self, now: u64) -> Reading {
        Reading {
            awake: Duration::from_millis(self.awake(now)),
            boot: Duration::from_millis(now),
        }
    }

    pub fn sleep(&mut self, now: u64) {
        self.asleep_since.get_or_insert(now);
        self.note(now);
    }

    pub fn wake(&mut self, now: u64) {
        if let Some(since) = self.asleep_since.take() {
            self.slept += now - since;
        }
        self.note(now);
    }

    pub fn stall(&mut self, stalled: bool, now: u64) {
        self.stalled = stalled;
        self.note(now);
    }

    fn note(&mut self, now: u64) {
        if self.asleep_since.is_some() || self.stalled {
            self.halted_since.get_or_insert(now);
        } else if let Some(since) = self.halted_since.take() {
            self.halted += now - since;
        }
    }
}
