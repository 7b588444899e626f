//! How fast steps are, of how fast like ones were: a chip that throttles shows here, whatever its sensors say.
//!
//! Compared are steps of one model and class with as many rows that decode, as many prompt tokens, and about as much to
//! attend to: these take as long again each time. Prompts come in chunks of one size, so there are enough of these.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use pomona_common::{Class, ModelName};

use crate::scheduler::Step;

/// What is told is of the steps of so long.
const WINDOW: Duration = Duration::from_secs(30);
/// They are added up by so much time, so that the window has a bounded number of parts.
const PART: Duration = Duration::from_secs(1);
/// Less time in steps than this says nothing.
const ENOUGH_S: f64 = 2.0;
/// Nor do steps of which so few like ones were seen.
const ENOUGH_STEPS: usize = 20;
/// Kinds of steps that are remembered; of more, the one goes that was not seen for longest.
const KINDS: usize = 1024;
/// What is usual is the lower quartile of the first steps of a kind, and stays one: it grows by this share a second of
/// slower steps, so that what is slow for half an hour is how it is, and shrinks by three times as much a second of
/// faster ones.
const GROWS: f64 = 0.000_2;

/// Steps that take alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    model: ModelName,
    /// Less urgent ones run in slices.
    class: Class,
    /// Rows that decode.
    rows: usize,
    /// Prompt tokens.
    prefill: u32,
    /// Eighths of a power of two of the tokens that are attended to: within one, what is read differs by a tenth.
    context: u32,
}

/// What steps of a kind take.
#[derive(Debug, Clone)]
enum Usual {
    /// The first ones, in seconds.
    Learning(Vec<f64>),
    /// In seconds.
    Known(f64),
}

impl Usual {
    /// Learns from a step, and says what it would usually have taken; `most` is what like steps of a little less and
    /// more context say of that, so that a chip which throttles does not teach what is usual.
    fn note(&mut self, seconds: f64, most: f64) -> Option<f64> {
        match self {
            Usual::Learning(first) => {
                first.push(seconds);
                if first.len() >= ENOUGH_STEPS {
                    first.sort_by(f64::total_cmp);
                    *self = Usual::Known(first[first.len() / 4].min(most));
                }
                None
            }
            Usual::Known(usual) => {
                if seconds < *usual {
                    *usual *= 1.0 - 3.0 * GROWS * seconds;
                } else {
                    *usual *= 1.0 + GROWS * seconds;
                }
                Some(usual.min(seconds))
            }
        }
    }
}

/// Steps of a part of the window, in seconds: what they would usually have taken, and what they took.
#[derive(Debug, Clone, Copy)]
struct Part {
    began: Duration,
    usual: f64,
    took: f64,
}

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub struct Steadiness {
    /// With when each was seen last.
    kinds: BTreeMap<Kind, (Usual, Duration)>,
    parts: VecDeque<Part>,
}

impl Steadiness {
    /// A step was computed in this time: by the device alone, waiting for others not counted.
    pub fn note(&mut self, step: &Step, took: Duration, now: Duration) {
        let seconds = took.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let kind = Kind {
            model: step.model.clone(),
            class: step.class,
            rows: step.rows.iter().filter(|row| row.len == 1).count(),
            prefill: step.prefill(),
            context: (8.0 * (step.context().max(1) as f64).log2()) as u32,
        };
        if !self.kinds.contains_key(&kind) {
            self.make_room();
        }
        let most = match self.kinds.get(&kind) {
            Some((Usual::Learning(first), _)) if first.len() + 1 >= ENOUGH_STEPS => self.most(&kind),
            _ => f64::INFINITY,
        };
        let new = || (Usual::Learning(Vec::new()), now);
        let (usual, seen_at) = self.kinds.entry(kind).or_insert_with(new);
        *seen_at = now;
        let Some(usual) = usual.note(seconds, most) else {
            return;
        };
        match self.parts.back_mut() {
            Some(part) if now.saturating_sub(part.began) < PART => {
                part.usual += usual;
                part.took += seconds;
            }
            _ => self.parts.push_back(Part {
                began: now,
                usual,
                took: seconds,
            }),
        }
        self.forget_old(now);
    }

    /// The speed of the latest steps in percent of what was usual; none as long as too few can be compared.
    pub fn percent(&mut self, now: Duration) -> Option<u32> {
        self.forget_old(now);
        let took: f64 = self.parts.iter().map(|part| part.took).sum();
        let usual: f64 = self.parts.iter().map(|part| part.usual).sum();
        (took >= ENOUGH_S).then(|| (100.0 * usual / took).round() as u32)
    }

    /// Forgets a model that is gone.
    pub fn forget(&mut self, model: &ModelName) {
        self.kinds.retain(|kind, _| kind.model != *model);
    }

