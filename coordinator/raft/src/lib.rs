//! Replicated state: openraft 0.9 over redb. What a command does is decided in `pomona-decide`;
//! this crate makes it durable and agreed upon.
#![forbid(unsafe_code)]

mod log_store;
mod members;
mod network;
mod replica;
mod state_machine;
mod tables;
mod writing;

use std::io::Cursor;

pub use network::{CallError, RpcKind, Transport};
pub use replica::{RaftError, Replica, ReplicaConfig, Summary};
pub use state_machine::{decode_state, encode_state};

openraft::declare_raft_types!(
    /// Types of the Raft instance: commands and replies of `pomona-decide`. Where coordinators are
    /// is in the replicated state, and whoever carries the calls knows it: members have no address.
    pub(crate) TypeConfig:
        D = pomona_decide::Proposal,
        R = pomona_decide::Reply,
        NodeId = u64,
        Node = openraft::EmptyNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);
