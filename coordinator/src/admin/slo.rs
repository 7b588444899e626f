//! The service levels that the cluster agrees on.

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::get;
use pomona_clocks::wall_s;
use pomona_decide::{Command, Made};
use serde_json::json;

use super::agreed::{Change, begun_with, history, sound};
use super::{Admin, Answer, Asked, bad, current, parsed, reply, write};

/// The paths below `/admin/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new().route("/admin/v1/slo", get(show).patch(change))
}

async fn show(admin: Asked) -> Answer {
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    let body = json!({ "slos": state.slos.in_force(), "history": history(&state.slos) });
    reply(StatusCode::OK, &body)
}

/// Service levels by name, as in `interactive.ttft_ms`; or all of an earlier version.
async fn change(admin: Asked, body: Bytes) -> Answer {
    let state = current(&admin).await;
    let made = state.and_then(|state| {
        let change: Change<u32> = parsed(&body)?;
        let mut set = begun_with(&state.slos, change.to_version)?;
        for (name, value) in &change.set {
            set.set(name, *value).map_err(bad)?;
        }
        sound(&set.problems())?;
        set.version = state.slos.next();
        let (by, at_s) = (change.by, wall_s());
        Ok(Made { set, by, at_s })
    });
    match made {
        Ok(made) => write(&admin, Command::SetSlos(made)).await,
        Err(answer) => answer,
    }
}
