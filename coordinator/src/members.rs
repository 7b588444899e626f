//! What keeps the members of the Raft group as the records of coordinators say, and this
//! coordinator's own record as it is.

use std::net::SocketAddr;
use std::time::Duration;

use pomona_decide::{Command, Reply, next_member_change};
use pomona_raft::Replica;
use tokio_util::sync::CancellationToken;

use crate::address::reachable;
use crate::peers::Peers;

/// Without news this often: a learner catches up, an address changes.
const PERIOD: Duration = Duration::from_millis(500);
/// Who was refused asks again after this time.
const REFUSED: Duration = Duration::from_secs(10);
/// A change of members is committed within this time, or tried again.
const CHANGE: Duration = Duration::from_secs(5);

/// What a coordinator says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Announcement {
    pub(crate) name: String,
    pub(crate) laptop: bool,
    /// What it is bound to.
    pub(crate) listens: SocketAddr,
}

/// Lets the members follow the records, while this coordinator leads.
pub(crate) async fn follow_records(replica: Replica, stop: CancellationToken) {
    let mut state = replica.state();
    loop {
        if replica.is_leader() {
            let records = state.borrow_and_update().coordinators.clone();
            if let Some((change, why)) = next_member_change(&records, &replica.members()) {
                tracing::info!(?change, why, "coordinators change");
                match tokio::time::timeout(CHANGE, replica.change_members(change)).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => tracing::info!(%error, "change of coordinators waits"),
                    Err(_) => tracing::warn!("change of coordinators is not committed yet"),
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            changed = state.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// Keeps this coordinator's record: its address may change at any time.
pub(crate) async fn announce(replica: Replica, own: Announcement, peers: Peers, stop: CancellationToken) {
    loop {
        let wait = match announce_once(&replica, &own, &peers).await {
            Some(why) => {
                tracing::warn!(why, "this coordinator is not welcome");
                REFUSED
            }
            None => PERIOD,
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Why the cluster refuses this coordinator, if it does.
pub(crate) async fn announce_once(replica: &Replica, own: &Announcement, peers: &Peers) -> Option<String> {
    let number = replica.number();
    let address = reachable(own.listens, peers.some_peer());
    let command = {
        let state = replica.known();
        let is_said = state
            .coordinators
            .get(&number)
            .is_some_and(|record| record.address == Some(address) && record.laptop == own.laptop);
        if is_said || state.has_removed_coordinator(number) {
            return None;
        }
        Command::AnnounceCoordinator {
            number,
            name: own.name.clone(),
            laptop: own.laptop,
            address,
        }
    };
    match replica.write(command).await {
        Ok(Reply::Refused(why)) => Some(why),
        Ok(Reply::Done | Reply::Unchanged) => None,
        Err(error) => {
            tracing::debug!(%error, "address not announced yet");
            None
        }
    }
}
