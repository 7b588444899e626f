//! When a queue that is full has a place again, by how fast it went on lately.

use std::time::Duration;

/// Of the mean time between two that leave, what the last one counts for, as a divisor.
const LAST_COUNTS: u32 = 8;
/// What is told before anything has left.
const UNKNOWN: Duration = Duration::from_secs(5);
/// What is told at most: who stands still for an hour may go on at once.
const MOST: Duration = Duration::from_secs(300);

/// How fast one queue goes on. Times are since an origin of the caller's choice.
#[derive(Debug, Clone, Default)]
pub struct Turnover {
    /// When somebody left it for a slot.
    last: Option<Duration>,
    /// Mean time between two of those.
    mean: Option<Duration>,
}

impl Turnover {
    /// Somebody who had waited has a slot now.
    pub fn left(&mut self, now: Duration) {
        if let Some(last) = self.last.replace(now) {
            let took = now.saturating_sub(last).min(MOST);
            let mean = |mean: Duration| (mean * (LAST_COUNTS - 1) + took) / LAST_COUNTS;
            self.mean = Some(self.mean.map_or(took, mean));
        }
    }

    /// Somebody comes to a queue in which nobody waited: when the last one left says nothing of how fast it goes on.
    pub fn begins(&mut self) {
        self.last = None;
    }

    /// In how many seconds so many will have left: at least one.
    pub fn seconds_for(&self, places: usize, now: Duration) -> u32 {
        let still = self.last.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        // One that has stood still for longer than usual does not go on at any moment.
        let one = self.mean.map_or(UNKNOWN.max(still), |mean| mean.max(still));
        let places = u32::try_from(places.max(1)).unwrap_or(u32::MAX);
        let all = one.saturating_mul(places).min(MOST);
        all.as_millis().div_ceil(1000).max(1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_place_comes_as_fast_as_places_came_lately() {
        let mut queue = Turnover::default();
        assert_eq!(queue.seconds_for(1, at(0)), 5, "nothing is known");
        for i in 0..50 {
            queue.left(at(100 + i * 12));
        }
        assert_eq!(queue.seconds_for(1, at(700)), 12);
        assert_eq!(queue.seconds_for(8, at(700)), 96);
        for i in 0..50 {
            queue.left(at(700 + i * 2));
        }
        assert_eq!(
            (queue.seconds_for(0, at(798)), queue.seconds_for(3, at(798))),
            (3, 7)
        );
    }

    #[test]
    fn one_that_stands_still_says_so_and_a_pause_between_two_rushes_counts_for_nothing() {
        let mut queue = Turnover::default();
        queue.left(at(0));
        queue.left(at(1));
        assert_eq!(queue.seconds_for(1, at(61)), 60);
        assert_eq!(queue.seconds_for(100, at(61)), 300);
        queue.begins();
        queue.left(at(5000));
        assert_eq!(queue.seconds_for(1, at(5000)), 1);
    }
}
