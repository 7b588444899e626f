//! The histories of the nodes on this coordinator: soft state, filled from the sessions.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use pomona_common::report::NodeReport;
use pomona_common::{NodeId, limits};
use pomona_decide::{Point, Series, Telemetry};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Collector {
    began: Instant,
    telemetry: Mutex<Telemetry>,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            telemetry: Mutex::new(Telemetry::new(limits::NODES)),
        }
    }
}

impl Collector {
    /// Takes in a report, without what cannot be true.
    pub(crate) fn ingest(&self, node: NodeId, report: &mut NodeReport) {
        let now_s = self.began.elapsed().as_secs();
        let dropped = self.with(|telemetry| telemetry.ingest(now_s, node, report));
        if dropped > 0 {
            tracing::debug!(%node, dropped, "readings that cannot be true");
        }
    }

    /// One series of every node over the last `span_s` seconds.
    pub(crate) fn points(&self, series: Series, span_s: u64) -> Vec<(NodeId, Vec<Point>)> {
        let now_s = self.began.elapsed().as_secs();
        self.with(|telemetry| {
            telemetry
                .nodes()
                .map(|node| (node, telemetry.points(node, series, now_s, span_s)))
                .collect()
        })
    }

    /// Joules that a token took on a node lately.
    pub(crate) fn joules_per_token(&self, node: NodeId) -> Option<f32> {
        let now_s = self.began.elapsed().as_secs();
        self.with(|telemetry| telemetry.joules_per_token(node, now_s))
    }

    /// Bytes that the histories occupy.
    pub(crate) fn bytes(&self) -> usize {
        self.with(|telemetry| telemetry.bytes())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Telemetry) -> T) -> T {
        work(&mut self.telemetry.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
