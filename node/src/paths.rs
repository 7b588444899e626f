//! Measures the lines to the coordinators that this node has sessions with, and changes to a faster
//! one when nothing runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pomona_link::{LinkError, Purpose};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::coordinators::Coordinators;
use crate::session::SessionContext;

/// How often is looked whether something is to be measured.
const LOOK: Duration = Duration::from_secs(1);
/// Addresses of one coordinator that are measured.
const ADDRESSES: usize = 8;

/// Runs until the stop.
pub(crate) async fn watch(
    coordinators: Coordinators,
    context: Arc<SessionContext>,
    stopped: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stopped.cancelled() => return,
        }
        while let Some((peer, addresses)) = coordinators.paths_due() {
            if addresses.len() < 2 {
                continue;
            }
            let mut measuring = JoinSet::new();
            for address in addresses.into_iter().take(ADDRESSES) {
                let context = context.clone();
                measuring.spawn(async move { Some((address, measure(&context, peer, address).await.ok()?)) });
            }
            let measured = measuring.join_all().await;
            let round_trips: BTreeMap<_, _> = measured.into_iter().flatten().collect();
            let Some(faster) = coordinators.paths_measured(peer, round_trips) else {
                continue;
            };
            // Answers that this node makes would have to move: they end first.
            if context.is_idle() {
                tracing::info!(coordinator = peer, ?faster, "a faster line is taken");
                coordinators.take_line(peer, faster.address);
            } else {
                coordinators.take_line_later(peer);
            }
        }
    }
}

/// The round trip of a handshake there: what every line pays alike is in all of them.
async fn measure(context: &SessionContext, peer: u64, address: SocketAddr) -> Result<Duration, LinkError> {
    let identity = context.credentials.identity(context.id)?;
    let dialler = &context.dialler;
    let session = dialler.dial(address, Purpose::Control, &identity).await?;
    let round_trip = session.round_trip();
    let found = session.peer().role.coordinator();
    session.close("measured");
    if found == Some(peer) {
        Ok(round_trip)
    } else {
        Err(LinkError::Closed("another coordinator is there".into()))
    }
}
