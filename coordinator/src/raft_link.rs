//! Raft's messages over QUIC: one stream a call, on a connection of its own per peer.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pomona_common::limits;
use pomona_link::{Endpoint, FrameReceiver, FrameSender, LinkError, Purpose, Session};
use pomona_raft::{Replica, RpcKind, Transport};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// A call is answered within this time, snapshots included.
const CALL: Duration = Duration::from_secs(5);
/// Longest message: a chunk of a snapshot, or a batch of log entries.
const MESSAGE: usize = limits::RAFT_SNAPSHOT_BYTES;

/// Dials other coordinators and keeps one session with each.
#[derive(Clone)]
pub(crate) struct RaftLink {
    endpoint: Arc<Endpoint>,
    sessions: Arc<Mutex<BTreeMap<String, Session>>>,
}

impl RaftLink {
    pub(crate) fn new(endpoint: Arc<Endpoint>) -> Self {
        Self {
            endpoint,
            sessions: Arc::default(),
        }
    }

    async fn session(&self, address: &str) -> Result<Session, LinkError> {
        let mut sessions = self.sessions.lock().await;
        if let Some(session) = sessions.get(address) {
            return Ok(session.clone());
        }
        let socket: SocketAddr = address
            .parse()
            .map_err(|_| LinkError::Closed(format!("`{address}` is not an address")))?;
        let session = self.endpoint.dial(socket, Purpose::Raft).await?;
        sessions.insert(address.to_owned(), session.clone());
        Ok(session)
    }

    async fn exchange(&self, address: &str, kind: RpcKind, body: &[u8]) -> Result<Vec<u8>, LinkError> {
        let session = self.session(address).await?;
        let (mut send, mut receive) = session.open().await?;
        send.send_bytes(&[code(kind)]).await?;
        send.send_bytes(body).await?;
        send.finish();
        receive.rest(MESSAGE).await
    }
}

impl Transport for RaftLink {
    async fn call(&self, address: String, kind: RpcKind, body: Vec<u8>) -> io::Result<Vec<u8>> {
        let exchanged = tokio::time::timeout(CALL, self.exchange(&address, kind, &body)).await;
        match exchanged {
            Ok(Ok(answer)) => Ok(answer),
            failed => {
                // The next call dials again.
                self.sessions.lock().await.remove(&address);
                Err(match failed {
                    Ok(Err(error)) => io::Error::other(error),
                    _ => io::Error::from(io::ErrorKind::TimedOut),
                })
            }
        }
    }
}

/// Answers the calls of another coordinator until its session ends.
pub(crate) async fn serve(session: Session, replica: Replica) {
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            stream = session.accept() => match stream {
                Ok((send, receive)) => {
                    let replica = replica.clone();
                    calls.spawn(async move {
                        if let Err(error) = answer(send, receive, replica).await {
                            tracing::debug!(%error, "raft call failed");
                        }
                    });
                }
                Err(_) => return,
            },
            _ = calls.join_next(), if !calls.is_empty() => {}
        }
    }
}

async fn answer(
    mut send: FrameSender,
    mut receive: FrameReceiver,
    replica: Replica,
) -> Result<(), LinkError> {
    let message = tokio::time::timeout(CALL, receive.rest(MESSAGE))
        .await
        .map_err(|_| LinkError::Deadline(CALL))??;
    let bad = || LinkError::Closed("not a raft message".into());
    let (first, body) = message.split_first().ok_or_else(bad)?;
    let kind = [RpcKind::Append, RpcKind::Vote, RpcKind::Snapshot]
        .into_iter()
        .find(|kind| code(*kind) == *first)
        .ok_or_else(bad)?;
    let answer = replica
        .serve(kind, body)
        .await
        .map_err(|error| LinkError::Closed(error.to_string()))?;
    send.send_bytes(&answer).await?;
    send.finish();
    Ok(())
}

const fn code(kind: RpcKind) -> u8 {
    match kind {
        RpcKind::Append => 1,
        RpcKind::Vote => 2,
        RpcKind::Snapshot => 3,
    }
}
