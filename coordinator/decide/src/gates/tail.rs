//! Whether some interactive answers begin far later than most: p95 over p50 of their TTFT.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use pomona_common::signs::FirstToken;
use pomona_common::{ModelName, Slo};

/// Answers count for so long.
pub(super) const WINDOW: Duration = Duration::from_secs(300);
/// So many of like length say something about their tail.
pub(super) const ENOUGH: usize = 20;
/// More are not remembered of a node.
const REMEMBERED: usize = 1024;
/// Up to so many uncached prompt tokens prefill takes no time to speak of. Above, answers are of like length
/// when those are within a factor of two.
const SHORT: u32 = 64;
/// The answers of one node.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail {
    /// With when each began.
    answers: VecDeque<(FirstToken, Duration)>,
    /// How many the node had counted when it told last; nothing before it was heard of.
    counted: Option<u64>,
    /// Answers of before say nothing: something was done about them then.
    anew_since: Duration,
}

impl Tail {
    /// Takes what is new among a node's latest answers, and gives it; all of them at first sight.
    pub(super) fn take<'a>(
        &mut self,
        answers: u64,
        latest: &'a [FirstToken],
        slo: &Slo,
        now: Duration,
    ) -> &'a [FirstToken] {
        let new = match self.counted {
            Some(counted) if counted <= answers => answers - counted,
            // It was started again.
            _ => answers,
        };
        let is_first = self.counted.replace(answers).is_none();
        if is_first {
            self.anew_since = now;
        }
        let new = usize::try_from(new).unwrap_or(usize::MAX).min(latest.len());
        let new = &latest[latest.len() - new..];
        // At first sight nobody knows how old they are.
        for one in new.iter().filter(|_| !is_first) {
            let began = now.saturating_sub(Duration::from_millis(one.took_ms.into()));
            // How late one would have been that was given up in time nobody knows.
            if began >= self.anew_since && !(one.given_up && of_budget(one, slo) <= 1.0) {
                self.answers.push_back((one.clone(), began));
            }
        }
        let is_old = |began: Duration| now.saturating_sub(began) > WINDOW;
        self.answers.retain(|(_, began)| !is_old(*began));
        while self.answers.len() > REMEMBERED {
            self.answers.pop_front();
        }
        new
    }

    /// Begins anew: something was done.
    pub(super) fn begin_anew(&mut self, now: Duration) {
        self.answers.clear();
        self.anew_since = now;
    }

    /// The largest p95 over p50 among answers of a model to prompts of like length of which the p95 is over budget; 0
    /// when there is none. `None` as long as too few are known since something was done.
    pub(super) fn measure(&self, slo: &Slo, now: Duration) -> Option<f32> {
        let mut alike: BTreeMap<(&ModelName, u32), Vec<(f32, f32)>> = BTreeMap::new();
        for (one, _) in &self.answers {
            let length = (one.uncached / SHORT).checked_ilog2().map_or(0, |log| log + 1);
            let bucket = alike.entry((&one.model, length)).or_default();
            bucket.push((one.ttft_ms, of_budget(one, slo)));
        }
        let told = alike.values().filter(|bucket| bucket.len() >= ENOUGH);
        let mut tails = told
            .map(|bucket| {
                let ttft_ms = bucket.iter().map(|(ttft_ms, _)| *ttft_ms);
                let of_budget = bucket.iter().map(|(_, of_budget)| *of_budget);
                let [p50, p95] = quantiles(ttft_ms);
                let is_late = quantiles(of_budget)[1] > 1.0;
                if is_late { p95 / p50.max(1.0) } else { 0.0 }
            })
            .peekable();
        let is_young = now.saturating_sub(self.anew_since) < WINDOW;
        if tails.peek().is_none() && is_young {
            return None;
        }
        Some(tails.fold(0.0, f32::max))
    }
}

/// What an answer took to begin, of what is promised; nothing where nothing is.
fn of_budget(one: &FirstToken, slo: &Slo) -> f32 {
    let budget = slo.ttft_budget_ms(one.uncached);
    budget.map_or(0.0, |budget_ms| one.ttft_ms / budget_ms as f32)
}

