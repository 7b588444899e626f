//! Readings that jump, smoothed exponentially.

use std::time::Duration;

/// Time constant of smoothed watts: a burst of a few seconds is a compile or a page, no load.
const WATTS: Duration = Duration::from_secs(5);

/// Watts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Smoothed {
    /// The last value, and when it was read.
    last: Option<(f32, Duration)>,
}

impl Smoothed {
    pub(crate) fn add(&mut self, read: f32, now: Duration) -> f32 {
        let smooth = match self.last {
            Some((before, at)) => {
                let passed = now.saturating_sub(at).as_secs_f32() / WATTS.as_secs_f32();
                before + (read - before) * (1.0 - (-passed).exp())
            }
            None => read,
        };
        self.last = Some((smooth, now));
        smooth
    }
}
