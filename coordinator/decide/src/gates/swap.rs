//! Swap that a node's batch work is to blame for. macOS keeps what it once swapped for days, so what is in use
//! above the level when the batch work began counts, and all of it while more is being written.

use std::time::Duration;

use pomona_common::gate::Stage;

use crate::ladder::NodeSignals;

/// Something was written so lately: more is being written.
const WRITING: Duration = Duration::from_secs(30);
const MB: f32 = 1e6;

/// When the batch work has been gone for so long, what it left in swap is cold.
const COLD: Duration = Duration::from_secs(600);

/// The swap of one node.
#[derive(Debug, Clone, Default)]
pub(super) struct Swap {
    used: Option<u64>,
    /// What was in use when the batch work began; none when there is none, and when nobody saw it begin.
    level: Option<u64>,
    /// Whether it was seen before.
    known: bool,
    /// What was written in all, and when that grew last.
    written: Option<u64>,
    grew: Option<Duration>,
}

impl Swap {
    /// `batch_at` is when there was batch work last.
    pub(super) fn take(
        &mut self,
        node: &NodeSignals,
        stage: Stage,
        batch_at: Option<Duration>,
        now: Duration,
    ) {
        self.used = node.swap_used;
        let lasts = batch_at.is_some_and(|at| now.saturating_sub(at) < COLD);
        // Whoever leads since the gate tripped did not see the batch work begin.
        let is_unseen = !self.known && stage > Stage::Clear;
        self.level = match (self.level, self.used) {
            // Cold pages may come back meanwhile: what comes after counts from there.
            (Some(level), Some(used)) if lasts => Some(level.min(used)),
            (Some(level), None) if lasts => Some(level),
            (None, Some(used)) if lasts && !is_unseen && (node.batch() > 0) => Some(used),
            _ => None,
        };
        self.known |= !is_unseen || !lasts;
        if let (Some(before), Some(written)) = (self.written, node.swapped_out)
            && written > before
        {
            self.grew = Some(now);
        }
        self.written = node.swapped_out;
    }

    /// All that is in use, in MB.
    pub(super) fn literal(&self) -> Option<f32> {
        self.used.map(|used| used as f32 / MB)
    }

    /// In MB; none while nobody knows from where to count.
    pub(super) fn measure(&self, now: Duration) -> Option<f32> {
        let used = self.used?;
        let grows = self.grew.is_some_and(|at| now.saturating_sub(at) < WRITING);
        let counted = match self.level {
            _ if grows => used,
            Some(level) => used.saturating_sub(level),
            None if self.known => 0,
            None => return None,
        };
        Some(counted as f32 / MB)
    }
}
