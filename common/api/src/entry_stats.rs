//! What happens at this entry: how many requests of which class, and how long clients of streamed answers
//! wait for the first byte.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pomona_common::{Class, ClassReason, Histogram};
use serde::Serialize;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct EntryStats {
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    /// By class, and where that came from.
    requests: BTreeMap<(Class, ClassReason), u64>,
    /// Milliseconds.
    first_bytes: BTreeMap<Class, Histogram>,
    /// By class and budget, requests that were promised something, and those that missed it.
    missed: BTreeMap<(Class, Budget), (u64, u64)>,
}

/// A promise of a service level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// The time to the first token.
    Ttft,
    /// Tokens a second after that.
    TokS,
}

impl Budget {
    /// As metrics and usage records call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Budget::Ttft => "ttft",
            Budget::TokS => "tok_s",
        }
    }
}

impl EntryStats {
    /// Counts a request.
    pub(crate) fn count(&self, class: Class, reason: ClassReason) {
        *self.counted().requests.entry((class, reason)).or_default() += 1;
    }

    /// Adds one wait, from the request's arrival to its first event with content.
    pub(crate) fn record_first_byte(&self, class: Class, waited: Duration) {
        let mut counted = self.counted();
        let histogram = counted
            .first_bytes
            .entry(class)
            .or_insert_with(Histogram::for_millis);
        histogram.record(waited.as_secs_f64() * 1e3);
    }

    /// Counts a request that was promised something, and whether it missed that.
    pub(crate) fn judge(&self, class: Class, budget: Budget, missed: bool) {
        let mut counted = self.counted();
        let (promised, all_missed) = counted.missed.entry((class, budget)).or_default();
        *promised += 1;
        *all_missed += u64::from(missed);
    }

    /// By class and budget, requests so far that were promised something, and those that missed it.
    pub fn missed(&self) -> BTreeMap<(Class, Budget), (u64, u64)> {
        self.counted().missed.clone()
    }

    /// Requests so far.
    pub fn requests(&self) -> BTreeMap<(Class, ClassReason), u64> {
        self.counted().requests.clone()
    }

    /// The waits so far, one histogram of milliseconds a class.
    pub fn first_bytes(&self) -> BTreeMap<Class, Histogram> {
        self.counted().first_bytes.clone()
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
