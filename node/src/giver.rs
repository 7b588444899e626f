//! Gives weights through coordinators: a node that does not reach this one asks there, and the
//! coordinator asks this one in a session that this one opens, so that no port need be open here.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use pomona_common::NodeId;
use pomona_link::{Endpoint, LinkError, Purpose, any_port_toward};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::credentials::Credentials;
use crate::weights::WeightsServer;

/// Coordinators that are given weights at once.
const COORDINATORS: usize = 5;

/// A handle; clones share the sessions.
#[derive(Clone)]
pub(crate) struct Giver {
    asked: mpsc::Sender<SocketAddr>,
}

impl Giver {
    pub(crate) fn start(
        id: NodeId,
        credentials: Arc<Credentials>,
        server: Arc<WeightsServer>,
        tasks: &mut JoinSet<()>,
        stop: CancellationToken,
    ) -> Self {
        let (asked, receiver) = mpsc::channel(COORDINATORS);
        let work = Arc::new(Work {
            id,
            credentials,
            server,
        });
        tasks.spawn(async move {
            tokio::select! {
                () = work.run(receiver) => {}
                () = stop.cancelled() => {}
            }
        });
        Self { asked }
    }

    /// The coordinator at this address needs a session. It asks again while it has none.
    pub(crate) fn give_through(&self, coordinator: SocketAddr) {
        let _ = self.asked.try_send(coordinator);
    }
}

struct Work {
    id: NodeId,
    credentials: Arc<Credentials>,
    server: Arc<WeightsServer>,
}

impl Work {
    async fn run(self: Arc<Self>, mut asked: mpsc::Receiver<SocketAddr>) {
        let mut open = BTreeSet::new();
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                address = asked.recv() => {
                    let Some(address) = address else {
                        return;
                    };
                    if open.len() < COORDINATORS && open.insert(address) {
                        let this = self.clone();
                        sessions.spawn(async move {
                            if let Err(error) = this.give(address).await {
                                tracing::info!(%address, %error, "no weights through this coordinator");
                            }
                            address
                        });
                    }
                }
                Some(ended) = sessions.join_next() => match ended {
                    Ok(address) => {
                        open.remove(&address);
                    }
                    // One that broke does not say which it was: all may come again.
                    Err(_) => open.clear(),
                },
            }
        }
    }

    async fn give(&self, address: SocketAddr) -> Result<(), LinkError> {
        let identity = self.credentials.identity(self.id)?;
        let endpoint = Endpoint::client(any_port_toward(address), identity)?;
        let session = endpoint.dial(address, Purpose::Give).await?;
        tracing::info!(%address, "weights are given through this coordinator");
        self.server.serve_through(&session).await;
        Ok(())
    }
}
