//! Machines that join: the token's proof is checked here, the token is consumed in the log, and
//! only the committed winner gets a certificate.

use pomona_common::join::{JoinAnswer, JoinRequest};
use pomona_common::{NodeId, limits};
use pomona_decide::{Command, Reply};
use pomona_link::{Joining, Proofs, join};
use pomona_raft::Replica;
use tokio::sync::Semaphore;

use crate::{Reception, now_s};

/// Serves one machine that wants to join.
pub(crate) async fn serve(joining: Joining, reception: &Reception, joins: &Semaphore) {
    let decide = |request: JoinRequest, proofs: Proofs| async move {
        let answer = match joins.try_acquire() {
            Ok(_permit) => answer(&request, &proofs, reception).await,
            Err(_) => JoinAnswer::Refused("too many machines join at once, try again in a moment".into()),
        };
        match &answer {
            JoinAnswer::Admitted { .. } => {
                tracing::info!(node = %request.node, token = %request.token, "node joined")
            }
            JoinAnswer::Refused(why) => {
                tracing::warn!(node = %request.node, token = %request.token, why, "join refused")
            }
        }
        answer
    };
    if let Err(error) = joining.serve(decide).await {
        tracing::info!(%error, "join given up");
    }
}

async fn answer(request: &JoinRequest, proofs: &Proofs, reception: &Reception) -> JoinAnswer {
    let Reception {
        replica, authority, ..
    } = reception;
    let refused = |why: &str| JoinAnswer::Refused(why.to_owned());
    if request.name.len() > 4 * limits::NODE_NAME_CHARS {
        return refused("the name is too long");
    }
    let token = replica.state().borrow().tokens.get(&request.token).cloned();
    // One text for both: who does not know the secret learns nothing about the token.
    if !token.is_some_and(|token| proofs.hold(request, token.verifier)) {
        return refused("this token is not open here: it was used, revoked, has expired, or is damaged");
    }
    let certificate = match authority.certify_node(request.node, &request.public_key) {
        Ok(certificate) => certificate,
        Err(error) => return refused(&error.to_string()),
    };
    let command = Command::ConsumeToken {
        token: request.token,
        node: request.node,
        name: request.name.clone(),
        key: join::print_of(&request.public_key),
        approved: !reception.approve_manually,
        now_s: now_s(),
    };
    match replica.write(command).await {
        // Unchanged: the answer to an earlier try of the same machine was lost.
        Ok(Reply::Done | Reply::Unchanged) => JoinAnswer::Admitted {
            certificate,
            coordinators: Vec::new(),
            approved: is_approved(replica, request.node),
        },
        Ok(Reply::Refused(why)) => JoinAnswer::Refused(why),
        Err(error) => JoinAnswer::Refused(format!("the cluster cannot write now, try again: {error}")),
    }
}

fn is_approved(replica: &Replica, node: NodeId) -> bool {
    let state = replica.state();
    let state = state.borrow();
    state.nodes.get(&node).is_some_and(|record| record.approved)
}
