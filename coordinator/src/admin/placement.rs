//! The plan, why it is as it is, and what is wanted of it.

use std::collections::BTreeSet;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path as UrlPath;
use axum::http::StatusCode;
use axum::routing::{get, put};
use pomona_clocks::wall_s;
use pomona_common::{MachineRole, ModelName, NodeId};
use pomona_decide::{
    Availability, ClusterState, Command, Keep, ModelPolicy, Move, Replicas, Verdict, explain, plan,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::membership::{find, named};
use super::{Admin, Answer, Asked, bad, current, parsed, reply, write};
use crate::inventory::inventory;

/// Longest time that a drain may be given, in seconds: a day.
const DRAIN_MAX_S: u64 = 24 * 3600;

/// The paths below `/admin/v1`; the policy of a model is at the model.
pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/admin/v1/plan", get(show))
        .route("/admin/v1/plan/moves", get(moves))
        .route("/admin/v1/plan/explain/{*name}", get(explained))
        .route("/admin/v1/nodes/{node}/availability", put(set_availability))
}

/// What people call a node.
fn name_of(state: &ClusterState, node: NodeId) -> String {
    let record = state.nodes.get(&node);
    record.map_or_else(|| node.short(), |record| record.name.clone())
}

/// The target by model, with what has no place. Any coordinator answers, from what it sees.
async fn show(admin: Asked) -> Answer {
    let state = admin.backend.replica.known();
    let inventory = inventory(&admin.backend.sessions);
    let outcome = plan(&state, &inventory, wall_s());
    let models: Vec<Value> = state
        .catalogue
        .keys()
        .map(|model| {
            let targets = state.plan.nodes.iter();
            let holders: Vec<Value> = targets
                .filter_map(|(id, target)| {
                    let reason = target.models.get(model)?;
                    let seen = inventory.get(id).map(|node| node.loaded.contains(model));
                    Some(json!({
                        "node": id, "name": name_of(&state, *id), "loaded": seen, "reason": reason,
                    }))
                })
                .collect();
            json!({
                "name": model,
                "policy": policy_json(&state, &state.placement.policy(model)),
                "used_s": state.placement.used_s(model),
                "holders": holders,
                "unplaced": outcome.unplaced.get(model),
            })
        })
        .collect();
    let made = state.placement.history.back().map(|last| last.at_s);
    let body = json!({ "plan": state.plan.id, "made_s": made, "models": models });
    reply(StatusCode::OK, &body)
}

/// How the latest plans differ from the ones before, and what the next one would change.
async fn moves(admin: Asked) -> Answer {
    let state = admin.backend.replica.known();
    let outcome = plan(&state, &inventory(&admin.backend.sessions), wall_s());
    let listed = |moves: &[Move]| -> Vec<Value> {
        let shown = |one: &Move| {
            json!({
                "model": one.model, "node": one.node, "name": name_of(&state, one.node),
                "do": if one.load { "load" } else { "unload" }, "reason": one.reason,
            })
        };
        moves.iter().map(shown).collect()
    };
    let history: Vec<Value> = state
        .placement
        .history
        .iter()
        .map(|plan| json!({ "plan": plan.plan, "at_s": plan.at_s, "moves": listed(&plan.moves) }))
        .collect();
    let next = outcome.step.map_or_else(Vec::new, |step| listed(&step.moves));
    reply(StatusCode::OK, &json!({ "history": history, "next": next }))
}

async fn explained(admin: Asked, UrlPath(name): UrlPath<String>) -> Answer {
    let Ok(model) = name.parse::<ModelName>() else {
        return bad("this is no name of a model");
    };
    let state = admin.backend.replica.known();
    let Some(explanation) = explain(&state, &inventory(&admin.backend.sessions), &model, wall_s()) else {
        let why = format!("`{model}` is not in the catalogue: `pomona models` lists what is");
        return reply(StatusCode::NOT_FOUND, &json!({ "error": why }));
    };
    let nodes: Vec<Value> = explanation
        .nodes
        .iter()
        .map(|(id, verdict)| {
            let (kind, score) = match verdict {
                Verdict::Holds { score, .. } => ("holds", score.as_ref()),
                Verdict::Could(score) => ("could", Some(score)),
                Verdict::Cannot(_) => ("cannot", None),
            };
            json!({
                "node": id, "name": name_of(&state, *id), "role": state.nodes.get(id).map(|node| node.role),
                "verdict": kind, "points": score.map(|score| score.points), "why": verdict.to_string(),
            })
        })
        .collect();
    let body = json!({
        "model": model,
        "policy": policy_json(&state, &explanation.policy),
        "used_s": explanation.used_s,
        "nodes": nodes,
    });
    reply(StatusCode::OK, &body)
}

