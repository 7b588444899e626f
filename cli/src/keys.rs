//! API keys.

use anyhow::{Context, bail};
use hyper::Method;
use pomona_cluster_config::Config;
use serde_json::{Map, Value, json};

use crate::admin::{ask, encoded, tell};
use crate::arguments::keys::{KeyCommand, KeyTerms};
use crate::tables::{self, list, text};

const PATH: &str = "/admin/v1/keys";
/// What lifts a restriction.
const ANY: &str = "any";

pub(crate) fn run(config: &Config, command: &KeyCommand, json: bool) -> anyhow::Result<()> {
    match command {
        KeyCommand::Create { name, days, terms } => {
            let ends_in_s = days.map(|days| seconds(days, 86_400.0)).transpose()?;
            let wanted = json!({ "name": name, "ends_in_s": ends_in_s, "terms": change(terms)? });
            let made = tell(config, &Method::POST, PATH, &wanted)?;
            show_once(&made, json, "Whoever has it can ask in its name.");
        }
        KeyCommand::List => tables::asked(config, PATH, json, |keys| show(list(keys)))?,
        KeyCommand::Rotate { key, grace_hours } => {
            let grace_s = seconds(*grace_hours, 3600.0)?;
            let path = format!("{}/rotation", path_of(key)?);
            let made = tell(config, &Method::POST, &path, &json!({ "grace_s": grace_s }))?;
            let until = match grace_s {
                0 => "The key of before opens nothing any more.".to_owned(),
                _ => format!("The key of before opens too for {grace_hours} hours, and for 30 days at most."),
            };
            show_once(&made, json, &until);
        }
        KeyCommand::Change { key, terms } => {
            let change = change(terms)?;
            if change.as_object().is_none_or(Map::is_empty) {
                bail!("say what is to change, such as `--limit rpm=60`; see `pomona key change --help`");
            }
            tell(config, &Method::PATCH, &path_of(key)?, &change)?;
            tables::say("It is good for that from now on: `pomona key list`.");
        }
        KeyCommand::Revoke { key } => {
            ask(config, &Method::DELETE, &path_of(key)?)?;
            tables::say("The key opens nothing any more.");
        }
    }
    Ok(())
}

fn path_of(key: &str) -> anyhow::Result<String> {
    if key.is_empty() {
        bail!("give a name or an id, see `pomona key list`");
    }
    Ok(format!("{PATH}/{}", encoded(key)))
}

fn seconds(count: f64, of_s: f64) -> anyhow::Result<u64> {
    if !(0.0..=36_500.0).contains(&count) {
        bail!("{count} is no time that a key could last");
    }
    Ok((count * of_s) as u64)
}

/// What the options change, as the admin API takes it.
fn change(terms: &KeyTerms) -> anyhow::Result<Value> {
    let mut change = Map::new();
    if let Some(class) = &terms.class {
        change.insert("class".into(), class.clone().into());
    }
    let lists = [
        ("classes", &terms.classes),
        ("models", &terms.models),
        ("pools", &terms.pools),
    ];
    for (name, items) in lists {
        if items.iter().any(|item| item == ANY) {
            change.insert(name.into(), json!([]));
        } else if !items.is_empty() {
            change.insert(name.into(), json!(items));
        }
    }
    if let Some(private) = terms.private {
        change.insert("private".into(), private.into());
    }
    let mut limits = Map::new();
    for limit in &terms.limits {
        let Some((name, value)) = limit.split_once('=') else {
            bail!("`{limit}` is no NAME=N, such as tokens_per_day=100000");
        };
        let value = match value {
            "none" => Value::Null,
            number => {
                let number: u64 = number
                    .parse()
                    .with_context(|| format!("`{number}` is no whole number, which {name} has to be"))?;
                number.into()
            }
        };
        limits.insert(name.to_owned(), value);
    }
    if !limits.is_empty() {
        change.insert("limits".into(), limits.into());
    }
    Ok(change.into())
}

fn show_once(made: &Value, json: bool, more: &str) {
    if json {
        tables::print_json(made);
        return;
    }
    tables::say(&format!(
        "The key `{}`, shown this once:\n\n  {}\n\nClients send it as `Authorization: Bearer KEY` or `x-api-key: KEY`. {more}",
        text(&made["name"]),
        text(&made["key"]),
    ));
}

fn show(keys: &[Value]) {
    if keys.is_empty() {
        tables::say("There are no keys; make one with `pomona key create NAME`.");
        return;
    }
    let rows = keys.iter().map(|key| {
        let ends = match (key["expires_s"].as_u64(), key["grace_until_s"].as_u64()) {
            (Some(at_s), _) => tables::until(at_s),
            (None, Some(at_s)) => format!("never; the one before {}", tables::until(at_s)),
            (None, None) => "never".to_owned(),
        };
        let day = &key["spent"]["day"];
        vec![
            text(&key["name"]),
            good_for(&key["terms"]),
            limits(&key["terms"]),
            format!("{} requests, {} tokens", day["requests"], day["tokens"]),
            ends,
        ]
    });
    tables::table(&["KEY", "GOOD FOR", "LIMITS", "TODAY", "ENDS"], rows.collect());
}

fn good_for(terms: &Value) -> String {
    let joined = |name: &str| {
        let items: Vec<String> = list(&terms[name]).iter().map(text).collect();
        (!items.is_empty()).then(|| items.join(" or "))
    };
    let class = terms["class"].as_str().map(|class| format!("always {class}"));
    let pools = joined("pools").map(|pools| format!("on {pools}"));
    let private = (terms["private"] == true).then(|| "private".to_owned());
    let parts = [class, joined("classes"), joined("models"), pools, private];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "everything".to_owned()
    } else {
        parts.join(", ")
    }
}

fn limits(terms: &Value) -> String {
    let named = |prefix: &str, limits: &Value| -> Vec<String> {
        let limits = limits.as_object().into_iter().flatten();
        let set = limits.filter(|(_, limit)| !limit.is_null());
        set.map(|(name, limit)| format!("{prefix}{name}={limit}"))
            .collect()
    };
    let mut all = named("", &terms["limits"]);
    for (model, limits) in terms["of_models"].as_object().into_iter().flatten() {
        all.extend(named(&format!("{model}:"), limits));
    }
    if all.is_empty() {
        "none".to_owned()
    } else {
        all.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(limits: &[&str]) -> KeyTerms {
        KeyTerms {
            class: None,
            classes: Vec::new(),
            models: Vec::new(),
            pools: Vec::new(),
            private: None,
            limits: limits.iter().map(|limit| (*limit).to_owned()).collect(),
        }
    }

    #[test]
    fn options_become_what_is_to_change() -> anyhow::Result<()> {
        assert_eq!(change(&terms(&[]))?, json!({}));
        let mut some = terms(&["rpm=5", "org/a:tokens_per_day=none"]);
        some.models = vec!["org/a".into()];
        some.pools = vec!["rack".into(), ANY.into()];
        let expected = json!({
            "models": ["org/a"], "pools": [], "limits": { "rpm": 5, "org/a:tokens_per_day": null },
        });
        assert_eq!(change(&some)?, expected);
        for wrong in ["rpm", "rpm=many", "rpm=-1"] {
            assert!(change(&terms(&[wrong])).is_err(), "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn times_are_bounded() {
        assert_eq!(seconds(1.5, 3600.0).ok(), Some(5400));
        for wrong in [-1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(seconds(wrong, 3600.0).is_err(), "{wrong}");
        }
    }
}
