//! Gates: thresholds of a node that act when they are passed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of them; what it measures and does is in `pomona_decide::gates`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Memory is written to disk.
    Swap,
    /// Some interactive answers begin far later than most.
    Tail,
    /// The engine takes too much of the memory.
    Residency,
    /// The system killed the engine again and again.
    Kills,
    /// The machine is no comfort to whoever works at it.
    Comfort,
}

impl Gate {
    /// All of them.
    pub const ALL: [Gate; 5] = [
        Gate::Swap,
        Gate::Tail,
        Gate::Residency,
        Gate::Kills,
        Gate::Comfort,
    ];

    /// Name in tables, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Gate::Swap => "swap",
            Gate::Tail => "tail",
            Gate::Residency => "residency",
            Gate::Kills => "kills",
            Gate::Comfort => "comfort",
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How far a gate has acted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Not at all.
    #[default]
    Clear,
    /// Its remedy is in force.
    Tripped,
    /// That did not help: the secondary one is as well.
    Escalated,
}

impl Stage {
    /// Name in tables, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Clear => "clear",
            Stage::Tripped => "tripped",
            Stage::Escalated => "escalated",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
