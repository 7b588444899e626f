//! Replicated state: openraft 0.9 over redb. What a command does is decided in `pomona-decide`;
//! this crate makes it durable and agreed upon.
#![forbid(unsafe_code)]

mod log_store;
mod network;
mod replica;
mod state_machine;
mod tables;

use std::io::Cursor;

pub use network::{RpcKind, Transport};
pub use replica::{RaftError, Replica, ReplicaConfig};

openraft::declare_raft_types!(
    /// Types of the Raft instance: commands and replies of `pomona-decide`.
    pub(crate) TypeConfig:
        D = pomona_decide::Command,
        R = pomona_decide::Reply,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);
