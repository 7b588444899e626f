//! Clouds: which there are, which may be asked and for how much, and what was asked of them.

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path as UrlPath;
use axum::http::StatusCode;
use axum::routing::{get, put};
use pomona_clocks::wall_s;
use pomona_common::{CloudName, ModelName, Money};
use pomona_decide::{Approval, ClusterState, Command};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Answer, Asked, audit, bad, current, keys, parsed, reply, write};

/// The longest life of an approval: somebody looks at it again once a year.
const LONGEST_S: u64 = 366 * 86_400;

/// The paths below `/admin/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/admin/v1/clouds", get(show))
        .route("/admin/v1/clouds/{name}", put(approve).delete(revoke))
        .route("/admin/v1/spills", get(spills))
        .route("/admin/v1/private/{*model}", put(set_private))
        .route("/admin/v1/keys/{key}/budget", put(set_budget))
}

async fn show(admin: Asked) -> Answer {
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    let known = admin.backend.clouds.known();
    let mut names: Vec<&CloudName> = known.keys().chain(state.clouds.approvals.keys()).collect();
    names.sort();
    names.dedup();
    let now_s = wall_s();
    let clouds: Vec<Value> = names
        .into_iter()
        .map(|name| shown(&admin, &state, name, now_s))
        .collect();
    let budgets = state.clouds.budgets.iter().map(|(key, monthly)| {
        let name = state.keys.keys.get(key).map(|record| record.name.as_str());
        let month = state.clouds.of_keys.get(key).copied().unwrap_or_default();
        json!({ "key": name, "monthly": monthly.to_string(), "spent": month.at(now_s).money.to_string() })
    });
    let body = json!({
        "clouds": clouds,
        "budgets": budgets.collect::<Vec<_>>(),
        "private_models": state.clouds.private,
    });
    reply(StatusCode::OK, &body)
}

fn shown(admin: &Admin, state: &ClusterState, name: &CloudName, now_s: u64) -> Value {
    let here = admin.backend.clouds.known().get(name);
    let client = here.map(|cloud| cloud.client.as_ref());
    let models = here.map(|cloud| {
        let models = cloud.models.iter().map(|(model, there)| {
            json!({
                "model": model, "there": there.name,
                "input": there.prices.input.to_string(), "output": there.prices.output.to_string(),
            })
        });
        models.collect::<Vec<_>>()
    });
    let month = state.clouds.spent.get(name).copied().unwrap_or_default();
    let month = month.at(now_s);
    let approval = state.clouds.approvals.get(name).map(|approval| {
        json!({
            "address": approval.address, "by": approval.by, "at_s": approval.at_s, "until_s": approval.until_s,
            "holds": approval.until_s > now_s && here.is_none_or(|cloud| cloud.address == approval.address),
            "monthly_money": approval.monthly_money.to_string(), "monthly_tokens": approval.monthly_tokens,
        })
    });
    json!({
        "name": name,
        "address": here.map(|cloud| &cloud.address),
        "problem": match client {
            None => Some("not configured on this coordinator".to_owned()),
            Some(Err(why)) => Some(why.clone()),
            Some(Ok(_)) => None,
        },
        "left_alone_s": client.and_then(|client| Some(client.ok()?.left_alone()?.as_secs())),
        "under_way": client.and_then(|client| Some(client.ok()?.under_way())),
        "models": models,
        "approval": approval,
        "month": { "money": month.money.to_string(), "tokens": month.tokens, "requests": month.requests },
    })
}

async fn spills(asked: Asked) -> Answer {
    audit::entries(&asked, asked.spills.clone()).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Seconds that the approval lasts.
    lasts_s: u64,
    /// Monthly ceiling, such as "20.00".
    money: String,
    /// Monthly ceiling.
    tokens: u64,
}

async fn approve(admin: Asked, UrlPath(name): UrlPath<String>, body: Bytes) -> Answer {
    let wanted: Wanted = match parsed(&body) {
        Ok(wanted) => wanted,
        Err(answer) => return answer,
    };
    let cloud: CloudName = match name.parse() {
        Ok(cloud) => cloud,
        Err(error) => return bad(error.to_string()),
    };
    let monthly_money: Money = match wanted.money.parse() {
        Ok(money) => money,
        Err(error) => return bad(error.to_string()),
    };
    if !(1..=LONGEST_S).contains(&wanted.lasts_s) {
        return bad("an approval lasts for a year at most");
    }
    let Some(here) = admin.backend.clouds.known().get(&cloud) else {
        return bad(format!(
            "`{cloud}` is not configured on this coordinator: write [cloud.{cloud}] into its configuration first"
        ));
    };
    let now_s = wall_s();
    let approval = Approval {
        address: here.address.clone(),
        by: admin.by.clone(),
        at_s: now_s,
        until_s: now_s.saturating_add(wanted.lasts_s),
        monthly_money,
        monthly_tokens: wanted.tokens,
    };
    write(&admin, Command::ApproveCloud { cloud, approval }).await
}

async fn revoke(admin: Asked, UrlPath(name): UrlPath<String>) -> Answer {
    match name.parse() {
        Ok(cloud) => write(&admin, Command::RevokeCloud(cloud)).await,
        Err(error) => {
            let error: pomona_common::cloud::NotACloud = error;
            bad(error.to_string())
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Private {
    private: bool,
}

async fn set_private(admin: Asked, UrlPath(model): UrlPath<String>, body: Bytes) -> Answer {
    let Private { private } = match parsed(&body) {
        Ok(wanted) => wanted,
        Err(answer) => return answer,
    };
    match model.parse::<ModelName>() {
        Ok(model) => write(&admin, Command::SetPrivate { model, private }).await,
        Err(error) => bad(error.to_string()),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    /// As above; none lifts it.
    monthly: Option<String>,
}

async fn set_budget(admin: Asked, UrlPath(key): UrlPath<String>, body: Bytes) -> Answer {
    let budget: Budget = match parsed(&body) {
        Ok(budget) => budget,
        Err(answer) => return answer,
    };
    let monthly = match budget.monthly.as_deref().map(str::parse::<Money>).transpose() {
        Ok(monthly) => monthly,
        Err(error) => return bad(error.to_string()),
    };
    match keys::find(&admin, &key).await {
        Ok((_, key)) => write(&admin, Command::SetBudget { key, monthly }).await,
        Err(answer) => answer,
    }
}
