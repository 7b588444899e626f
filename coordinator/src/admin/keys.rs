//! API keys: who may ask at entries, for what, and how much of it.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path as UrlPath;
use axum::http::StatusCode;
use axum::routing::{get, patch, post};
use pomona_clocks::wall_s;
use pomona_common::key::{KeyRecord, KeyTerms};
use pomona_common::spending::{Account, Windows};
use pomona_common::{KeyId, MachineRole, ModelName, Pools};
use pomona_decide::{ClusterState, Command};
use pomona_keys::KeySecret;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Answer, Asked, bad, current, parsed, reply, unavailable, write};
use crate::random;

/// The paths below `/admin/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/admin/v1/keys", get(list).post(create))
        .route("/admin/v1/keys/{key}", patch(change).delete(revoke))
        .route("/admin/v1/keys/{key}/rotation", post(rotate))
}

/// What is to be different; what is not named stays.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Change {
    /// `any` leaves it to requests.
    class: Option<String>,
    /// An empty list means all; so it does below.
    classes: Option<Vec<pomona_common::Class>>,
    models: Option<Vec<ModelName>>,
    pools: Option<Vec<MachineRole>>,
    private: Option<bool>,
    /// By `NAME`, or `MODEL:NAME`; null lifts one.
    limits: BTreeMap<String, Option<u64>>,
}

