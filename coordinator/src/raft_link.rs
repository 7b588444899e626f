//! Calls between coordinators over QUIC: one stream a call, on a connection of its own per peer.
//!
//! A call is its kind as one byte and its body; the answer is what comes back on the stream.

use std::time::Duration;

use pomona_common::limits;
use pomona_link::{FrameReceiver, FrameSender, LinkError, Session};
use pomona_raft::{Replica, RpcKind};
use tokio::task::JoinSet;

/// A call is answered within this time, snapshots included.
const CALL: Duration = Duration::from_secs(5);
/// Longest message: a chunk of a snapshot, or a batch of log entries.
const MESSAGE: usize = limits::RAFT_SNAPSHOT_BYTES;

/// Calls the coordinator at the other end.
pub(crate) async fn call(session: &Session, kind: RpcKind, body: &[u8]) -> Result<Vec<u8>, LinkError> {
    let exchange = async {
        let (mut send, mut receive) = session.open().await?;
        send.send_bytes(&[code(kind)]).await?;
        send.send_bytes(body).await?;
        send.finish();
        receive.rest(MESSAGE).await
    };
    tokio::time::timeout(CALL, exchange)
        .await
        .map_err(|_| LinkError::Deadline(CALL))?
}

/// Answers the calls of another coordinator until its session ends.
pub(crate) async fn serve(session: &Session, replica: &Replica) {
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
    let kind = [
        RpcKind::Append,
        RpcKind::Vote,
        RpcKind::Snapshot,
        RpcKind::Write,
        RpcKind::ReadIndex,
    ]
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
        RpcKind::Write => 4,
        RpcKind::ReadIndex => 5,
    }
}
