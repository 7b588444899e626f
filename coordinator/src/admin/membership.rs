//! Tokens and nodes: who may come in, and who is shut out.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path as UrlPath;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use pomona_clocks::wall_s;
use pomona_common::{MachineRole, NodeId, TokenId, limits};
use pomona_decide::{Admits, ClusterState, Command, NodeRecord, TokenRecord};
use pomona_link::JoinToken;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Answer, Asked, bad, current, leases, parsed, reply, unavailable, write};
use crate::address::reachable;

/// The paths below `/admin/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/admin/v1/tokens", get(tokens).post(make_token))
        .route("/admin/v1/tokens/{id}", delete(revoke_token))
        .route(
            "/admin/v1/nodes/{node}",
            get(show_node).delete(revoke_node).patch(rename_node),
        )
        .route("/admin/v1/nodes/{node}/approval", post(approve_node))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    ttl_s: Option<u64>,
    role: Option<String>,
    name: String,
    lease: Option<leases::Wanted>,
}

async fn make_token(admin: Asked, body: Bytes) -> Answer {
    let wanted: Wanted = match parsed(&body) {
        Ok(wanted) => wanted,
        Err(answer) => return answer,
    };
    let admits = match wanted.role.as_deref() {
        None => Admits::Node(MachineRole::default()),
        Some("coordinator") => Admits::Coordinator,
        Some(role) => match role.parse() {
            Ok(role) => Admits::Node(role),
            Err(error) => return bad(error.to_string()),
        },
    };
    let life = wanted.ttl_s.map_or(limits::TOKEN_LIFE, Duration::from_secs);
    if life.is_zero() || life > limits::TOKEN_LIFE_MAX {
        return bad("a token lives for 1 second to 24 hours");
    }
    let token = match JoinToken::draw(admin.authority.cluster(), admin.authority.print()) {
        Ok(token) => token,
        Err(error) => {
            return unavailable(&error);
        }
    };
    let now_s = wall_s();
    let record = TokenRecord {
        verifier: token.verifier(),
        admits,
        name: wanted.name,
        expires_s: now_s + life.as_secs(),
        used_by: None,
    };
    let command = Command::OpenToken {
        id: token.id(),
        token: record.clone(),
        lease: wanted.lease.map(|lease| lease.from(now_s)),
        now_s,
    };
    let (status, head, body) = write(&admin, command).await;
    if status != StatusCode::OK {
        return (status, head, body);
    }
    let mut shown = token_json(token.id(), &record);
    // The only time that it is shown: the cluster keeps a hash.
    shown["token"] = token.to_string().into();
    shown["coordinator"] = reachable(admin.quic, admin.peers.some_peer()).to_string().into();
    reply(StatusCode::OK, &shown)
}

fn token_json(id: TokenId, token: &TokenRecord) -> Value {
    json!({ "id": id, "role": token.admits.to_string(), "name": token.name, "expires_s": token.expires_s })
}

async fn tokens(admin: Asked) -> Answer {
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    let now_s = wall_s();
    let open: Vec<Value> = state
        .tokens
        .iter()
        .filter(|(_, token)| token.expires_s > now_s && token.used_by.is_none())
        .map(|(id, token)| token_json(*id, token))
        .collect();
    reply(StatusCode::OK, &open.into())
}

async fn revoke_token(admin: Asked, UrlPath(id): UrlPath<String>) -> Answer {
    match id.parse::<TokenId>() {
        Ok(id) => write(&admin, Command::RevokeToken(id)).await,
        Err(error) => bad(error.to_string()),
    }
}

async fn revoke_node(admin: Asked, UrlPath(node): UrlPath<String>) -> Answer {
    match find(&admin, &node).await {
        Ok(node) => {
            write(
                &admin,
                Command::RevokeNode {
                    node,
                    now_s: wall_s(),
                },
            )
            .await
        }
        Err(answer) => answer,
    }
}

async fn show_node(admin: Asked, UrlPath(node): UrlPath<String>) -> Answer {
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    let id = match named(&state, &node) {
        Ok(id) => id,
        Err(why) => return reply(StatusCode::NOT_FOUND, &json!({ "error": why })),
    };
    let record = state.nodes.get(&id).cloned().unwrap_or_default();
    let words = record.key.map(|key| key.words());
    let shown = json!({
        "id": id, "name": record.name, "role": record.role, "approved": record.approved, "words": words,
    });
    reply(StatusCode::OK, &shown)
}

async fn approve_node(admin: Asked, UrlPath(node): UrlPath<String>) -> Answer {
    match find(&admin, &node).await {
        Ok(node) => write(&admin, Command::ApproveNode(node)).await,
        Err(answer) => answer,
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    name: String,
}

async fn rename_node(admin: Asked, UrlPath(node): UrlPath<String>, body: Bytes) -> Answer {
    let change: Change = match parsed(&body) {
        Ok(change) => change,
        Err(answer) => return answer,
    };
    match find(&admin, &node).await {
        Ok(node) => {
            write(
                &admin,
                Command::RenameNode {
                    node,
                    name: change.name,
                },
            )
            .await
        }
        Err(answer) => answer,
    }
}

pub(super) async fn find(admin: &Admin, text: &str) -> Result<NodeId, Answer> {
    let state = current(admin).await?;
    named(&state, text).map_err(|why| reply(StatusCode::NOT_FOUND, &json!({ "error": why })))
}

/// A node by its id, its name, or the beginning of its id that a table shows. Nodes choose their
/// names, so a text that may mean two nodes means none.
pub(super) fn named(state: &ClusterState, text: &str) -> Result<NodeId, String> {
    if let Some((id, _)) = state.nodes.iter().find(|(id, _)| id.to_string() == text) {
        return Ok(*id);
    }
    let means = |id: &NodeId, record: &NodeRecord| {
        record.name == text || (text.len() >= 4 && id.to_string().starts_with(text))
    };
    let mut found = state.nodes.iter().filter(|(id, record)| means(id, record));
    match (found.next(), found.next()) {
        (Some((id, _)), None) => Ok(*id),
        (Some(_), Some(_)) => Err(format!("`{text}` may mean several nodes; give the whole id")),
        (None, _) => Err(format!("no node `{text}`; see `pomona nodes`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_found_by_name_and_by_the_beginning_of_their_id() {
        let mut state = ClusterState::default();
        for (bits, name) in [
            (0xabcd_1234u128 << 96, "studio"),
            (0xabcd_5678u128 << 96, "abcd1234"),
        ] {
            let record = NodeRecord {
                name: name.into(),
                ..NodeRecord::default()
            };
            state.nodes.insert(NodeId::from_bits(bits), record);
        }
        let id = |bits: u128| Ok(NodeId::from_bits(bits << 96));
        assert_eq!(named(&state, "studio"), id(0xabcd_1234));
        assert_eq!(named(&state, "abcd5"), id(0xabcd_5678));
        assert!(
            named(&state, "abcd1234").is_err(),
            "one node's name, the other's id"
        );
        let whole = format!("abcd1234{}", "0".repeat(24));
        assert_eq!(named(&state, &whole), id(0xabcd_1234));
        assert!(named(&state, "abcd").is_err());
        assert!(named(&state, "").is_err());
    }
}
