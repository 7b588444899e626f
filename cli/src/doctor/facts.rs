//! What is known about a machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pomona_common::NodeId;
use serde_json::Value;

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) macos: bool,
    pub(super) state: PathBuf,
    /// Permissions of the state folder; `None` while there is none.
    pub(super) state_mode: Option<u32>,
    /// Bytes to be had where the state is.
    pub(super) disk_free: Option<u64>,
    /// What the engine says; `None` when none is wanted.
    pub(super) engine: Option<Result<String, String>>,
    pub(super) ports: Vec<(&'static str, SocketAddr, Port)>,
    pub(super) is_coordinator: bool,
    pub(super) is_laptop: bool,
    /// Whether the coordinator's QUIC port is for this machine only.
    pub(super) listens_on_loopback: bool,
    /// The node that this machine joined as.
    pub(super) node: Option<NodeId>,
    pub(super) expired: bool,
    /// Why what it joined cannot be read, if so.
    pub(super) damaged: Option<String>,
    /// Coordinators that it knows, with the round trip or why they are not reached.
    pub(super) coordinators: Vec<(SocketAddr, Result<Duration, String>)>,
    /// Coordinators seen over mDNS; `None` when nobody looked.
    pub(super) sightings: Option<Vec<u64>>,
    pub(super) mdns: bool,
    /// Files of services of ours.
    pub(super) services: Vec<PathBuf>,
    /// What the coordinator of this machine says.
    pub(super) status: Option<Value>,
}

/// A TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    Free,
    /// Pomona answers there.
    Ours,
    /// Somebody else does.
    Taken,
}
