//! What operators changed, and what a change is called.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use pomona_clocks::wall_s;
use pomona_common::{KeyId, NodeId};
use pomona_decide::{ClusterState, Command, Deed};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Admin, Answer, Asked, current, reply, unavailable};
use crate::audit::Chain;

/// The paths below `/admin/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new().route("/admin/v1/audit", get(show))
}

async fn show(asked: Asked) -> Answer {
    entries(&asked, asked.audit.clone()).await
}

/// One of the logs, whole.
pub(super) async fn entries(asked: &Asked, chain: Chain) -> Answer {
    match current(asked).await {
        Ok(_) => {
            let replica = asked.backend.replica.clone();
            match tokio::task::spawn_blocking(move || chain.entries(&replica)).await {
                Ok(entries) => reply(StatusCode::OK, &json!(entries)),
                Err(error) => unavailable(&error),
            }
        }
        Err(answer) => answer,
    }
}

/// What a command is called in the log, by the names that things have before it.
pub(super) fn deed(state: &ClusterState, command: &Command, by: &str) -> Deed {
    let (action, subject, detail) = said(state, command);
    Deed {
        by: by.to_owned(),
        action: action.to_owned(),
        subject,
        detail,
        at_s: wall_s(),
    }
}

fn said(state: &ClusterState, command: &Command) -> (&'static str, String, String) {
    let none = String::new;
    let node = |id: &NodeId| {
        let name = state.nodes.get(id).map(|record| record.name.as_str());
        format!("{} {id}", name.unwrap_or("?"))
    };
    let key = |id: &KeyId| {
        let name = state.keys.keys.get(id).map(|record| record.name.as_str());
        format!("{} {id}", name.unwrap_or("?"))
    };
    match command {
        Command::OpenToken { id, token, lease, .. } => {
            let detail = json!({
                "admits": token.admits.to_string(), "name": token.name, "expires_s": token.expires_s, "lease": lease,
            });
            ("token.create", id.to_string(), text(&detail))
        }
        Command::RevokeToken(id) => ("token.revoke", id.to_string(), none()),
        Command::ApproveNode(id) => ("node.approve", node(id), none()),
        Command::RevokeNode { node: id, .. } => ("node.revoke", node(id), none()),
        Command::RenameNode { node: id, name } => ("node.rename", node(id), text(name)),
        Command::SetAvailability {
            node: id,
            availability,
        } => ("node.availability", node(id), text(availability)),
        Command::SetLease { node: id, lease, .. } => ("node.lease", node(id), text(lease)),
        Command::Evict { node: id, .. } => ("node.evict", node(id), none()),
        Command::SetComfort { node: id, comfort } => ("node.comfort", node(id), text(comfort)),
        Command::RemoveCoordinator(number) => ("coordinator.remove", number.to_string(), none()),
        Command::RemoveModel(name) => ("model.remove", name.to_string(), none()),
        Command::SetPolicy { model, policy } => ("model.place", model.to_string(), text(policy)),
        Command::SetKnobs(made) => ("knobs.set", format!("version {}", made.set.version), text(made)),
        Command::SetFallbacks(made) => (
            "fallback.set",
            format!("version {}", made.set.version),
            text(made),
        ),
        Command::SetSlos(made) => ("slo.set", format!("version {}", made.set.version), text(made)),
        Command::CloseTicket(number) => ("ticket.close", number.to_string(), none()),
        Command::ForgiveKills { node: id, model } => ("kills.forgive", node(id), model.to_string()),
        Command::MakeKey { id, record } => {
            let detail = json!({ "terms": record.terms, "expires_s": record.expires_s });
            ("key.create", format!("{} {id}", record.name), text(&detail))
        }
        Command::RotateKey {
            id, grace_until_s, ..
        } => {
            let detail = json!({ "grace_until_s": grace_until_s });
            ("key.rotate", key(id), text(&detail))
        }
        Command::ChangeKey { id, terms } => ("key.change", key(id), text(terms)),
        Command::RevokeKey(id) => ("key.revoke", key(id), none()),
        Command::ApproveCloud { cloud, approval } => ("cloud.approve", cloud.to_string(), text(approval)),
        Command::RevokeCloud(cloud) => ("cloud.revoke", cloud.to_string(), none()),
        Command::SetPrivate { model, private } => ("model.private", model.to_string(), text(private)),
        Command::SetBudget { key: id, monthly } => ("key.budget", key(id), text(monthly)),
        // Nobody types these.
        Command::Found(_)
        | Command::AdmitNode { .. }
        | Command::MakeToken { .. }
        | Command::ConsumeToken { .. }
        | Command::AddModel(_)
        | Command::SetPlan(_)
        | Command::RecordKills { .. }
        | Command::AnnounceCoordinator { .. }
        | Command::Replan { .. }
        | Command::UseModels { .. }
        | Command::EndLease { .. }
        | Command::DoubtNode(_)
        | Command::TrustNode(_)
        | Command::Relieve { .. }
        | Command::Unload { .. }
        | Command::PassGate(_)
        | Command::CountKills { .. }
        | Command::ChargeKeys { .. }
        | Command::ReserveSpill(_)
        | Command::SettleSpill { .. }
        | Command::Audited(_) => ("other", none(), none()),
    }
}

/// What it says, without what it leaves open.
fn text(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    said_only(value).map_or_else(String::new, |value| value.to_string())
}

fn said_only(value: Value) -> Option<Value> {
    let kept = match value {
        Value::Object(fields) => {
            let fields = fields.into_iter();
            let said = fields.filter_map(|(name, value)| Some((name, said_only(value)?)));
            Value::Object(said.collect())
        }
        other => other,
    };
    let is_open = match &kept {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    (!is_open).then_some(kept)
}

#[cfg(test)]
mod tests {
    use pomona_common::key::{KeyHash, KeyRecord};

    use super::*;

    #[test]
    fn a_deed_names_things_and_tells_no_secret() {
        let id = KeyId::from_bits(7);
        let record = KeyRecord::new("ci", KeyHash([0xab; 32]), 5);
        let make = Command::MakeKey {
            id,
            record: Box::new(record.clone()),
        };
        let mut state = ClusterState::default();
        let made = deed(&state, &make, "ann");
        assert_eq!((made.by.as_str(), made.action.as_str()), ("ann", "key.create"));
        assert!(
            made.subject.starts_with("ci ") && !made.detail.contains("171"),
            "{made:?}"
        );
        state.keys.keys.insert(id, record);
        let rotate = Command::RotateKey {
            id,
            secret: KeyHash([0xab; 32]),
            grace_until_s: 9,
            now_s: 5,
        };
        for command in [rotate, Command::RevokeKey(id)] {
            let deed = deed(&state, &command, "ann");
            assert!(
                deed.subject.starts_with("ci ") && !deed.detail.contains("171"),
                "{deed:?}"
            );
        }
    }
}
