//! What operators say about relieving nodes.

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path as UrlPath;
use axum::routing::put;
use pomona_decide::{Comfort, Command};

use super::membership::find;
use super::{Admin, Answer, Asked, bad, write};

/// More watts than any machine of a team takes.
const WATTS_MAX: u16 = 1000;

/// The paths below `/admin/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new().route("/admin/v1/nodes/{node}/comfort", put(set_comfort))
}

async fn set_comfort(admin: Asked, UrlPath(node): UrlPath<String>, body: Bytes) -> Answer {
    let comfort = match serde_json::from_slice(&body) {
        Ok(Comfort::Watts(watts)) if !(1..=WATTS_MAX).contains(&watts) => {
            return bad(format!("comfort is 1 to {WATTS_MAX} watts, or \"off\""));
        }
        Ok(comfort) => comfort,
        Err(error) => return bad(error.to_string()),
    };
    match find(&admin, &node).await {
        Ok(node) => write(&admin, Command::SetComfort { node, comfort }).await,
        Err(answer) => answer,
    }
}
