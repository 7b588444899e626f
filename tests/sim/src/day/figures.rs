//! What a day comes to.
//!
//! An interactive minute is *missed* when, in that minute and for one person, the TTFT's 95th percentile (of fewer
//! than five requests: any) is over its budget, or a stream stalls for more than two seconds. The budget is 800 ms and
//! the time that the person's own laptop needs, when it is cold, for the prompt tokens that no cache had. Who asks for
//! something else, or closes the lid, has waited until then.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::mac::{Kind, MEASURED_WEIGHTS};
use crate::policy::Policy;

/// Milliseconds of the budget beside the prompt's own.
const BUDGET: f64 = 800.0;
/// A stream that says nothing for so long, in milliseconds, stalls.
const STALL: u64 = 2_000;
/// From so many requests in a minute on, one in twenty may be late.
const ENOUGH: usize = 5;

/// One interactive answer.
#[derive(Debug, Clone, Copy)]
pub struct Interactive {
    pub owner: usize,
    /// When it was asked, in milliseconds of the day.
    pub at: u64,
    /// Milliseconds until its first token; none when there was none.
    pub ttft: Option<u64>,
    pub budget: f64,
    pub longest_pause: u64,
    /// Or given up for another one.
    pub finished: bool,
    pub given_up: bool,
}

/// The budget of so many prompt tokens that no cache had, for a model with so many bytes of weights, in milliseconds: what
/// the laptop's own chip needs for them alone takes the place of the product's 0.15 ms, which are those of a fast one.
pub fn budget(kind: &Kind, weight_bytes: u64, uncached: u32) -> f64 {
    let scale = weight_bytes as f64 / MEASURED_WEIGHTS;
    BUDGET + 1000.0 * scale * f64::from(uncached) / kind.prefill_tok_s.value
}

/// Minutes with requests, and those of them that were missed.
pub fn minutes(answers: &[Interactive]) -> (usize, usize) {
    let mut by_minute: BTreeMap<(usize, u64), Vec<&Interactive>> = BTreeMap::new();
    for one in answers {
        by_minute
            .entry((one.owner, one.at / 60_000))
            .or_default()
            .push(one);
    }
    let is_missed = |answers: &&Vec<&Interactive>| {
        let over = |one: &&&Interactive| one.ttft.is_none_or(|ttft| ttft as f64 > one.budget);
        let late = answers.iter().filter(over).count();
        let may_be = if answers.len() >= ENOUGH {
            answers.len() / 20
        } else {
            0
        };
        late > may_be
            || answers
                .iter()
                .any(|one| !one.finished || one.longest_pause > STALL)
    };
    let missed = by_minute.values().filter(is_missed).count();
    (by_minute.len(), missed)
}

/// What one machine did in the day.
#[derive(Debug, Clone, Serialize)]
pub struct Share {
    pub chip: String,
    /// Aggregate tokens a second that it would make within its comfort.
    pub capacity_tok_s: f64,
    /// Aggregate tokens a second that it made, whether or not they were delivered.
    pub made_tok_s: f64,
    /// Prompt tokens a second of aggregate answers that it worked on.
    pub prefilled_tok_s: f64,
    /// Prompt tokens a second of aggregate answers that it had kept.
    pub cached_tok_s: f64,
    /// Hours in which aggregate work ran.
    pub busy_h: f64,
    /// Energy of its engine.
    pub joules: f64,
    /// Seconds above its comfort, and of those the ones in which aggregate work ran.
    pub hot_s: (f64, f64),
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    pub policy: Policy,
    /// Offered load in percent of capacity.
    pub load: u32,
    pub seed: u64,
    /// Of one person in the day.
    pub missed_minutes: f64,
    /// Of all people with this chip together.
    pub missed_by_chip: BTreeMap<String, f64>,
    pub asked_minutes: f64,
    /// Milliseconds.
    pub ttft_p50: f64,
    pub ttft_p95: f64,
    pub interactive_failed: usize,
    /// Tokens a second of aggregate answers that were delivered.
    pub aggregate_tok_s: f64,
    pub offered_tok_s: f64,
    pub capacity_tok_s: f64,
    /// Energy of the engines' work over the tokens that were delivered.
    pub joules_per_token: f64,
    /// Seconds that laptops drew more than is comfortable, all together, and those in which aggregate work had run
    /// there within ten seconds.
    pub hot_s: f64,
    pub hot_with_aggregate_s: f64,
    /// Tries of aggregate requests that came to nothing, and requests that were not finished when the day ended.
    pub refused: usize,
    pub unfinished: usize,
    pub machines: Vec<Share>,
    /// Steps of the ladder.
    pub rungs: usize,
    /// Promises that were broken.
    pub broken: usize,
    /// Simulated seconds in a second.
    pub speed: f64,
}

/// The value below which this share of sorted values is.
pub fn percentile(sorted: &[u64], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted
        .get(index.min(sorted.len().saturating_sub(1)))
        .map_or(0.0, |value| *value as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_what_the_chip_itself_needs_and_what_is_promised_beside_it() {
        let kinds = crate::mac::kinds(crate::mac::DATA).unwrap();
        for kind in kinds.values() {
            let of = |uncached| budget(kind, MEASURED_WEIGHTS as u64, uncached);
            assert!((of(0) - 800.0).abs() < 1e-6);
            assert!(
                (of(kind.prefill_tok_s.value as u32) - 1800.0).abs() < 2.0,
                "{kind:?}"
            );
            assert!((budget(kind, MEASURED_WEIGHTS as u64 / 4, 4000) - of(1000)).abs() < 1e-3);
        }
    }

    #[test]
    fn minutes_are_missed_as_defined() {
        let good = |at| Interactive {
            owner: 0,
            at,
            ttft: Some(500),
            budget: 900.0,
            longest_pause: 100,
            finished: true,
            given_up: false,
        };
        let late = |at| Interactive {
            ttft: Some(901),
            ..good(at)
        };
        assert_eq!(minutes(&[good(1), good(2), late(60_001)]), (2, 1));
        // One of twenty may be late, one of nineteen not.
        let many = |count: u64| (0..count).map(good).chain([late(59_999)]).collect::<Vec<_>>();
        assert_eq!(minutes(&many(19)), (1, 0));
        assert_eq!(minutes(&many(18)), (1, 1));
        // Whoever stalls or gets nothing is missed, whatever the others get; another person has minutes of their own.
        let stalls = Interactive {
            longest_pause: 2_001,
            ..good(7)
        };
        let lost = Interactive {
            finished: false,
            ..good(7)
        };
        let other = Interactive { owner: 1, ..good(7) };
        assert_eq!(minutes(&[stalls, good(8), other]), (2, 1));
        assert_eq!(minutes(&[lost, other]), (2, 1));
    }
}
