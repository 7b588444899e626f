//! Raft's calls between coordinators, over a transport of the owner's.

use std::future::Future;
use std::io;

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, RaftNetwork, RaftNetworkFactory};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TypeConfig;
use crate::tables::{decode, encode};

/// Which of Raft's calls a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RpcKind {
    /// AppendEntries, heartbeats included.
    Append,
    /// RequestVote.
    Vote,
    /// One chunk of a snapshot.
    Snapshot,
}

/// Carries one call to another coordinator and brings its answer. Must have a deadline.
pub trait Transport: Clone + Send + Sync + 'static {
    /// Calls the coordinator at `address`.
    fn call(
        &self,
        address: String,
        kind: RpcKind,
        body: Vec<u8>,
    ) -> impl Future<Output = io::Result<Vec<u8>>> + Send;
}

pub(crate) struct Network<T> {
    pub(crate) transport: T,
}

pub(crate) struct Peer<T> {
    transport: T,
    id: u64,
    address: String,
}

impl<T: Transport> RaftNetworkFactory<TypeConfig> for Network<T> {
    type Network = Peer<T>;

    async fn new_client(&mut self, id: u64, node: &BasicNode) -> Peer<T> {
        Peer {
            transport: self.transport.clone(),
            id,
            address: node.addr.clone(),
        }
    }
}

type CallError<E> = RPCError<u64, BasicNode, RaftError<u64, E>>;

impl<T: Transport> Peer<T> {
    async fn call<Q, A, E>(&self, kind: RpcKind, request: &Q) -> Result<A, CallError<E>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let body = encode(request).map_err(|error| NetworkError::new(&error))?;
        let answer = self
            .transport
            .call(self.address.clone(), kind, body)
            .await
            .map_err(|error| Unreachable::new(&error))?;
        let answer: Result<A, RaftError<u64, E>> =
            decode(&answer).map_err(|error| NetworkError::new(&error))?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.id, error)))
    }
}

impl<T: Transport> RaftNetwork<TypeConfig> for Peer<T> {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError<openraft::error::Infallible>> {
        self.call(RpcKind::Append, &request).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, CallError<InstallSnapshotError>> {
        self.call(RpcKind::Snapshot, &request).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError<openraft::error::Infallible>> {
        self.call(RpcKind::Vote, &request).await
    }
}
