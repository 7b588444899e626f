//! Until when rented nodes stay.

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path as UrlPath;
use axum::http::StatusCode;
use axum::routing::{post, put};
use pomona_clocks::wall_s;
use pomona_decide::{Command, Lease, lease};
use serde::Deserialize;

use super::membership::find;
use super::{Admin, Answer, Asked, current, parsed, write};

/// The paths below `/admin/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/admin/v1/nodes/{node}/lease", put(set).delete(remove))
        .route("/admin/v1/nodes/{node}/eviction", post(evict))
}

/// A lease from now on.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Seconds until it ends.
    ends_in_s: u64,
    /// How long before that the node is drained, in seconds.
    #[serde(default = "usual_drain_s")]
    drain_s: u64,
}

fn usual_drain_s() -> u64 {
    lease::DRAIN_S
}

impl Wanted {
    pub(super) fn from(self, now_s: u64) -> Lease {
        Lease::until(now_s.saturating_add(self.ends_in_s), self.drain_s)
    }
}

async fn set(admin: Asked, UrlPath(node): UrlPath<String>, body: Bytes) -> Answer {
    let wanted: Wanted = match parsed(&body) {
        Ok(wanted) => wanted,
        Err(answer) => return answer,
    };
    let now_s = wall_s();
    change(&admin, &node, Some(wanted.from(now_s)), now_s).await
}

async fn remove(admin: Asked, UrlPath(node): UrlPath<String>) -> Answer {
    change(&admin, &node, None, wall_s()).await
}

async fn change(admin: &Asked, node: &str, lease: Option<Lease>, now_s: u64) -> Answer {
    match find(admin, node).await {
        Ok(node) => write(admin, Command::SetLease { node, lease, now_s }).await,
        Err(answer) => answer,
    }
}

async fn evict(admin: Asked, UrlPath(node): UrlPath<String>) -> Answer {
    let node = match find(&admin, &node).await {
        Ok(node) => node,
        Err(answer) => return answer,
    };
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    if !state.leases.of_nodes.contains_key(&node) {
        let now_s = wall_s();
        let lease = Some(Lease::until(now_s + lease::DRAIN_S, lease::DRAIN_S));
        let (status, head, body) = write(&admin, Command::SetLease { node, lease, now_s }).await;
        if status != StatusCode::OK {
            return (status, head, body);
        }
    }
    let (seen, now_s) = (None, wall_s());
    write(&admin, Command::Evict { node, seen, now_s }).await
}