/// The median and the 95th percentile, by nearest rank.
fn quantiles(values: impl Iterator<Item = f32>) -> [f32; 2] {
    let mut sorted: Vec<f32> = values.collect();
    sorted.sort_by(f32::total_cmp);
    [50, 95].map(|percent| {
        let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(rank).copied().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use pomona_common::Class;

    use super::*;

    const SLO: Slo = Slo::of(Class::Interactive);

    fn told(tail: &mut Tail, answers: &[(u32, f32)], counted: &mut u64, now: Duration) {
        for (uncached, ttft_ms) in answers {
            *counted += 1;
            let one = FirstToken {
                model: "m".parse().unwrap_or_else(|error| panic!("{error}")),
                uncached: *uncached,
                ttft_ms: *ttft_ms,
                took_ms: 0,
                given_up: false,
            };
            tail.take(*counted, &[one], &SLO, now);
        }
    }

    #[test]
    fn a_tail_is_one_among_prompts_of_like_length_and_over_budget() {
        let s = Duration::from_secs;
        let start = s(1000);
        let new = || {
            let mut tail = Tail::default();
            tail.take(7, &[], &SLO, start);
            (tail, 7)
        };
        // Long prompts take longer, which is no tail.
        let (mut tail, mut counted) = new();
        let mixed: Vec<(u32, f32)> = (0..200)
            .map(|i| match i % 4 {
                0 => (30, 100.0),
                1 => (300, 900.0),
                2 => (1200, 3600.0),
                _ => (5000, 15_000.0),
            })
            .collect();
        told(&mut tail, &mixed, &mut counted, start);
        assert_eq!(
            tail.measure(&SLO, start),
            Some(1.0),
            "all that are as long take as long"
        );
        // Nor is a wide one that is within budget.
        let (mut tail, mut counted) = new();
        let quick: Vec<(u32, f32)> = (0..100)
            .map(|i| (30, if i % 10 == 0 { 700.0 } else { 50.0 }))
            .collect();
        told(&mut tail, &quick, &mut counted, start);
        assert_eq!(tail.measure(&SLO, start), Some(0.0));
        let (mut tail, mut counted) = new();
        let slow: Vec<(u32, f32)> = (0..100)
            .map(|i| (30, if i % 10 == 0 { 3000.0 } else { 300.0 }))
            .collect();
        told(&mut tail, &slow, &mut counted, start);
        assert_eq!(tail.measure(&SLO, start), Some(10.0));
        // What is late is what was promised sooner.
        let patient = Slo {
            ttft_ms: 10_000,
            ..SLO
        };
        let none = Slo {
            ttft_ms: 0,
            ttft_us_per_token: 0,
            ..SLO
        };
        assert_eq!(
            [patient, none].map(|slo| tail.measure(&slo, start)),
            [Some(0.0); 2]
        );
        // What was before something was done does not count, and few answers say nothing at first.
        tail.begin_anew(start);
        assert_eq!(tail.measure(&SLO, start), None);
        told(&mut tail, &slow[..19], &mut counted, start + s(1));
        assert_eq!(tail.measure(&SLO, start + s(1)), None);
        told(&mut tail, &slow[..1], &mut counted, start + s(2));
        assert_eq!(tail.measure(&SLO, start + s(2)), Some(10.0));
        tail.take(counted, &[], &SLO, start + s(400));
        assert_eq!(tail.measure(&SLO, start + s(400)), Some(0.0));
    }

    #[test]
    fn what_is_given_up_counts_when_it_was_late_already() {
        let mut tail = Tail::default();
        let one = |ttft_ms| FirstToken {
            model: "m".parse().unwrap_or_else(|error| panic!("{error}")),
            uncached: 20,
            ttft_ms,
            took_ms: 0,
            given_up: true,
        };
        tail.take(0, &[], &SLO, Duration::ZERO);
        tail.take(2, &[one(100.0), one(5000.0)], &SLO, Duration::ZERO);
        assert_eq!(tail.answers.len(), 1);
    }

    #[test]
    fn answers_count_once_and_again_after_a_restart() {
        let mut tail = Tail::default();
        let one = FirstToken {
            model: "m".parse().unwrap_or_else(|error| panic!("{error}")),
            uncached: 1,
            ttft_ms: 1.0,
            took_ms: 0,
            given_up: false,
        };
        let latest = vec![one; 5];
        for (answers, known) in [(5, 0), (5, 0), (7, 2), (7, 2), (100, 7), (3, 10)] {
            tail.take(answers, &latest, &SLO, Duration::ZERO);
            assert_eq!(tail.answers.len(), known, "{answers}");
        }
    }
}
