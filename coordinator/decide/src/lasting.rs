//! For how long something has been so, told by looks that may fail to come.

use std::time::Duration;

/// See the module's documentation.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lasting {
    since: Option<Duration>,
}

impl Lasting {
    /// A look: whether it is so, now.
    pub(crate) fn note(&mut self, is_so: bool, now: Duration) {
        if is_so {
            self.since.get_or_insert(now);
        } else {
            self.since = None;
        }
    }

    /// No look: time stood still for as long, or, when it is known no more, what was is over.
    pub(crate) fn pause(&mut self, passed: Duration, is_gone: bool) {
        self.since = self.since.filter(|_| !is_gone).map(|since| since + passed);
    }

    /// For how long it has been so; `None` when it is not.
    pub(crate) fn lasted(&self, now: Duration) -> Option<Duration> {
        self.since.map(|since| now.saturating_sub(since))
    }

    pub(crate) fn is_so(&self) -> bool {
        self.since.is_some()
    }
}
