//! The history of one node: every second for a quarter of an hour, every ten for six hours, every
//! minute for a week.

use std::collections::VecDeque;

use crate::telemetry::sample::{SERIES, Sample, Series};

/// A value at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Seconds ago, of the beginning of what is summed up.
    pub age_s: u64,
    /// Seconds that are summed up.
    pub step_s: u64,
    /// Mean over them.
    pub mean: f32,
    /// Highest value in them.
    pub max: f32,
}

/// See the module's documentation. About 1.7 MB when it is full.
#[derive(Debug)]
pub struct History {
    seconds: Ring<Sample>,
    tens: Tier,
    minutes: Tier,
}

impl Default for History {
    fn default() -> Self {
        Self {
            seconds: Ring::new(1, 15 * 60),
            tens: Tier::new(10, 6 * 3600),
            minutes: Tier::new(60, 7 * 24 * 3600),
        }
    }
}

impl History {
    /// Adds a sample. Of several in one second the last stays; one from the past is dropped.
    pub fn record(&mut self, now_s: u64, sample: &Sample) {
        match self.seconds.last_s() {
            Some(last_s) if now_s < last_s => return,
            Some(last_s) if now_s == last_s => {
                self.seconds.replace_last(*sample);
                return;
            }
            _ => self.seconds.push(now_s, *sample),
        }
        self.tens.record(now_s, sample);
        self.minutes.record(now_s, sample);
    }

    /// One series over the last `span_s` seconds, oldest first, in the finest step that reaches
    /// back so far. Where nothing was reported there is no point.
    pub fn points(&self, series: Series, now_s: u64, span_s: u64) -> Vec<Point> {
        let place = series as usize;
        let points = |at_s: u64, step_s: u64, mean: f32, max: f32| Point {
            age_s: now_s.saturating_sub(at_s),
            step_s,
            mean,
            max,
        };
        let found: Vec<Point> = if span_s <= self.seconds.span_s {
            let values = self.seconds.last(now_s, span_s);
            values
                .map(|(at_s, sample)| points(at_s, 1, sample.0[place], sample.0[place]))
                .collect()
        } else {
            let tier = if span_s <= self.tens.ring.span_s {
                &self.tens
            } else {
                &self.minutes
            };
            let open = tier.open.as_ref().map(|open| (open.at_s, open.sum.digest()));
            let open = open.filter(|(at_s, _)| is_within(*at_s, now_s, span_s));
            let values = tier.ring.last(now_s, span_s).chain(open);
            values
                .map(|(at_s, digest)| points(at_s, tier.ring.step_s, digest.mean[place], digest.max[place]))
                .collect()
        };
        found.into_iter().filter(|point| point.mean.is_finite()).collect()
    }

    /// The samples of the last `span_s` seconds, at most a quarter of an hour.
    pub(crate) fn seconds(&self, now_s: u64, span_s: u64) -> impl Iterator<Item = Sample> {
        self.seconds.last(now_s, span_s).map(|(_, sample)| sample)
    }

    /// Bytes that it occupies.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.seconds.heap() + self.tens.ring.heap() + self.minutes.ring.heap()
    }
}

/// A coarser step: what falls into it is summed up until the next one begins.
#[derive(Debug)]
struct Tier {
    ring: Ring<Digest>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    at_s: u64,
    sum: Sum,
}

impl Tier {
    fn new(step_s: u64, span_s: u64) -> Self {
        Self {
            ring: Ring::new(step_s, span_s),
            open: None,
        }
    }