fn policy_json(state: &ClusterState, policy: &ModelPolicy) -> Value {
    let keep = match policy.keep {
        Keep::WhileThereIsRoom => json!("while-there-is-room"),
        Keep::Always => json!("always"),
        Keep::Ttl(seconds) => json!(seconds),
    };
    let replicas = match policy.replicas {
        Replicas::Everywhere => json!("everywhere"),
        Replicas::Count(count) => json!(count),
    };
    let pins: Vec<String> = policy.pins.iter().map(|pin| name_of(state, *pin)).collect();
    json!({
        "replicas": replicas, "pools": policy.pools, "pins": pins, "spread": policy.spread, "keep": keep,
    })
}

/// What is to change of a policy; what is left out stays.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    replicas: Option<Value>,
    pools: Option<BTreeSet<MachineRole>>,
    /// Names or ids.
    pins: Option<Vec<String>>,
    spread: Option<bool>,
    keep: Option<Value>,
}

pub(super) async fn change_policy(admin: Asked, UrlPath(name): UrlPath<String>, body: Bytes) -> Answer {
    let Ok(model) = name.parse::<ModelName>() else {
        return bad("this is no name of a model");
    };
    let change: Change = match parsed(&body) {
        Ok(change) => change,
        Err(answer) => return answer,
    };
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    match changed(&state, state.placement.policy(&model), change) {
        Ok(policy) => write(&admin, Command::SetPolicy { model, policy }).await,
        Err(why) => bad(&why),
    }
}

fn changed(state: &ClusterState, mut policy: ModelPolicy, change: Change) -> Result<ModelPolicy, String> {
    match change.replicas {
        None => {}
        Some(Value::String(word)) if word == "everywhere" => policy.replicas = Replicas::Everywhere,
        Some(Value::Number(number)) => {
            let count = number.as_u64().and_then(|count| u32::try_from(count).ok());
            policy.replicas = Replicas::Count(count.ok_or("replicas is a whole number or `everywhere`")?);
        }
        Some(_) => return Err("replicas is a whole number or `everywhere`".into()),
    }
    match change.keep {
        None => {}
        Some(Value::String(word)) if word == "always" => policy.keep = Keep::Always,
        Some(Value::String(word)) if word == "while-there-is-room" => policy.keep = Keep::WhileThereIsRoom,
        Some(Value::Number(seconds)) => {
            policy.keep = Keep::Ttl(seconds.as_u64().ok_or("a time to live is in whole seconds")?);
        }
        Some(_) => return Err("keep is `always`, `while-there-is-room` or seconds".into()),
    }
    if let Some(pools) = change.pools {
        policy.pools = pools;
    }
    if let Some(pins) = change.pins {
        let found: Result<BTreeSet<NodeId>, String> = pins.iter().map(|pin| named(state, pin)).collect();
        policy.pins = found?;
    }
    policy.spread = change.spread.unwrap_or(policy.spread);
    Ok(policy)
}

/// Whether a node takes replicas.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum Wanted {
    Open,
    Cordoned,
    Draining {
        /// Seconds until what is left is taken from it.
        within_s: u64,
    },
}

async fn set_availability(admin: Asked, UrlPath(node): UrlPath<String>, body: Bytes) -> Answer {
    let availability = match serde_json::from_slice::<Wanted>(&body) {
        Ok(Wanted::Open) => Availability::Open,
        Ok(Wanted::Cordoned) => Availability::Cordoned,
        Ok(Wanted::Draining { within_s }) if within_s <= DRAIN_MAX_S => Availability::Draining {
            until_s: wall_s() + within_s,
        },
        Ok(Wanted::Draining { .. }) => return bad("a drain takes a day at most"),
        Err(error) => return bad(error.to_string()),
    };
    match find(&admin, &node).await {
        Ok(node) => write(&admin, Command::SetAvailability { node, availability }).await,
        Err(answer) => answer,
    }
}