impl Change {
    fn apply(self, terms: &mut KeyTerms) -> Result<(), String> {
        match self.class.as_deref() {
            None => {}
            Some("any") => terms.class = None,
            Some(class) => {
                let class = class.parse().map_err(|unknown| format!("{unknown}"))?;
                terms.class = Some(class);
            }
        }
        if let Some(classes) = self.classes {
            terms.classes = classes.into_iter().collect();
        }
        if let Some(models) = self.models {
            terms.models = models.into_iter().collect();
        }
        if let Some(pools) = self.pools {
            terms.pools = Pools::only(pools);
        }
        terms.private = self.private.unwrap_or(terms.private);
        for (name, limit) in self.limits {
            terms.set_limit(&name, limit)?;
        }
        Ok(())
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    /// Seconds until it ends by itself.
    ends_in_s: Option<u64>,
    #[serde(default)]
    terms: Change,
}

async fn create(admin: Asked, body: Bytes) -> Answer {
    let wanted: Wanted = match parsed(&body) {
        Ok(wanted) => wanted,
        Err(answer) => return answer,
    };
    let mut terms = KeyTerms::default();
    if let Err(why) = wanted.terms.apply(&mut terms) {
        return bad(why);
    }
    let (id, secret) = match (random(), random()) {
        (Ok(id), Ok(secret)) => (KeyId::from_bits(id), secret),
        (Err(error), _) | (_, Err(error)) => return unavailable(&error),
    };
    let secret = KeySecret::new(id, secret);
    let now_s = wall_s();
    let record = KeyRecord {
        expires_s: wanted.ends_in_s.map(|life_s| now_s.saturating_add(life_s)),
        terms,
        ..KeyRecord::new(&wanted.name, secret.hash(), now_s)
    };
    let command = Command::MakeKey {
        id,
        record: Box::new(record.clone()),
    };
    show_once(write(&admin, command).await, &secret, || {
        shown(id, &record, &BTreeMap::new(), now_s)
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotation {
    /// For how long the secret of before opens too, in seconds.
    grace_s: u64,
}

async fn rotate(admin: Asked, UrlPath(key): UrlPath<String>, body: Bytes) -> Answer {
    let rotation: Rotation = match parsed(&body) {
        Ok(rotation) => rotation,
        Err(answer) => return answer,
    };
    let (state, id) = match find(&admin, &key).await {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let secret = match random() {
        Ok(secret) => KeySecret::new(id, secret),
        Err(error) => return unavailable(&error),
    };
    let now_s = wall_s();
    let command = Command::RotateKey {
        id,
        secret: secret.hash(),
        grace_until_s: now_s.saturating_add(rotation.grace_s),
        now_s,
    };
    let record = &state.keys.keys[&id];
    if record.expires_s.is_some_and(|end_s| end_s <= now_s) {
        return reply(
            StatusCode::CONFLICT,
            &json!({ "error": "this key has ended: make another one with `pomona key create`" }),
        );
    }
    show_once(
        write(&admin, command).await,
        &secret,
        || json!({ "id": id, "name": record.name }),
    )
}

async fn change(admin: Asked, UrlPath(key): UrlPath<String>, body: Bytes) -> Answer {
    let change: Change = match parsed(&body) {
        Ok(change) => change,
        Err(answer) => return answer,
    };
    let (state, id) = match find(&admin, &key).await {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let mut terms = state.keys.keys[&id].terms.clone();
    match change.apply(&mut terms) {
        Ok(()) => {
            let terms = Box::new(terms);
            write(&admin, Command::ChangeKey { id, terms }).await
        }
        Err(why) => bad(why),
    }
}

async fn revoke(admin: Asked, UrlPath(key): UrlPath<String>) -> Answer {
    match find(&admin, &key).await {
        Ok((_, id)) => write(&admin, Command::RevokeKey(id)).await,
        Err(answer) => answer,
    }
}

async fn list(admin: Asked) -> Answer {
    let state = match current(&admin).await {
        Ok(state) => state,
        Err(answer) => return answer,
    };
    let book = &state.keys;
    let now_s = wall_s();
    let keys = book.keys.iter();
    let keys: Vec<Value> = keys
        .map(|(id, record)| shown(*id, record, &book.spent, now_s))
        .collect();
    reply(StatusCode::OK, &keys.into())
}

/// A key as people see it: neither secret nor hash.
fn shown(id: KeyId, record: &KeyRecord, spent: &BTreeMap<Account, Windows>, now_s: u64) -> Value {
    let of_all = Account { key: id, model: None };
    let spent = spent.get(&of_all).copied().unwrap_or_default();
    let grace_until_s = record.before.map(|(_, until_s)| until_s);
    json!({
        "id": id,
        "name": record.name,
        "made_s": record.made_s,
        "expires_s": record.expires_s,
        "grace_until_s": grace_until_s.filter(|until_s| *until_s > now_s),
        "terms": record.terms,
        "spent": { "minute": spent.minute(now_s), "day": spent.day(now_s) },
    })
}

/// The only answer with a key's text: the cluster keeps a hash.
fn show_once(written: Answer, secret: &KeySecret, rest: impl FnOnce() -> Value) -> Answer {
    if written.0 == StatusCode::SERVICE_UNAVAILABLE {
        // If it was done all the same, nobody would ever see what opens it, or what replaced a key in use.
        let why = serde_json::from_str::<Value>(&written.2).unwrap_or_default();
        let why = why["error"].as_str().unwrap_or_default();
        return unavailable(&format!("{why}. If it was done, this is the key: {secret}"));
    }
    if written.0 != StatusCode::OK {
        return written;
    }
    let mut body = rest();
    body["key"] = secret.to_string().into();
    reply(StatusCode::OK, &body)
}

pub(super) async fn find(admin: &Admin, text: &str) -> Result<(std::sync::Arc<ClusterState>, KeyId), Answer> {
    let state = current(admin).await?;
    let found = state.keys.find(text);
    let why = || format!("no key `{text}`; see `pomona key list`");
    let id = found.ok_or_else(|| reply(StatusCode::NOT_FOUND, &json!({ "error": why() })))?;
    Ok((state, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_what_it_does_not_name_and_lifts_what_it_says() -> Result<(), String> {
        let parse = |text: &str| serde_json::from_str::<Change>(text).map_err(|error| error.to_string());
        let mut terms = KeyTerms::default();
        let first = r#"{"class":"batch","models":["org/a"],"pools":["rack"],"private":true,
            "limits":{"rpm":5,"org/a:tokens_per_day":100}}"#;
        parse(first)?.apply(&mut terms)?;
        assert_eq!(terms.problem(), None);
        assert_eq!(
            (terms.class, terms.private),
            (Some(pomona_common::Class::Batch), true)
        );
        assert_eq!(terms.limits.requests_per_minute, Some(5));
        let before = terms.clone();
        parse("{}")?.apply(&mut terms)?;
        assert_eq!(terms, before);
        let lift = r#"{"class":"any","models":[],"pools":[],"private":false,
            "limits":{"requests_per_minute":null,"org/a:tokens_per_day":null}}"#;
        parse(lift)?.apply(&mut terms)?;
        assert_eq!(terms, KeyTerms::default());
        for wrong in [
            r#"{"class":"fast"}"#,
            r#"{"limits":{"speed":1}}"#,
            r#"{"limits":{"a b:rpm":1}}"#,
        ] {
            assert!(parse(wrong)?.apply(&mut terms).is_err(), "{wrong}");
        }
        Ok(())
    }
}
