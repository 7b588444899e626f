//! The coordinators: who they are, which of them vote, and who leaves.

use axum::Router;
use axum::extract::Path as UrlPath;
use axum::http::StatusCode;
use axum::routing::{delete, get};
use pomona_decide::Command;
use pomona_raft::{Replica, Transport};
use serde_json::{Value, json};

use super::{Admin, Answer, Asked, reply, write};
use crate::peers::Peers;

/// The paths below `/admin/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/admin/v1/coordinators", get(list))
        .route("/admin/v1/coordinators/{number}", delete(remove))
}

async fn list(admin: Asked) -> Answer {
    let listed = listed(&admin.backend.replica, &admin.peers);
    reply(StatusCode::OK, &listed.into())
}

async fn remove(admin: Asked, UrlPath(number): UrlPath<String>) -> Answer {
    match number.parse() {
        Ok(number) => write(&admin, Command::RemoveCoordinator(number)).await,
        Err(_) => {
            let why = format!("`{number}` is not a coordinator's number; see `pomona coordinator list`");
            reply(StatusCode::BAD_REQUEST, &json!({ "error": why }))
        }
    }
}

/// Every coordinator as it is seen from here; without a quorum this may be old.
pub(super) fn listed(replica: &Replica, peers: &Peers) -> Vec<Value> {
    let state = replica.known();
    let (members, leader, connected) = (replica.members(), replica.leader(), peers.peers());
    let records = state.coordinators.iter();
    records
        .map(|(number, record)| {
            let itself = *number == replica.number();
            json!({
                "number": number,
                "name": record.name,
                "address": record.address,
                "laptop": record.laptop,
                "votes": members.voters.contains(number),
                "behind": members.learners.get(number),
                "leads": leader == Some(*number),
                "connected": itself || connected.contains(number),
                "this": itself,
            })
        })
        .collect()
}
