//! When a node was heard of last, and whether that is too long ago.

use pomona_common::Line;

/// A node's last report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// Its age.
    pub age_ms: u64,
    /// What it comes over.
    pub line: Line,
}

impl Heard {
    /// Just now.
    pub const NOW: Heard = Heard {
        age_ms: 0,
        line: Line::Lan,
    };

    /// Whether the node is suspected: it gets no new work while others are there.
    pub fn is_late(self) -> bool {
        self.age_ms > self.line.late().as_millis() as u64
    }
}
