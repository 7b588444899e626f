//! For how long one gate of a node is passed, or is not any more, and what was measured meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use pomona_common::gate::Stage;

use super::book::{SAMPLES, Sample};
use super::rules::{Remedy, Rule};
use super::watched::UNHEARD;
use crate::lasting::Lasting;

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub(super) struct Times {
    /// Counted since the gate came to this stage, at this time.
    stage: (Stage, u64),
    over: Lasting,
    under: Lasting,
    samples: VecDeque<(Duration, f32)>,
}

impl Times {
    /// A look: what was measured, if anything could be, and whether it counts as too much.
    pub(super) fn note(
        &mut self,
        rule: &Rule,
        stage: (Stage, u64),
        value: Option<f32>,
        counts: bool,
        now: Duration,
    ) {
        if self.stage != stage {
            self.stage = stage;
            (self.over, self.under) = Default::default();
        }
        let Some(value) = value else {
            return;
        };
        self.over.note(value > rule.limit && counts, now);
        self.under.note(value <= rule.clears_at, now);
        // Half of them are from before it was passed.
        let apart = rule.trips_after.max(rule.clears_after) / (SAMPLES as u32 / 2);
        let before = self.samples.iter().rev().nth(1);
        let is_close = before.is_some_and(|(at, _)| now.saturating_sub(*at) < apart);
        if is_close {
            // The latest one is always there.
            self.samples.pop_back();
        }
        self.samples.push_back((now, value));
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }

    /// Nothing is measured: it is neither above nor below, and after a while what was is over.
    pub(super) fn pause(&mut self, passed: Duration, now: Duration) {
        let measured = self.samples.back().map(|(at, _)| now.saturating_sub(*at));
        let is_gone = measured.is_none_or(|ago| ago > UNHEARD);
        self.over.pause(passed, is_gone);
        self.under.pause(passed, is_gone);
    }

    /// What was measured last.
    pub(super) fn latest(&self) -> Option<f32> {
        self.samples.back().map(|(_, value)| *value)
    }

    /// The next stage, and why, when it is time for it. One that moves models away may come to its last
    /// stage again, for the next one.
    pub(super) fn next(&self, rule: &Rule, now: Duration) -> Option<(Stage, String)> {
        let value = self.latest()?;
        let unit = rule.unit;
        let over = self.over.lasted(now);
        let second = rule.secondary;
        let escalates = |over| second.is_some_and(|(after, _)| over >= after);
        let relocates = second.is_some_and(|(_, remedy)| remedy == Remedy::Relocate);
        let (to, lasted) = match (over, self.under.lasted(now), self.stage.0) {
            (Some(over), _, Stage::Clear) if over >= rule.trips_after => (Stage::Tripped, over),
            (Some(over), _, Stage::Tripped) if escalates(over) => (Stage::Escalated, over),
            (Some(over), _, Stage::Escalated) if relocates && escalates(over) => (Stage::Escalated, over),
            (_, Some(under), Stage::Tripped | Stage::Escalated) if under >= rule.clears_after => {
                (Stage::Clear, under)
            }
            _ => return None,
        };
        let lasted = lasted.as_secs();
        let reason = match to {
            Stage::Clear => format!("{value:.1} {unit} after {lasted} s of calm"),
            _ => format!("{value:.1} {unit} for {lasted} s, the limit is {}", rule.limit),
        };
        Some((to, reason))
    }

    pub(super) fn evidence(&self, now: Duration) -> Vec<Sample> {
        let samples = self.samples.iter();
        samples
            .map(|(at, value)| Sample::ago(now.saturating_sub(*at).as_secs(), *value))
            .collect()
    }
}
