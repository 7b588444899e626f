//! Where requests of each class go, in which order.

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::get;
use pomona_clocks::wall_s;
use pomona_common::{Class, Fallbacks};
use pomona_decide::{Command, Made};
use serde_json::{Value, json};

use super::agreed::{Change, begun_with, sound};
use super::{Admin, Answer, Asked, bad, current, parsed, reply, write};

/// The paths below `/admin/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new().route("/admin/v1/fallback", get(show).patch(change))
}

fn lists(set: &Fallbacks) -> Value {
    let list = |class: Class| {
        let targets = set.class(class).0.iter();
        let targets: Vec<String> = targets.map(ToString::to_string).collect();
        (class.as_str().to_owned(), targets.into())
    };
    Value::Object(Class::ALL.into_iter().map(list).collect())
}

async fn show(admin: Asked) -> Answer {
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    let made = state.fallbacks.0.iter();
    let history: Vec<Value> = made
        .map(|made| {
            json!({
                "version": made.set.version, "by": made.by, "at_s": made.at_s, "lists": lists(&made.set),
            })
        })
        .collect();
    let now = state.fallbacks.in_force();
    let body = json!({ "version": now.version, "lists": lists(&now), "history": history });
    reply(StatusCode::OK, &body)
}

/// Lists by class, such as `"batch": "rack, rented, pause:20"`; or all of an earlier version.
async fn change(admin: Asked, body: Bytes) -> Answer {
    let change: Change<String> = match parsed(&body) {
        Ok(change) => change,
        Err(answer) => return answer,
    };
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    let mut set = match begun_with(&state.fallbacks, change.to_version) {
        Ok(set) => set,
        Err(answer) => return answer,
    };
    for (class, list) in &change.set {
        let class: Class = match class.parse() {
            Ok(class) => class,
            Err(unknown) => return bad(unknown.to_string()),
        };
        match list.parse() {
            Ok(list) => set.set(class, list),
            Err(why) => return bad(format!("{class}: {why}")),
        }
    }
    if let Err(answer) = sound(&set.problems()) {
        return answer;
    }
    set.version = state.fallbacks.next();
    let (by, at_s) = (change.by, wall_s());
    write(&admin, Command::SetFallbacks(Made { set, by, at_s })).await
}
