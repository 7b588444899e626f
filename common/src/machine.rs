//! What a machine is to its cluster.

use std::collections::BTreeSet;
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

/// The kinds of machine that may answer a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pools(BTreeSet<MachineRole>);

impl Pools {
    /// These kinds only; none of them named means any.
    pub fn only(roles: impl IntoIterator<Item = MachineRole>) -> Self {
        Self(roles.into_iter().collect())
    }

    /// Whether every kind may.
    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this kind may.
    pub fn allow(&self, role: MachineRole) -> bool {
        self.is_any() || self.0.contains(&role)
    }

    /// The kinds that are named.
    pub fn named(&self) -> impl Iterator<Item = MachineRole> {
        self.0.iter().copied()
    }
}

impl fmt::Display for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() {
            return f.write_str("any");
        }
        let named: Vec<String> = self.named().map(|role| role.to_string()).collect();
        f.write_str(&named.join(", "))
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
