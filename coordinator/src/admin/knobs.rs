//! The knobs that the cluster agrees on.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::get;
use pomona_clocks::wall_s;
use pomona_decide::knob_sets::forbidden;
use pomona_decide::{Command, Made};
use serde::Deserialize;
use serde_json::json;

use super::agreed::{begun_with, history, sound};
use super::{Admin, Answer, Asked, bad, current, parsed, reply, write};

/// The paths below `/admin/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new().route("/admin/v1/knobs", get(show).patch(change))
}

async fn show(admin: Asked) -> Answer {
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    let body = json!({
        "agreed": state.knobs.current().is_some(), "knobs": state.knobs.in_force(), "history": history(&state.knobs),
    });
    reply(StatusCode::OK, &body)
}

/// Knobs by name, as in `batch.window_ms`; or all of an earlier version.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Change {
    set: BTreeMap<String, u32>,
    to_version: Option<u64>,
    by: String,
    /// Whether it is done although a gate forbids it.
    force: bool,
}

async fn change(admin: Asked, body: Bytes) -> Answer {
    let change: Change = match parsed(&body) {
        Ok(change) => change,
        Err(answer) => return answer,
    };
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    let mut set = match begun_with(&state.knobs, change.to_version) {
        Ok(set) => set,
        Err(answer) => return answer,
    };
    for (name, value) in &change.set {
        if let Err(why) = set.set(name, *value) {
            return bad(why);
        }
    }
    if let Err(answer) = sound(&set.problems()) {
        return answer;
    }
    let before = state.knobs.in_force();
    let mut by = change.by;
    if let Some(why) = forbidden(&state, &before, &set) {
        if !change.force {
            return reply(StatusCode::CONFLICT, &json!({ "error": why }));
        }
        by.push_str(" (forced while a gate had tripped)");
    }
    set.version = state.knobs.next();
    let at_s = wall_s();
    write(&admin, Command::SetKnobs(Made { set, by, at_s })).await
}
