//! Under which conditions a machine works: what feeds it, and what else happens on it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::unit::{Bytes, Percent, Reading, Watts};

/// See the module's documentation. What a machine cannot tell is unavailable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Watts by rail, from the source that the report's power names. At most
    /// [`RAILS`](crate::limits::RAILS).
    pub rails: Vec<Rail>,
    /// What feeds the machine.
    pub supply: Reading<Supply>,
    /// Charge of its battery.
    pub battery: Reading<Percent>,
    /// Whether its owner or the system asked it to save power.
    pub low_power: Reading<bool>,
    /// Physical memory that holds compressed pages.
    pub compressed: Reading<Bytes>,
    /// Share of time in which the GPU was busy.
    pub gpu: Reading<Percent>,
    /// What else happens on it.
    pub activity: Activity,
}

/// One rail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rail {
    /// As the source calls it: `cpu`, `gpu`, `ane`, `dram`, `package-0`.
    pub name: String,
    /// Its power.
    pub power: Watts,
}

/// What feeds a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Supply {
    /// The wall.
    Mains,
    /// Its battery.
    Battery,
}

impl fmt::Display for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Supply::Mains => "mains",
            Supply::Battery => "battery",
        })
    }
}

/// The fingerprint of what a person, or their programs, do on the machine. Kinds of activity only,
/// no names of programs or files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// Xcode builds or indexes.
    pub indexing: Reading<bool>,
    /// VideoToolbox encodes or decodes.
    pub video: Reading<bool>,
    /// A camera or microphone is in use.
    pub capture: Reading<bool>,
    /// The screen is locked.
    pub locked: Reading<bool>,
    /// Seconds since somebody touched keyboard, pointer or screen.
    pub idle_s: Reading<u64>,
}
