//! Counts in fixed buckets: cheap to add to, to merge and to send.

use serde::{Deserialize, Serialize};

/// Buckets of a histogram of others.
const BUCKETS_MAX: usize = 64;
/// Values in one of its buckets: sums stay far from overflowing.
const COUNT_MAX: u64 = 1 << 48;

/// A histogram with upper bounds that double: bucket `i` holds values up to `first * 2^i`, the
/// last one everything above.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    first: f64,
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// Empty, with this first upper bound and number of buckets.
    pub fn new(first: f64, buckets: usize) -> Self {
        Self {
            first,
            counts: vec![0; buckets.max(1)],
            sum: 0.0,
        }
    }

    /// For latencies: 1 ms to 65 s.
    pub fn for_millis() -> Self {
        Self::new(1.0, 18)
    }

    /// For sizes: 1 to 512.
    pub fn for_counts() -> Self {
        Self::new(1.0, 11)
    }

    /// Adds one value.
    pub fn record(&mut self, value: f64) {
        let last = self.counts.len() - 1;
        let mut bound = self.first;
        let mut index = 0;
        while index < last && value > bound {
            bound *= 2.0;
            index += 1;
        }
        self.counts[index] += 1;
        self.sum += value;
    }

    /// Whether another process can have made it by recording: bounded, and with finite numbers.
    pub fn is_sound(&self) -> bool {
        (1..=BUCKETS_MAX).contains(&self.counts.len())
            && self.first.is_finite()
            && self.first > 0.0
            && self.sum.is_finite()
            && self.counts.iter().all(|count| *count <= COUNT_MAX)
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of the values.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Upper bounds and counts, the last bound infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let last = self.counts.len() - 1;
        self.counts.iter().enumerate().map(move |(i, count)| {
            let bound = if i == last {
                f64::INFINITY
            } else {
                self.first * 2f64.powi(i as i32)
            };
            (bound, *count)
        })
    }

    /// The upper bound of the bucket in which this quantile (0 to 1) lies; `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let rank = ((total as f64) * q).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.buckets()
            .find(|(_, count)| {
                seen += count;
                seen >= rank
            })
            .map(|(bound, _)| bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_land_in_the_bucket_whose_bound_they_do_not_exceed() {
        let mut histogram = Histogram::new(1.0, 4);
        for value in [0.5, 1.0, 1.5, 4.0, 100.0] {
            histogram.record(value);
        }
        let counts: Vec<u64> = histogram.buckets().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 1, 1, 1]);
        assert_eq!(histogram.quantile(0.5), Some(2.0));
        assert_eq!(histogram.quantile(1.0), Some(f64::INFINITY));
    }

    #[test]
    fn an_empty_histogram_has_no_quantile() {
        assert_eq!(Histogram::for_millis().quantile(0.5), None);
    }
}
