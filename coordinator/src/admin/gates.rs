//! How far the gates of nodes have acted, and what operators say about it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path as UrlPath;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::routing::{delete, get};
use futures_util::stream;
use pomona_clocks::wall_s;
use pomona_common::ModelName;
use pomona_common::gate::Gate;
use pomona_decide::gates::Choices;
use pomona_decide::gates::rules::{RULES, Rule};
use pomona_decide::{ClusterState, Command, Transition};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::membership::find;
use super::{Admin, Answer, Asked, current, reply, write};

/// The paths below `/admin/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/admin/v1/gates", get(show))
        .route("/admin/v1/gates/events", get(events))
        .route("/admin/v1/gates/tickets/{number}", delete(close))
        .route("/admin/v1/nodes/{node}/kills/{*model}", delete(forgive))
}

/// A node's name; one that is gone is called by its id.
fn named(state: &ClusterState, transition: &Transition) -> Value {
    let record = state.nodes.get(&transition.node);
    record.map_or_else(|| json!(transition.node), |record| json!(record.name))
}

fn event(state: &ClusterState, passed: &Transition) -> Value {
    json!({
        "number": passed.number, "at_s": passed.at_s, "node": passed.node, "name": named(state, passed),
        "gate": passed.subject.0, "model": passed.subject.1, "from": passed.from, "to": passed.to,
        "reason": passed.reason, "samples": passed.samples, "relocates": passed.relocates,
    })
}

fn rule(rule: &Rule, choices: Choices) -> Value {
    let measures = match rule.gate {
        Gate::Swap if choices.literal_swap => "all swap in use",
        _ => rule.measures,
    };
    json!({
        "gate": rule.gate, "measures": measures, "unit": rule.unit,
        "trips_above": rule.limit, "trips_after_s": rule.trips_after.as_secs(),
        "clears_at": rule.clears_at, "clears_after_s": rule.clears_after.as_secs(),
        "remedy": rule.remedy,
        "secondary": rule.secondary.map(|(_, remedy)| remedy),
        "secondary_after_s": rule.secondary.map(|(after, _)| after.as_secs()),
        "forbidden": rule.forbidden,
    })
}

async fn show(admin: Asked) -> Answer {
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    let name = |node| state.nodes.get(node).map(|record| &record.name);
    let open = state.gates.open.iter();
    let open: Vec<Value> = open
        .flat_map(|(node, gates)| gates.iter().map(move |gate| (node, gate)))
        .map(|(node, ((gate, model), open))| {
            json!({
                "node": node, "name": name(node), "gate": gate, "model": model, "stage": open.stage,
                "since_s": open.since_s, "reason": open.reason, "relocates": open.relocates,
            })
        })
        .collect();
    let now_s = wall_s();
    let kills = state.gates.kills.iter();
    let kills: Vec<Value> = kills
        .flat_map(|(node, kills)| kills.within_week(now_s).map(move |kills| (node, kills)))
        .map(|(node, (model, at_s))| {
            let connected = admin.backend.sessions.get(*node);
            let cause = connected.and_then(|connected| connected.kill_causes().remove(model));
            json!({ "node": node, "name": name(node), "model": model, "at_s": at_s, "latest": cause })
        })
        .collect();
    let tickets = state.gates.tickets.iter();
    let tickets: Vec<Value> = tickets
        .map(|ticket| {
            json!({
                "number": ticket.number, "node": ticket.node, "name": name(&ticket.node),
                "gate": ticket.subject.0, "model": ticket.subject.1, "opened_s": ticket.opened_s,
                "closed": ticket.closed, "text": ticket.text, "reason": ticket.reason,
                "samples": ticket.samples,
            })
        })
        .collect();
    let transitions = state.gates.transitions.iter();
    let transitions: Vec<Value> = transitions.map(|passed| event(&state, passed)).collect();
    let rules: Vec<Value> = RULES.iter().map(|one| rule(one, admin.choices)).collect();
    let body = json!({
        "rules": rules, "open": open, "kills": kills, "tickets": tickets, "transitions": transitions,
    });
    reply(StatusCode::OK, &body)
}

/// Transitions as server-sent events: those that come, and those after the one that `Last-Event-ID` names, as
/// far as they are remembered.
async fn events(admin: Asked, headers: HeaderMap) -> Response<Body> {
    let state = admin.backend.replica.state();
    let asked = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    let seen: u64 = asked.unwrap_or_else(|| admin.backend.replica.known().gates.last_number());
    let frames = stream::unfold((state, seen), |(mut state, seen)| async move {
        let (frame, seen) = next_events(&mut state, seen).await?;
        Some((Ok::<_, Infallible>(frame), (state, seen)))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// What came after a number, as soon as there is something; `None` at the end of the coordinator.
async fn next_events(state: &mut watch::Receiver<Arc<ClusterState>>, seen: u64) -> Option<(Bytes, u64)> {
    let known = state.wait_for(|state| state.gates.last_number() > seen).await;
    let known = known.ok()?.clone();
    let new = known
        .gates
        .transitions
        .iter()
        .filter(|passed| passed.number > seen);
    let frames = new.map(|passed| {
        let event = event(&known, passed);
        format!("id: {}\nevent: gate\ndata: {event}\n\n", passed.number)
    });
    Some((frames.collect::<String>().into(), known.gates.last_number()))
}

async fn close(admin: Asked, UrlPath(number): UrlPath<u64>) -> Answer {
    write(&admin, Command::CloseTicket(number)).await
}

async fn forgive(admin: Asked, UrlPath((node, model)): UrlPath<(String, String)>) -> Answer {
    let model: ModelName = match model.parse() {
        Ok(model) => model,
        Err(error) => return reply(StatusCode::BAD_REQUEST, &json!({ "error": format!("{error}") })),
    };
    match find(&admin, &node).await {
        Ok(node) => write(&admin, Command::ForgiveKills { node, model }).await,
        Err(answer) => answer,
    }
}
