//! The level of swap that does not count: what was in use when a node's batch work began, as far as who leads has seen.

use std::collections::VecDeque;

use super::reference::LATE;

/// Batch work that ended so many seconds ago has no level any more.
const COLD: usize = 600;
/// It was seen at the ends of so many seconds: then it was surely reported.
const SIGHTINGS: usize = 4;

/// What counts as none, in MB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Level {
    /// This cannot be told.
    Unknown,
    /// All that is in use: no batch work is to blame.
    All,
    /// Something between these.
    Within(f64, f64),
}

/// What a node looks like at the end of a second.
pub(super) struct Seen {
    /// Who leads and hears it.
    pub(super) heard_by: Option<(u64, u64)>,
    /// Whether it has batch work.
    pub(super) batch: bool,
    /// Whether it had some within the second, which a report may have caught.
    pub(super) had_batch: bool,
    /// Swap in use, in MB.
    pub(super) used: f64,
    /// Whether its swap gate has acted.
    pub(super) is_open: bool,
}

/// The level of one node, second by second.
#[derive(Debug, Default)]
pub(super) struct Levels {
    leader: Option<(u64, u64)>,
    /// Seconds since somebody heard it.
    unheard: usize,
    /// What was in use in the last seconds.
    recent: VecDeque<f64>,
    /// Seconds since batch work was surely seen, and since it may have been.
    quiet: usize,
    still: usize,
    /// Whether it may have begun, and how often it was seen since.
    may_have_begun: bool,
    sightings: usize,
    within: (f64, f64),
    /// The gate had acted when who leads began to look: from where it counts nobody knows.
    is_blind: bool,
    /// It was not heard meanwhile, and who leads may have forgotten it or not: then it counts from a level of before.
    may_be_older: bool,
}

impl Levels {
    pub(super) fn next(&mut self, seen: &Seen) -> Level {
        let Some(leader) = seen.heard_by else {
            self.unheard += 1;
            self.quiet += 1;
            self.still += 1;
            return Level::Unknown;
        };
        self.recent.push_back(seen.used);
        if self.recent.len() > LATE {
            self.recent.pop_front();
        }
        let recent = self.recent.iter().copied();
        let (least, most) = (
            recent.clone().fold(f64::MAX, f64::min),
            recent.fold(0.0, f64::max),
        );
        if self.leader != Some(leader) {
            self.begins(leader, seen.is_open);
        } else if std::mem::take(&mut self.unheard) > 0 {
            // It may have been forgotten meanwhile, or not, and come back with batch work for a moment.
            self.is_blind |= seen.is_open;
            self.may_be_older |= seen.is_open;
            if self.is_blind {
                (self.quiet, self.still) = (0, 0);
            }
            self.within = (self.within.0.min(least), self.within.1.max(most));
            self.sightings = self.sightings.min(1);
        }
        if self.is_blind && !seen.is_open {
            let may_be_older = self.may_be_older;
            self.begins(leader, false);
            self.may_be_older = may_be_older;
        }
        self.quiet += 1;
        self.still = if seen.had_batch { 0 } else { self.still + 1 };
        self.may_have_begun |= seen.had_batch;
        if self.still > COLD + LATE {
            self.may_have_begun = false;
            self.sightings = 0;
            self.is_blind = false;
            self.may_be_older = false;
        }
        if seen.batch {
            self.quiet = 0;
            self.sightings += 1;
        }
        match self.sightings {
            0 if !self.may_have_begun => self.within = (least, most),
            0..=SIGHTINGS => self.within = (self.within.0.min(least), self.within.1.max(most)),
            // Less in use is a lower level from then on.
            _ => self.within = (self.within.0.min(seen.used), self.within.1.min(most)),
        }
        match self.sightings {
            _ if self.is_blind || self.quiet + LATE > COLD && self.sightings > 0 => Level::Unknown,
            0 if !self.may_have_begun && !self.may_be_older => Level::All,
            0..=SIGHTINGS => Level::Unknown,
            _ if self.may_be_older => Level::Within(0.0, self.within.1),
            _ => Level::Within(self.within.0, self.within.1),
        }
    }

    fn begins(&mut self, leader: (u64, u64), is_open: bool) {
        *self = Self {
            leader: Some(leader),
            is_blind: is_open,
            recent: std::mem::take(&mut self.recent),
            ..Self::default()
        };
    }
}
