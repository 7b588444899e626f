//! How far a node is relieved of batch work: the rungs of the offload ladder. Interactive work is never touched
//! by any of them; new background work is offered to other nodes first, and what runs stays.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::class::Class;

/// Version of the protocol that brought [`Rung::Unload`].
const UNLOAD_SINCE: u16 = 9;

/// Each rung includes what the ones below it do, but for fewer slots: what stands still keeps the ones it has, and
/// the memory with them unless that is short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// Nothing is held back.
    #[default]
    Normal,
    /// No new batch work.
    Hold,
    /// Batch gets fewer slots (what is more goes back to the queue), smaller prefill chunks and a small share
    /// of the steps.
    Tighten,
    /// What runs stands still, where it is.
    Pause,
    /// What has not begun goes to other nodes.
    MoveQueued,
    /// What runs goes on at other nodes, a few at a time.
    MoveRunning,
    /// Models that no person uses there make room, where others have them. Peers of before protocol 9 do not know it.
    Unload,
}

impl Rung {
    /// All of them, the lowest first.
    pub const ALL: [Rung; 7] = [
        Rung::Normal,
        Rung::Hold,
        Rung::Tighten,
        Rung::Pause,
        Rung::MoveQueued,
        Rung::MoveRunning,
        Rung::Unload,
    ];

    /// Whether a node on this rung is asked for new work of a class only where nobody else takes it. What a person
    /// waits for it answers on every one.
    pub fn spares(self, class: Class) -> bool {
        self > Rung::Normal && class != Class::Interactive
    }

    /// Name in tables, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Rung::Normal => "normal",
            Rung::Hold => "hold",
            Rung::Tighten => "tighten",
            Rung::Pause => "pause",
            Rung::MoveQueued => "move_queued",
            Rung::MoveRunning => "move_running",
            Rung::Unload => "unload",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a node is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relief {
    /// How far.
    pub rung: Rung,
    /// Whether what stands still gives its KV cache back: it is prefilled again when it goes on.
    pub frees_memory: bool,
}

impl Relief {
    /// As peers of a version of the protocol know it: of the highest rung a node itself does nothing more.
    #[must_use]
    pub fn known_to(self, protocol: u16) -> Self {
        let highest = match protocol {
            ..UNLOAD_SINCE => Rung::MoveRunning,
            _ => Rung::Unload,
        };
        Self {
            rung: self.rung.min(highest),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_nodes_are_told_of_rungs_that_they_know() {
        for rung in Rung::ALL {
            let relief = Relief {
                rung,
                frees_memory: true,
            };
            assert_eq!(relief.known_to(9), relief);
            let older = relief.known_to(8);
            assert_eq!(
                (older.rung, older.frees_memory),
                (rung.min(Rung::MoveRunning), true)
            );
        }
    }
}
