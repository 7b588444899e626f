//! How long clients of this entry wait for the first byte of a streamed answer, by class.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pomona_common::{Class, Histogram};

/// One histogram of milliseconds per class.
#[derive(Debug, Default)]
pub struct FirstBytes {
    by_class: Mutex<BTreeMap<Class, Histogram>>,
}

impl FirstBytes {
    /// Adds one wait, from the request's arrival to its first event with content.
    pub(crate) fn record(&self, class: Class, waited: Duration) {
        let mut by_class = self.by_class.lock().unwrap_or_else(PoisonError::into_inner);
        let histogram = by_class.entry(class).or_insert_with(Histogram::for_millis);
        histogram.record(waited.as_secs_f64() * 1e3);
    }

    /// The histograms so far.
    pub fn snapshot(&self) -> BTreeMap<Class, Histogram> {
        self.by_class
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
