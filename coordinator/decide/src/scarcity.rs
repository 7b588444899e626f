//! Whether a machine is short of memory, whoever takes it. Decided by the node itself, every second, from its own
//! sensors: what no person waits for does not begin there then. The offload ladder comes after that.

use std::time::Duration;

use crate::planner::PRESSURE_MAX;

/// Points of memory pressure below the limit that end it: what begins takes memory.
pub(crate) const PRESSURE_LEFT: f32 = 10.0;
/// Readings that fail for so long have failed for good: what cannot be read keeps nobody waiting.
const HOLD: Duration = Duration::from_secs(10);

/// See the module's documentation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scarcity {
    is_short: bool,
    /// When pressure was read last.
    read: Duration,
}

impl Scarcity {
    /// Whether it is short, by its memory pressure in percent if that can be read; `now` is since some fixed moment.
    pub fn look(&mut self, pressure: Option<f32>, now: Duration) -> bool {
        match pressure.filter(|percent| (0.0..=100.0).contains(percent)) {
            Some(percent) => {
                let left = if self.is_short { PRESSURE_LEFT } else { 0.0 };
                *self = Self {
                    is_short: percent > PRESSURE_MAX - left,
                    read: now,
                };
            }
            None => self.is_short &= now.saturating_sub(self.read) < HOLD,
        }
        self.is_short
    }

    /// Whether it was short at the last look.
    pub fn is_short(&self) -> bool {
        self.is_short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_well_below_the_limit_and_outlasts_a_reading_that_fails() {
        let mut scarcity = Scarcity::default();
        let mut look = |second, pressure| scarcity.look(pressure, Duration::from_secs(second));
        for (second, pressure, is_short) in [
            (0, None, false),
            (1, Some(79.0), false),
            (2, Some(81.0), true),
            (3, Some(75.0), true),
            (4, None, true),
            (5, Some(f32::NAN), true),
            (6, Some(70.0), false),
            (7, Some(75.0), false),
            (8, Some(95.0), true),
            (9, Some(1_000.0), true),
            (17, None, true),
            (18, None, false),
        ] {
            assert_eq!(look(second, pressure), is_short, "at {second}");
        }
    }
}
