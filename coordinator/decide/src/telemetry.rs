//! What the nodes' reports said over time, in memory and bounded. Pure: the time of a report is
//! a parameter, in seconds of a clock of the caller's that never goes back.

mod history;
mod sample;

use std::collections::BTreeMap;

use pomona_common::NodeId;
use pomona_common::plausible::keep_plausible;
use pomona_common::report::NodeReport;

pub use history::{History, Point};
pub use sample::{Sample, Series};

/// The histories of all nodes; those of nodes that left are kept until others need the place.
#[derive(Debug)]
pub struct Telemetry {
    /// How many nodes are followed at most.
    limit: usize,
    nodes: BTreeMap<NodeId, Followed>,
}

#[derive(Debug, Default)]
struct Followed {
    history: History,
    /// Last report: when, and its tokens, for the rate.
    last: Option<(u64, u64)>,
    /// Tokens per second between the last two.
    rate: Option<f32>,
}

impl Telemetry {
    /// Follows at most so many nodes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            nodes: BTreeMap::new(),
        }
    }

    /// Takes in a report, and takes out of it what cannot be true; gives how many places that were.
    pub fn ingest(&mut self, now_s: u64, node: NodeId, report: &mut NodeReport) -> usize {
        let dropped = keep_plausible(report);
        if self.nodes.len() >= self.limit && !self.nodes.contains_key(&node) {
            let stalest = self
                .nodes
                .iter()
                .min_by_key(|(id, followed)| (followed.last, **id));
            if let Some(id) = stalest.map(|(id, _)| *id) {
                self.nodes.remove(&id);
            }
        }
        let followed = self.nodes.entry(node).or_default();
        let tokens = sample::tokens(report);
        // Of several reports in one second the first one has told the rate.
        if followed.last.is_none_or(|(then_s, _)| now_s > then_s) {
            followed.rate = followed.last.and_then(|(then_s, before)| {
                // An engine that started anew counts from zero.
                let new = tokens.checked_sub(before)?;
                Some(new as f32 / (now_s - then_s) as f32)
            });
            followed.last = Some((now_s, tokens));
        }
        let rate = followed.rate;
        followed.history.record(now_s, &Sample::of(report, rate));
        dropped
    }

    /// What a node's reports said of one thing over the last `span_s` seconds, oldest first.
    pub fn points(&self, node: NodeId, series: Series, now_s: u64, span_s: u64) -> Vec<Point> {
        let followed = self.nodes.get(&node);
        followed.map_or_else(Vec::new, |followed| {
            followed.history.points(series, now_s, span_s)
        })
    }

    /// Joules that a token took on a node over the last ten minutes; `None` when it made none, or its
    /// power is not known.
    pub fn joules_per_token(&self, node: NodeId, now_s: u64) -> Option<f32> {
        let history = &self.nodes.get(&node)?.history;
        let (mut joules, mut tokens) = (0.0, 0.0);
        for sample in history.seconds(now_s, 600) {
            let (power, rate) = (
                sample.of_series(Series::Power),
                sample.of_series(Series::TokenRate),
            );
            if power.is_finite() && rate > 0.0 {
                joules += power;
                tokens += rate;
            }
        }
        (tokens > 0.0).then(|| joules / tokens)
    }

    /// Nodes with a history.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied()
    }

    /// Bytes that the histories occupy.
    pub fn bytes(&self) -> usize {
        self.nodes.values().map(|followed| followed.history.bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::report::MachineReport;
    use pomona_common::unit::{Reading, Watts};

    use super::*;

    fn report(watts: f32) -> NodeReport {
        NodeReport {
            machine: MachineReport {
                power: Reading::Measured(Watts(watts)),
                ..MachineReport::default()
            },
            ..NodeReport::default()
        }
    }

    #[test]
    fn energy_is_known_where_tokens_and_power_are() {
        let mut telemetry = Telemetry::new(4);
        let node = NodeId::from_bits(1);
        let busy = |tokens| {
            let class = pomona_common::report::ClassReport {
                tokens,
                ..Default::default()
            };
            NodeReport {
                engine: Some(pomona_common::report::EngineReport {
                    classes: [(pomona_common::Class::Batch, class)].into(),
                    ..Default::default()
                }),
                ..report(30.0)
            }
        };
        assert_eq!(telemetry.joules_per_token(node, 0), None);
        for second in 0..10 {
            telemetry.ingest(second, node, &mut busy(second * 60));
        }
        assert_eq!(telemetry.joules_per_token(node, 9), Some(0.5));
    }

    #[test]
    fn absurd_reports_leave_a_gap_and_nodes_are_bounded() {
        let mut telemetry = Telemetry::new(256);
        let node = NodeId::from_bits(1);
        for (now_s, watts) in [(10, 5.0), (11, f32::NAN), (12, 7.0)] {
            telemetry.ingest(now_s, node, &mut report(watts));
        }
        let points = telemetry.points(node, Series::Power, 12, 60);
        let values: Vec<(u64, f32)> = points.iter().map(|point| (point.age_s, point.mean)).collect();
        assert_eq!(values, [(2, 5.0), (0, 7.0)]);
        for i in 2..2000u128 {
            telemetry.ingest(20 + i as u64, NodeId::from_bits(i), &mut report(1.0));
        }
        assert_eq!(telemetry.nodes().count(), 256);
        assert!(
            telemetry.nodes().all(|id| id != node),
            "who was heard of last stays"
        );
    }
}
