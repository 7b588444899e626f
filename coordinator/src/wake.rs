//! What a coordinator does when its machine has slept. The other ends have given its sessions up, and
//! what nodes reported is as old as the sleep, though `Instant` does not say so on a Mac: everybody
//! begins anew, with a certificate of today.

use std::sync::Arc;

use pomona_clocks::SleepWatch;
use pomona_link::{Authority, Endpoint};
use tokio_util::sync::CancellationToken;

use crate::certificate;
use crate::peers::Peers;
use crate::sessions::Sessions;

/// See the module's documentation.
pub(crate) async fn watch(
    endpoint: Arc<Endpoint>,
    authority: Arc<Authority>,
    (sessions, peers): (Arc<Sessions>, Peers),
    stop: CancellationToken,
) {
    let mut watch = SleepWatch::default();
    loop {
        let slept = tokio::select! {
            slept = pomona_clocks::next_wake(&mut watch) => slept,
            () = stop.cancelled() => return,
        };
        tracing::info!(seconds = slept.as_secs(), "the machine slept");
        if let Err(error) = certificate::issue(&endpoint, &authority, peers.number()) {
            tracing::error!(%error, "certificate not renewed");
        }
        let why = "the coordinator's machine slept";
        sessions.close_all(why);
        peers.close_all(why);
    }
}
