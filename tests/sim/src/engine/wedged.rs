//! An engine that does nothing any more, as the node that has it sees it: no word, no progress.

use super::{Asker, Engine, Out};

impl Engine {
    pub fn is_wedged(&self) -> bool {
        self.wedged.is_some()
    }

    /// From now on it does nothing.
    pub fn wedge(&mut self) {
        self.wedged.get_or_insert_default();
    }

    /// It goes on at this time, in microseconds, and takes what it was asked for meanwhile.
    pub fn unwedge(&mut self, now: u64) -> Vec<Out> {
        let Some(waiting) = self.wedged.take() else {
            return Vec::new();
        };
        let stood = now.saturating_sub(self.now);
        if let Some(running) = &mut self.running {
            running.began += stood;
            running.ends += stood;
        }
        self.now += stood;
        self.due = self.now;
        let takes = |(asked, generation)| (asked, self.take(asked, generation));
        waiting.into_iter().map(takes).collect()
    }

    /// Nobody waits any more for what it was asked for meanwhile.
    pub(super) fn forget_waiting(&mut self, is_its: impl Fn((Asker, u64)) -> bool) {
        if let Some(waiting) = &mut self.wedged {
            waiting.retain(|(asked, _)| !is_its(*asked));
        }
    }
}
