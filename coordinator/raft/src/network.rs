//! Calls between coordinators, over a transport of the owner's.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, Entry, EntryPayload, RaftNetwork, RaftNetworkFactory};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TypeConfig;
use crate::tables::{decode, encode_since};

/// A coordinator that is not reached is tried again after this time: it dials by itself when it
/// is back, and a try that finds no session costs nothing.
const TRY_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// Which call a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RpcKind {
    /// AppendEntries, heartbeats included.
    Append,
    /// RequestVote.
    Vote,
    /// One chunk of a snapshot.
    Snapshot,
    /// A command for the leader to commit.
    Write,
    /// The index up to which the leader's state is current.
    ReadIndex,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no session with that coordinator: it knows nothing of the call.
    #[error("coordinator is not connected")]
    NotConnected,
    /// It may have got the call.
    #[error("coordinator did not answer")]
    Unanswered(#[source] io::Error),
}

/// Carries one call to another coordinator and brings its answer. Must have a deadline.
pub trait Transport: Clone + Send + Sync + 'static {
    /// The coordinators that there are sessions with.
    fn peers(&self) -> Vec<u64>;

    /// The newest version of stored values that a coordinator reads, as it said last, there now or not;
    /// none when it was not there since the start.
    fn version(&self, peer: u64) -> Option<u16>;

    /// Calls the coordinator with this number.
    fn call(
        &self,
        peer: u64,
        kind: RpcKind,
        body: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>, CallError>> + Send;
}

type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>, CallError>> + Send>>;

/// A transport without its type.
#[derive(Clone)]
pub(crate) struct Caller(Arc<dyn Calls>);

trait Calls: Send + Sync {
    fn peers(&self) -> Vec<u64>;
    fn version(&self, peer: u64) -> Option<u16>;
    fn call(&self, peer: u64, kind: RpcKind, body: Vec<u8>) -> Answer;
}

impl<T: Transport> Calls for T {
    fn peers(&self) -> Vec<u64> {
        Transport::peers(self)
    }

    fn version(&self, peer: u64) -> Option<u16> {
        Transport::version(self, peer)
    }

    fn call(&self, peer: u64, kind: RpcKind, body: Vec<u8>) -> Answer {
        let transport = self.clone();
        Box::pin(async move { Transport::call(&transport, peer, kind, body).await })
    }
}

impl Caller {
    pub(crate) fn new(transport: impl Transport) -> Self {
        Self(Arc::new(transport))
    }

    pub(crate) fn peers(&self) -> Vec<u64> {
        self.0.peers()
    }

    pub(crate) fn version(&self, peer: u64) -> Option<u16> {
        self.0.version(peer)
    }

    pub(crate) fn call(&self, peer: u64, kind: RpcKind, body: Vec<u8>) -> Answer {
        self.0.call(peer, kind, body)
    }
}

pub(crate) struct Network {
    pub(crate) caller: Caller,
}

pub(crate) struct Peer {
    caller: Caller,
    id: u64,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, id: u64, _: &EmptyNode) -> Peer {
        Peer {
            caller: self.caller.clone(),
            id,
        }
    }
}

/// Version that is needed to read an entry of the log: all read those without a command.
pub(crate) fn since(entry: &Entry<TypeConfig>) -> u8 {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.command.since(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

type RpcError<E> = RPCError<u64, EmptyNode, RaftError<u64, E>>;

impl Peer {
    async fn call<Q, A, E>(&self, kind: RpcKind, request: &Q, since: u8) -> Result<A, RpcError<E>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let body = encode_since(request, since).map_err(|error| NetworkError::new(&error))?;
        let answer = self
            .caller
            .call(self.id, kind, body)
            .await
            .map_err(|error| Unreachable::new(&error))?;
        let answer: Result<A, RaftError<u64, E>> =
            decode(&answer).map_err(|error| NetworkError::new(&error))?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.id, error)))
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError<openraft::error::Infallible>> {
        let since = request.entries.iter().map(since).max().unwrap_or_default();
        self.call(RpcKind::Append, &request, since).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RpcError<InstallSnapshotError>> {
        self.call(RpcKind::Snapshot, &request, 0).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError<openraft::error::Infallible>> {
        self.call(RpcKind::Vote, &request, 0).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(TRY_AGAIN))
    }
}
