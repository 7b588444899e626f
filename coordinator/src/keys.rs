//! API keys at this coordinator's endpoint: what it knows of them, and what it tells of spending.

use std::time::Duration;

use pomona_api::Access;
use pomona_clocks::wall_s;
use pomona_common::spending::EntryId;
use pomona_decide::{ClusterState, Command};
use pomona_raft::Replica;
use tokio_util::sync::CancellationToken;

/// Spending is told this often: what other entries let through meanwhile is the slack of all limits.
const TELLS: Duration = Duration::from_secs(1);

/// A write takes as long as an election at most.
const TELLS_WITHIN: Duration = Duration::from_secs(10);
/// How long a coordinator that stops waits for what it has not told yet.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Keeps what the endpoint knows as the cluster has it, until the stop.
pub(crate) async fn follow(replica: Replica, access: Access, stop: CancellationToken) {
    let mut state = replica.state();
    let entry = EntryId::Coordinator(replica.number());
    loop {
        let seen = state.borrow_and_update().clone();
        learn(&access, &seen, entry);
        tokio::select! {
            changed = state.changed() => if changed.is_err() {
                return;
            },
            () = stop.cancelled() => return,
        }
    }
}

pub(crate) fn learn(access: &Access, state: &ClusterState, entry: EntryId) {
    let book = &state.keys;
    access.learn(|ring| {
        if ring.keys != book.keys {
            ring.keys.clone_from(&book.keys);
        }
        if ring.spent != book.spent {
            ring.spent.clone_from(&book.spent);
        }
        ring.charged = book.charged.get(&entry).map(|counted| counted.latest);
    });
}

/// Tells the cluster what the keys took here, until the stop. What could not be told is told again.
pub(crate) async fn tell(replica: Replica, access: Access, stop: CancellationToken) {
    let entry = EntryId::Coordinator(replica.number());
    let mut ticks = tokio::time::interval(TELLS);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let is_last = tokio::select! {
            _ = ticks.tick() => false,
            () = stop.cancelled() => true,
        };
        if let Some(batch) = access.batch() {
            let charges = vec![(entry, batch)];
            let now_s = wall_s();
            let written = replica.write(Command::ChargeKeys { charges, now_s });
            match tokio::time::timeout(if is_last { LAST_WORD } else { TELLS_WITHIN }, written).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(%error, "what keys took here is not counted yet"),
                Err(_) => tracing::debug!("what keys took here is not counted in time"),
            }
        }
        if is_last {
            return;
        }
    }
}