    fn record(&mut self, now_s: u64, sample: &Sample) {
        let at_s = now_s - now_s % self.ring.step_s;
        if let Some(open) = self.open.take_if(|open| open.at_s != at_s) {
            self.ring.push(open.at_s, open.sum.digest());
        }
        let open = self.open.get_or_insert_with(|| Open {
            at_s,
            sum: Sum::default(),
        });
        open.sum.add(sample);
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Digest {
    mean: [f32; SERIES],
    max: [f32; SERIES],
}

#[derive(Debug)]
struct Sum {
    counts: [u16; SERIES],
    sums: [f64; SERIES],
    max: [f32; SERIES],
}

impl Default for Sum {
    fn default() -> Self {
        Self {
            counts: [0; SERIES],
            sums: [0.0; SERIES],
            max: [f32::NAN; SERIES],
        }
    }
}

impl Sum {
    fn add(&mut self, sample: &Sample) {
        for (place, value) in sample.0.iter().enumerate().filter(|(_, value)| value.is_finite()) {
            self.counts[place] += 1;
            self.sums[place] += f64::from(*value);
            // NaN gives way to any number.
            self.max[place] = self.max[place].max(*value);
        }
    }

    fn digest(&self) -> Digest {
        let mut mean = [f32::NAN; SERIES];
        for (place, mean) in mean
            .iter_mut()
            .enumerate()
            .filter(|(place, _)| self.counts[*place] > 0)
        {
            *mean = (self.sums[place] / f64::from(self.counts[place])) as f32;
        }
        Digest { mean, max: self.max }
    }
}

/// Values by time, bounded in number and in age.
#[derive(Debug)]
struct Ring<T> {
    step_s: u64,
    span_s: u64,
    values: VecDeque<(u64, T)>,
}

impl<T: Copy> Ring<T> {
    fn new(step_s: u64, span_s: u64) -> Self {
        Self {
            step_s,
            span_s,
            values: VecDeque::new(),
        }
    }

    fn push(&mut self, at_s: u64, value: T) {
        let keep = (self.span_s / self.step_s) as usize;
        while self.values.len() >= keep
            || self
                .values
                .front()
                .is_some_and(|(old_s, _)| !is_within(*old_s, at_s, self.span_s))
        {
            self.values.pop_front();
        }
        // Doubling would take twice the memory for nothing.
        if self.values.len() == self.values.capacity() {
            self.values.reserve_exact((keep - self.values.len()).min(GROW));
        }
        self.values.push_back((at_s, value));
    }

    fn last_s(&self) -> Option<u64> {
        self.values.back().map(|(at_s, _)| *at_s)
    }

    fn replace_last(&mut self, value: T) {
        if let Some((_, last)) = self.values.back_mut() {
            *last = value;
        }
    }

    /// Those of the last `span_s` seconds.
    fn last(&self, now_s: u64, span_s: u64) -> impl Iterator<Item = (u64, T)> {
        let begin = self
            .values
            .partition_point(|(at_s, _)| !is_within(*at_s, now_s, span_s));
        self.values.range(begin..).copied()
    }

    fn heap(&self) -> usize {
        self.values.capacity() * size_of::<(u64, T)>()
    }
}

/// Whether a time is in the last `span_s` seconds: of 900 samples a second apart, 900 are.
fn is_within(at_s: u64, now_s: u64, span_s: u64) -> bool {
    at_s.saturating_add(span_s) > now_s
}

/// A ring grows by this many values at a time.
const GROW: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(value: f32) -> Sample {
        Sample([value; SERIES])
    }

    proptest! {
        /// Against the plain list of everything that was recorded: every step has the mean and the
        /// highest of its samples, in order, and nothing older than the span is shown.
        #[test]
        fn steps_sum_up_what_was_recorded(
            gaps in prop::collection::vec((0..40u64, prop::option::of(0..1000u32)), 1..400),
            span_s in prop::sample::select(vec![60u64, 900, 901, 5000, 30_000]),
        ) {
            let (mut history, mut all, mut now_s) = (History::default(), Vec::<(u64, f32)>::new(), 1000);
            for (gap, value) in gaps {
                now_s += gap;
                let value = value.map_or(f32::NAN, |value| value as f32);
                history.record(now_s, &sample(value));
                if gap == 0 && !all.is_empty() {
                    // Coarser steps keep the first of a second; a late twin changes seconds only.
                    prop_assume!(span_s > 900);
                } else {
                    all.push((now_s, value));
                }
            }
            let step_s = match span_s { 0..=900 => 1, 901..=21_600 => 10, _ => 60 };
            let mut expected: Vec<(u64, Vec<f32>)> = Vec::new();
            for (at_s, value) in all {
                let step = at_s - at_s % step_s;
                match expected.last_mut() {
                    Some((last, values)) if *last == step => values.push(value),
                    _ => expected.push((step, vec![value])),
                }
            }
            let expected: Vec<(u64, f32, f32)> = expected.into_iter().filter(|(at_s, _)| at_s + span_s > now_s).filter_map(|(at_s, values)| {
                let known: Vec<f32> = values.into_iter().filter(|value| value.is_finite()).collect();
                let max = known.iter().copied().reduce(f32::max)?;
                Some((now_s - at_s, known.iter().sum::<f32>() / known.len() as f32, max))
            }).collect();
            let points = history.points(Series::Power, now_s, span_s);
            prop_assert_eq!(points.len(), expected.len());
            for (point, (age_s, mean, max)) in points.iter().zip(expected) {
                prop_assert_eq!((point.age_s, point.step_s, point.max), (age_s, step_s, max));
                prop_assert!((point.mean - mean).abs() < 0.01);
            }
        }
    }

    #[test]
    fn what_is_as_old_as_the_span_is_not_of_it() {
        let mut history = History::default();
        history.record(0, &sample(1.0));
        assert_eq!(history.points(Series::Gpu, 899, 900).len(), 1);
        assert_eq!(history.points(Series::Gpu, 900, 900).len(), 0);
        history.record(900, &sample(2.0));
        assert_eq!(history.points(Series::Gpu, 900, 900).len(), 1);
    }

    #[test]
    fn a_full_history_is_bounded() {
        let mut history = History::default();
        for now_s in 0..8 * 24 * 3600 {
            history.record(now_s, &sample(now_s as f32));
        }
        // 256 of them must fit a gigabyte.
        assert!(history.bytes() < 2_000_000, "{}", history.bytes());
        assert_eq!(history.points(Series::Gpu, 8 * 24 * 3600 - 1, 900).len(), 900);
        assert_eq!(history.points(Series::Gpu, 8 * 24 * 3600 - 1, 3600).len(), 360);
        let week = history.points(Series::Gpu, 8 * 24 * 3600 - 1, 7 * 24 * 3600);
        assert!(week.len() >= 7 * 24 * 60 - 1, "{}", week.len());
    }
}
