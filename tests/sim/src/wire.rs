//! What travels, and between whom.

use std::fmt;

use pomona_common::control::{CoordinatorMessage, NodeMessage};
use pomona_common::{Generation, GenerationEvent};

/// A machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Id {
    Coordinator(u64),
    Node(usize),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Id::Coordinator(number) => write!(f, "coordinator {number}"),
            Id::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// One message in a session.
#[derive(Debug, Clone)]
pub enum Wire {
    FromNode(Box<NodeMessage>),
    FromCoordinator(Box<CoordinatorMessage>),
    /// A coordinator asks a node's engine for an answer, or a node a coordinator for one from anywhere, under
    /// a number of the asker's.
    Open(u64, Box<Generation>),
    Event(u64, GenerationEvent),
    /// Nobody waits for this answer here any more.
    Cancel(u64),
    KeepAlive,
    Close,
}

/// One end of a session between a node and a coordinator.
#[derive(Debug, Clone)]
pub struct End {
    pub session: u64,
    /// By the clock of this end that stands still while its machine sleeps.
    pub heard: u64,
}

/// Silence after which an end gives its session up, and how often it says something, as
/// `Line::silence` of a LAN and `QUIC_KEEP_ALIVE`.
pub const IDLE: u64 = pomona_common::Line::Lan.silence().as_millis() as u64;
pub const KEEP_ALIVE: u64 = pomona_common::limits::QUIC_KEEP_ALIVE.as_millis() as u64;
