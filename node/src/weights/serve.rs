//! Gives weights to other nodes of the cluster.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use pomona_common::weights::{Manifest, WeightsRequest};
use pomona_common::{ModelName, NodeId};
use pomona_link::{Accepted, Endpoint, FrameReceiver, FrameSender, LinkError, Pace, Session};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::blocking;
use crate::store::Store;

/// Nodes that are served at once.
const SESSIONS: usize = 16;
/// Chunks of one node that are read and sent at once.
const STREAMS: usize = 8;
/// A node says what it wants within this time.
const REQUEST: Duration = Duration::from_secs(5);

/// See the module's documentation.
pub struct WeightsServer {
    endpoint: Arc<Endpoint>,
    store: Store,
    pace: Pace,
    /// Nodes that may be served; empty before a coordinator has said so.
    members: watch::Receiver<Arc<BTreeSet<NodeId>>>,
}

impl WeightsServer {
    /// Serves from this store on this port.
    pub fn new(
        endpoint: Arc<Endpoint>,
        store: Store,
        pace: Pace,
        members: watch::Receiver<Arc<BTreeSet<NodeId>>>,
    ) -> Self {
        Self {
            endpoint,
            store,
            pace,
            members,
        }
    }

    /// Runs until the stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let this = self;
        let mut sessions = JoinSet::new();
        loop {
            let incoming = tokio::select! {
                incoming = this.endpoint.accept() => incoming,
                _ = sessions.join_next(), if !sessions.is_empty() => continue,
                () = stop.cancelled() => return,
            };
            let Some(incoming) = incoming else {
                return;
            };
            if sessions.len() >= SESSIONS {
                continue;
            }
            let this = this.clone();
            sessions.spawn(async move {
                match incoming.finish().await {
                    Ok(Accepted::Session(session)) => this.serve(session).await,
                    Ok(Accepted::Joining(_) | Accepted::Renewing(_)) => {}
                    Err(error) => tracing::debug!(%error, "weights session refused"),
                }
            });
        }
    }

    /// Serves one node as long as it belongs to the cluster.
    async fn serve(&self, session: Session) {
        let Some(peer) = session.peer().role.node() else {
            return;
        };
        let mut members = self.members.clone();
        let shut_out = members.wait_for(|members| !members.contains(&peer));
        tokio::select! {
            // Beside everything else, so that a node which reads nothing cannot outlive it.
            biased;
            _ = shut_out => session.close("this node is not of the cluster"),
            () = self.answer(&session) => {}
        }
    }

    /// Serves whoever a coordinator lets ask in a session that this node has opened; the coordinator
    /// has checked who that is. Comes back when the coordinator ends it, which it does when nothing is
    /// asked for a while.
    pub async fn serve_through(&self, session: &Session) {
        self.answer(session).await;
    }

    async fn answer(&self, session: &Session) {
        let slots = Arc::new(Semaphore::new(STREAMS));
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                stream = session.accept() => {
                    let Ok((send, receive)) = stream else {
                        return;
                    };
                    let (store, pace, slots) = (self.store.clone(), self.pace.clone(), slots.clone());
                    streams.spawn(async move {
                        let _slot = slots.acquire().await;
                        if let Err(error) = give(&store, &pace, send, receive).await {
                            tracing::debug!(%error, "weights stream ended");
                        }
                    });
                }
                _ = streams.join_next(), if !streams.is_empty() => {}
            }
        }
    }
}

async fn give(
    store: &Store,
    pace: &Pace,
    mut send: FrameSender,
    mut receive: FrameReceiver,
) -> Result<(), LinkError> {
    let request = receive.expect::<WeightsRequest>(REQUEST).await?;
    let store = store.clone();
    // Dropping the stream without finishing it tells the peer that there is nothing.
    let nothing = |error: io::Error| LinkError::Closed(error.to_string());
    match request {
        WeightsRequest::Manifest(model) => {
            let manifest = blocking(move || store.manifest(&model).map_err(io::Error::other)).await;
            send.send(&*manifest.map_err(nothing)?).await?;
        }
        WeightsRequest::Chunk { model, file, chunk } => {
            let bytes = blocking(move || read(&store, &model, file, chunk))
                .await
                .map_err(nothing)?;
            pace.admit(bytes.len()).await;
            send.send_owned(bytes).await?;
        }
    }
    send.finish();
    Ok(())
}

fn read(store: &Store, model: &ModelName, file: u16, chunk: u32) -> io::Result<Vec<u8>> {
    let manifest: Arc<Manifest> = store.manifest(model).map_err(io::Error::other)?;
    let wanted = manifest.files.get(usize::from(file));
    let range = wanted.and_then(|file| Some((file, file.range(chunk)?)));
    let (wanted, (at, len)) = range.ok_or_else(|| io::Error::other("no such chunk"))?;
    let mut file = File::open(store.path(model).join(&wanted.name))?;
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::with_capacity(len);
    if file.take(len as u64).read_to_end(&mut bytes)? < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}