    /// What steps of a kind take at most, by the next kinds: no less context makes them slower, and more by no larger
    /// share than it grows itself.
    fn most(&self, kind: &Kind) -> f64 {
        let known = |context: u32, times: f64| {
            let next = Kind {
                context,
                ..kind.clone()
            };
            match self.kinds.get(&next) {
                Some((Usual::Known(usual), _)) => times * usual,
                Some((Usual::Learning(_), _)) | None => f64::INFINITY,
            }
        };
        let less = known(kind.context.wrapping_sub(1), 2f64.powf(1.0 / 8.0));
        less.min(known(kind.context.wrapping_add(1), 1.0))
    }

    fn forget_old(&mut self, now: Duration) {
        let is_old = |part: &Part| now.saturating_sub(part.began) > WINDOW;
        while self.parts.front().is_some_and(is_old) {
            self.parts.pop_front();
        }
    }

    fn make_room(&mut self) {
        if self.kinds.len() < KINDS {
            return;
        }
        let oldest = self.kinds.iter().min_by_key(|(_, (_, seen_at))| *seen_at);
        if let Some(kind) = oldest.map(|(kind, _)| kind.clone()) {
            self.kinds.remove(&kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RowPlace, RowWork};

    fn step(rows: u32, start: u32, len: u32) -> Option<Step> {
        let model: ModelName = "m".parse().ok()?;
        let row = |i| RowWork {
            id: i,
            place: RowPlace {
                model: model.clone(),
                capacity: 4096,
                row: i as u32,
            },
            start,
            len,
            emits: true,
        };
        Some(Step {
            class: Class::Batch,
            rows: (0..u64::from(rows)).map(row).collect(),
            paused: Vec::new(),
            model,
        })
    }

    /// Runs steps for so many seconds, of which every other one takes a fifth longer, and gives what is told then.
    fn run(steady: &mut Steadiness, step: &Step, ms: u64, seconds: u64, now: &mut Duration) -> Option<u32> {
        let until = *now + Duration::from_secs(seconds);
        let mut is_odd = false;
        while *now < until {
            is_odd = !is_odd;
            let took = Duration::from_millis(if is_odd { ms } else { ms * 6 / 5 });
            *now += took;
            steady.note(step, took, *now);
        }
        steady.percent(*now)
    }

    #[test]
    fn a_chip_that_slows_down_is_seen_and_one_that_is_slow_for_long_is_how_it_is() -> Result<(), &'static str>
    {
        let (mut steady, mut now) = (Steadiness::default(), Duration::ZERO);
        let four = step(4, 1000, 1).ok_or("no step")?;
        let told = run(&mut steady, &four, 20, 60, &mut now);
        assert!(told.is_some_and(|percent| percent > 85), "{told:?}");
        // More rows take longer, which is nothing new.
        let eight = step(8, 1000, 1).ok_or("no step")?;
        let told = run(&mut steady, &eight, 40, 60, &mut now);
        assert!(told.is_some_and(|percent| percent > 85), "{told:?}");
        let told = run(&mut steady, &four, 34, 60, &mut now);
        assert!(
            told.is_some_and(|percent| (50..65).contains(&percent)),
            "{told:?}"
        );
        let told = run(&mut steady, &four, 34, 3600, &mut now);
        assert!(told.is_some_and(|percent| percent > 80), "{told:?}");
        // Nor does one that slows down while answers grow.
        let (mut steady, mut now) = (Steadiness::default(), Duration::ZERO);
        for start in [1000, 1100, 1200] {
            let some = step(4, start, 1).ok_or("no step")?;
            run(&mut steady, &some, 20, 10, &mut now);
        }
        let grown = step(4, 1320, 1).ok_or("no step")?;
        let told = run(&mut steady, &grown, 34, 40, &mut now);
        assert!(told.is_some_and(|percent| percent < 80), "{told:?}");
        // Nothing runs: nobody knows.
        assert_eq!(steady.percent(now + Duration::from_secs(40)), None);
        Ok(())
    }

    #[test]
    fn unlike_steps_say_nothing_and_what_is_kept_is_bounded() -> Result<(), &'static str> {
        let (mut steady, mut now) = (Steadiness::default(), Duration::ZERO);
        for len in 1..2000 {
            let some = step(1, 10, len).ok_or("no step")?;
            let told = run(&mut steady, &some, 60, 1, &mut now);
            assert_eq!(told, None);
        }
        assert_eq!(steady.kinds.len(), KINDS);
        let chunk = step(1, 0, 128).ok_or("no step")?;
        assert!(run(&mut steady, &chunk, 60, 300, &mut now).is_some());
        assert!(steady.parts.len() <= 32);
        Ok(())
    }
}
