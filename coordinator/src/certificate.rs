//! The coordinator's own certificate, and those of nodes that have slept past theirs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pomona_common::NodeId;
use pomona_common::renew::RenewAnswer;
use pomona_decide::{ClusterState, Command, Reply};
use pomona_link::renew::Renewal;
use pomona_link::{Authority, Endpoint, Renewing, Role};
use pomona_raft::Replica;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::Reception;

/// Certificates are replaced at half of their 24 hours.
const RENEW_AFTER: Duration = Duration::from_secs(12 * 3600);
/// How often their age is looked at.
const RENEW_LOOK: Duration = Duration::from_secs(60);

/// Renews the own one by the wall clock: a timer would not count the time that the machine slept.
pub(crate) async fn keep_current(
    endpoint: Arc<Endpoint>,
    authority: Arc<Authority>,
    number: u64,
    stop: CancellationToken,
) {
    let mut renewed = pomona_clocks::wall();
    loop {
        tokio::select! {
            () = tokio::time::sleep(RENEW_LOOK) => {}
            () = stop.cancelled() => return,
        }
        if !is_due(renewed) {
            continue;
        }
        match issue(&endpoint, &authority, number) {
            Ok(()) => renewed = pomona_clocks::wall(),
            Err(error) => tracing::error!(%error, "certificate not renewed"),
        }
    }
}

/// A clock that was set back says nothing about the age: renew then as well.
fn is_due(renewed: SystemTime) -> bool {
    let age = pomona_clocks::wall().duration_since(renewed);
    age.is_err() || age.is_ok_and(|age| age >= RENEW_AFTER)
}

/// Takes a fresh certificate.
///
/// # Errors
/// The system gives no randomness.
pub(crate) fn issue(
    endpoint: &Endpoint,
    authority: &Authority,
    number: u64,
) -> Result<(), pomona_link::LinkError> {
    let identity = authority.issue(Role::Coordinator(number))?;
    endpoint.renew(identity)
}

/// Serves a node whose certificate has run out.
pub(crate) async fn renew(renewing: Renewing, reception: &Reception, joins: &Semaphore) {
    // Before anything is worked out for somebody who has shown nothing yet; the node dials again.
    let Ok(_permit) = joins.try_acquire() else {
        return;
    };
    let decide = |renewal: Renewal| async move {
        let answer = answer(&renewal, reception).await;
        match &answer {
            RenewAnswer::Renewed { .. } => tracing::info!(node = %renewal.node, "certificate renewed late"),
            RenewAnswer::Refused(why) => tracing::warn!(node = %renewal.node, why, "renewal refused"),
        }
        answer
    };
    if let Err(error) = renewing.serve(decide).await {
        tracing::info!(%error, "renewal given up");
    }
}

async fn answer(renewal: &Renewal, reception: &Reception) -> RenewAnswer {
    // It may have been shut out while it slept, at another coordinator a moment ago.
    let state = match reception.replica.read().await {
        Ok(state) => state,
        Err(error) => return RenewAnswer::Refused(error.to_string()),
    };
    if !state.nodes.contains_key(&renewal.node) && !state.has_revoked(renewal.node, renewal.key) {
        return RenewAnswer::Refused("the cluster does not know this node: join anew".into());
    }
    if let Some(why) = state.refuses(renewal.node, renewal.key) {
        return RenewAnswer::Refused(why.into());
    }
    if reception.approve_manually
        && let Err(why) = approved_again(&state, renewal.node, &reception.replica).await
    {
        return RenewAnswer::Refused(why);
    }
    match reception
        .authority
        .certify_node(renewal.node, &renewal.public_key)
    {
        Ok(certificate) => RenewAnswer::Renewed { certificate },
        Err(error) => RenewAnswer::Refused(error.to_string()),
    }
}

/// Under manual approval, whoever slept past its certificate is looked at by the operator again. Who was
/// may ask until it is here (`trust_again`): the answer gets lost, and `pomona doctor` asks as well.
async fn approved_again(state: &ClusterState, node: NodeId, replica: &Replica) -> Result<(), String> {
    let is_approved = state.nodes.get(&node).is_some_and(|record| record.approved);
    if state.late.contains(&node) && is_approved {
        return Ok(());
    }
    match replica.write(Command::DoubtNode(node)).await {
        Ok(Reply::Refused(why)) => Err(why),
        Ok(_) => {
            Err("its certificate had run out, so an operator approves it again: `pomona node approve`".into())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// A node that was let in again is here with a good certificate: the next time it is late, it is asked
/// for anew.
pub(crate) async fn trust_again(replica: Replica, node: NodeId) {
    let why = match replica.write(Command::TrustNode(node)).await {
        Ok(Reply::Refused(why)) => why,
        Ok(_) => return,
        Err(error) => error.to_string(),
    };
    tracing::warn!(%node, why, "not noted that a late node is back; its next session does it");
}
