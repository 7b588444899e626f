//! An engine that does nothing any more, as the node that has it sees it: no word, no progress.

use super::{Asker, Engine, Out};

/// How an engine stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wedged {
    /// It says nothing either.
    Mute,
    /// It reports, and gets no further.
    Speaks,
}

impl Engine {
    /// Whether it reports.
    pub fn speaks(&self) -> bool {
        self.wedged.as_ref().is_none_or(|(how, _)| *how == Wedged::Speaks)
    }

    pub fn is_wedged(&self) -> bool {
        self.wedged.is_some()
    }

    /// From now on it does nothing.
    pub fn wedge(&mut self, how: Wedged) {
        self.wedged.get_or_insert((how, Vec::new())).0 = how;
    }

    /// It goes on at this time, in microseconds, and takes what it was asked for meanwhile.
    pub fn unwedge(&mut self, now: u64) -> Vec<Out> {
        let Some((_, waiting)) = self.wedged.take() else {
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
        if let Some((_, waiting)) = &mut self.wedged {
            waiting.retain(|(asked, _)| !is_its(*asked));
        }
    }
}
