//! The gates as data: what each measures, when it trips and clears, and what it does and never does about
//! it. The thresholds are the ones that Pomona promises (README, "Gates").

use std::time::Duration;

use pomona_common::gate::Gate;
use pomona_common::{Rung, Watts};
use serde::Serialize;

/// One gate.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Which.
    pub gate: Gate,
    /// What is measured.
    pub measures: &'static str,
    /// In which unit.
    pub unit: &'static str,
    /// It is passed above this.
    pub limit: f32,
    /// It trips when it was passed for so long.
    pub trips_after: Duration,
    /// It clears when the measure was at or below this...
    pub clears_at: f32,
    /// ...for so long.
    pub clears_after: Duration,
    /// What it does.
    pub remedy: Remedy,
    /// What it does as well when it is passed for so long after that.
    pub secondary: Option<(Duration, Remedy)>,
    /// What must not be done about it, whoever asks.
    pub forbidden: &'static [Remedy],
}

/// What is or is not done about a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// The node takes no new batch work.
    HoldBatch,
    /// It works on less batch work at once.
    Throttle,
    /// Interactive work has the engine for itself.
    ReserveLane,
    /// Its batch work goes to other nodes.
    MoveBatch,
    /// Its heaviest model that no person uses there goes to another node.
    Relocate,
    /// The model is not placed there any more, and a ticket proposes a machine of its own.
    Quarantine,
    /// Batch gets more of the node.
    EnlargeBatch,
    /// Requests go elsewhere, and what takes the memory stays.
    RerouteOnly,
}

impl Remedy {
    /// How far the offload ladder may relieve a node for it; none when the planner does it.
    pub fn rung(self) -> Option<Rung> {
        match self {
            Remedy::HoldBatch => Some(Rung::Hold),
            Remedy::Throttle => Some(Rung::Tighten),
            Remedy::ReserveLane => Some(Rung::Pause),
            Remedy::MoveBatch => Some(Rung::MoveRunning),
            Remedy::Relocate | Remedy::Quarantine | Remedy::EnlargeBatch | Remedy::RerouteOnly => None,
        }
    }
}

/// Kills are remembered for so long, in seconds.
pub const WEEK_S: u64 = 7 * 24 * 3600;

/// All gates, in the order of [`Gate::ALL`].
pub const RULES: [Rule; 5] = [
    Rule {
        gate: Gate::Swap,
        // macOS keeps what it once swapped for days: the level when the batch work began does not count.
        measures: "swap in use above its level when the batch work began; all of it while more is written",
        unit: "MB",
        limit: 768.0,
        trips_after: Duration::from_secs(90),
        clears_at: 576.0,
        clears_after: Duration::from_secs(60),
        remedy: Remedy::HoldBatch,
        secondary: None,
        forbidden: &[Remedy::EnlargeBatch],
    },
    Rule {
        gate: Gate::Tail,
        measures: "p95 over p50 of interactive TTFT among prompts of like length, over budget, batch tightened",
        unit: "x",
        limit: 2.8,
        trips_after: Duration::from_secs(30),
        clears_at: 2.2,
        clears_after: Duration::from_secs(120),
        remedy: Remedy::ReserveLane,
        secondary: Some((Duration::from_secs(60), Remedy::MoveBatch)),
        forbidden: &[Remedy::EnlargeBatch],
    },
    Rule {
        gate: Gate::Residency,
        measures: "the engine's footprint (else its RSS) of physical memory",
        unit: "%",
        limit: 82.0,
        trips_after: Duration::from_secs(600),
        clears_at: 78.0,
        clears_after: Duration::from_secs(120),
        remedy: Remedy::Throttle,
        secondary: Some((Duration::from_secs(300), Remedy::Relocate)),
        forbidden: &[Remedy::EnlargeBatch, Remedy::RerouteOnly],
    },
    Rule {
        gate: Gate::Kills,
        measures: "exits of the engine by signal within 7 days, by model",
        unit: "kills",
        // Two are passed.
        limit: 1.0,
        trips_after: Duration::ZERO,
        clears_at: 1.0,
        clears_after: Duration::ZERO,
        remedy: Remedy::Quarantine,
        secondary: None,
        forbidden: &[],
    },
    Rule {
        gate: Gate::Comfort,
        measures: "smoothed power of the machine, of what is comfortable there",
        unit: "%",
        limit: 100.0,
        trips_after: Duration::from_secs(60),
        clears_at: 95.0,
        clears_after: Duration::from_secs(60),
        remedy: Remedy::MoveBatch,
        secondary: None,
        forbidden: &[],
    },
];

/// The rule of a gate.
pub fn rule(gate: Gate) -> &'static Rule {
    &RULES[gate as usize]
}

/// Power as the comfort gate measures it.
pub(super) fn of_comfort(watts: f32, comfort: Watts) -> f32 {
    100.0 * watts / comfort.get().max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gate_has_its_rule_and_room_between_tripping_and_clearing() {
        assert_eq!(RULES.map(|rule| rule.gate), Gate::ALL);
        for rule in &RULES {
            assert!(rule.clears_at <= rule.limit, "{rule:?}");
            let second = rule.secondary.map(|(_, remedy)| remedy);
            let mut remedies = second.into_iter().chain([rule.remedy]);
            assert!(
                remedies.all(|remedy| !rule.forbidden.contains(&remedy)),
                "{rule:?}"
            );
        }
    }
}
