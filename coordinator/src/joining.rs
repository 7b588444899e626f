//! Machines that join: the token's proof is checked here, the token is consumed in the log, and
//! only the committed winner gets a certificate.

use pomona_clocks::wall_s;
use pomona_common::join::{JoinAnswer, JoinRequest};
use pomona_common::limits;
use pomona_decide::{Admits, Command, Reply};
use pomona_link::{Joining, Proofs, join};
use tokio::sync::Semaphore;

use crate::Reception;

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
            JoinAnswer::Coordinator { number, .. } => {
                tracing::info!(number, token = %request.token, "coordinator joined")
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
    // The token may have been made, used or revoked at another coordinator a moment ago.
    let state = match replica.read().await {
        Ok(state) => state,
        Err(error) => return refused(&error.to_string()),
    };
    let token = state.tokens.get(&request.token);
    // One text for both: who does not know the secret learns nothing about the token.
    let Some(token) = token.filter(|token| proofs.hold(request, token.verifier)) else {
        return refused("this token is not open here: it was used, revoked, has expired, or is damaged");
    };
    let key = join::print_of(&request.public_key);
    let command = Command::ConsumeToken {
        token: request.token,
        node: request.node,
        name: request.name.clone(),
        key,
        approved: !reception.approve_manually,
        now_s: wall_s(),
    };
    match replica.write(command).await {
        // Unchanged: the answer to an earlier try of the same machine was lost.
        Ok(Reply::Done | Reply::Unchanged) => {}
        Ok(Reply::Refused(why)) => return JoinAnswer::Refused(why),
        Err(error) => return refused(&format!("the cluster cannot write now, try again: {error}")),
    }
    let state = replica.known();
    let answer = match token.admits {
        Admits::Node(_) => authority
            .certify_node(request.node, &request.public_key)
            .map(|certificate| JoinAnswer::Admitted {
                certificate,
                coordinators: state
                    .coordinator_addresses()
                    .into_iter()
                    .map(|(_, at)| at)
                    .collect(),
                approved: state
                    .nodes
                    .get(&request.node)
                    .is_some_and(|record| record.approved),
            }),
        Admits::Coordinator => proofs.seal(authority, token.verifier).map(|sealed_key| {
            match state.coordinator_joined_as((request.node, key)) {
                Some(number) => JoinAnswer::Coordinator {
                    number,
                    sealed_key,
                    coordinators: state.coordinator_addresses(),
                },
                None => JoinAnswer::Refused("this coordinator was removed again".into()),
            }
        }),
    };
    answer.unwrap_or_else(|error| refused(&error.to_string()))
}
