//! The knobs that the cluster agrees on.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::get;
use pomona_clocks::wall_s;
use pomona_common::KnobSet;
use pomona_decide::knob_sets::forbidden;
use pomona_decide::{ClusterState, Command, Made};
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
    let before = before(&admin, &state);
    // The first set replaces what nodes were configured with: it begins with that.
    let begun = match (state.knobs.current(), change.to_version, before.as_slice()) {
        (None, None, [one]) => Ok(one.clone()),
        (None, None, _) => Err(reply(
            StatusCode::CONFLICT,
            &json!({ "error": "nodes were configured with different knobs, which this would replace: begin with those that programs come with, `pomona knobs rollback 0`" }),
        )),
        _ => begun_with(&state.knobs, change.to_version),
    };
    let mut set = match begun {
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
    let mut by = if change.by.is_empty() {
        admin.by.clone()
    } else {
        change.by
    };
    if let Some(why) = before.iter().find_map(|before| forbidden(&state, before, &set)) {
        if !change.force {
            return reply(StatusCode::CONFLICT, &json!({ "error": why }));
        }
        // First, since long names are cut off.
        by = format!("forced while a gate had tripped: {by}");
    }
    set.version = state.knobs.next();
    let at_s = wall_s();
    write(&admin, Command::SetKnobs(Made { set, by, at_s })).await
}

/// The knobs in force before a change: what is agreed on, or what nodes were configured with, as far as they tell.
fn before(admin: &Admin, state: &ClusterState) -> Vec<KnobSet> {
    if let Some(agreed) = state.knobs.current() {
        return vec![agreed.clone()];
    }
    let mut before: Vec<KnobSet> = Vec::new();
    let nodes = admin.backend.sessions.all().into_values();
    for configured in nodes.filter_map(|connected| connected.configured()) {
        // Nobody agreed on it: that it has a number says nothing.
        let configured = KnobSet {
            version: 0,
            ..configured
        };
        if !before.contains(&configured) {
            before.push(configured);
        }
    }
    if before.is_empty() {
        before.push(KnobSet::default());
    }
    before
}
