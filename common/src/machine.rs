//! What a machine is to its cluster.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whose machine it is, which decides what may run there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineRole {
    /// A person works at it.
    #[default]
    Laptop,
    /// A Mac mini or Studio beside the others in a rack.
    Rack,
    /// Somebody else's machine, for a while.
    Rented,
}

impl MachineRole {
    /// All of them.
    pub const ALL: [MachineRole; 3] = [MachineRole::Laptop, MachineRole::Rack, MachineRole::Rented];
}

impl fmt::Display for MachineRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MachineRole::Laptop => "laptop",
            MachineRole::Rack => "rack",
            MachineRole::Rented => "rented",
        })
    }
}

/// A role nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown role `{0}`: use laptop, rack or rented")]
pub struct UnknownRole(String);

impl FromStr for MachineRole {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        MachineRole::ALL
            .into_iter()
            .find(|role| role.to_string() == text)
            .ok_or_else(|| UnknownRole(text.chars().take(40).collect()))
    }
}
