//! The latest few of something that is measured now and then.

use std::collections::VecDeque;
use std::time::Duration;

/// So many say how it is.
pub(crate) const LATEST: usize = 4;

/// Values with when each was seen, the latest last. Times are of one clock.
#[derive(Debug, Clone, Default)]
pub(crate) struct Latest(VecDeque<(Duration, f64)>);

impl Latest {
    pub(crate) fn note(&mut self, value: f64, now: Duration) {
        if self.0.len() == LATEST {
            self.0.pop_front();
        }
        self.0.push_back((now, value));
    }

    /// The least one of those not older than this: others had company.
    pub(crate) fn least(&self, lasts: Duration, now: Duration) -> Option<f64> {
        let fresh = self.0.iter().filter(|(at, _)| now.saturating_sub(*at) < lasts);
        fresh.map(|(_, value)| *value).min_by(f64::total_cmp)
    }

    /// Forgets what was seen from then on.
    pub(crate) fn forget_since(&mut self, since: Duration) {
        self.0.retain(|(at, _)| *at < since);
    }

    /// The lower middle one of those not older than this, where they are no fewer: one may have been beside something short.
    pub(crate) fn middle(&self, least: usize, lasts: Duration, now: Duration) -> Option<f64> {
        let fresh = self.0.iter().filter(|(at, _)| now.saturating_sub(*at) < lasts);
        let mut fresh: Vec<f64> = fresh.map(|(_, value)| *value).collect();
        fresh.sort_by(f64::total_cmp);
        let is_enough = fresh.len() >= least.max(1);
        fresh
            .get(fresh.len().saturating_sub(1) / 2)
            .copied()
            .filter(|_| is_enough)
    }
}
