//! Where requests of each class go, in which order.

use anyhow::bail;
use pomona_cluster_config::Config;
use pomona_common::Class;
use serde_json::{Map, Value, json};

use crate::agreed;
use crate::arguments::FallbackCommand;
use crate::tables::{self, list, text};

const PATH: &str = "/admin/v1/fallback";

pub(crate) fn run(config: &Config, command: &FallbackCommand, json: bool) -> anyhow::Result<()> {
    let change = match command {
        FallbackCommand::Show => return tables::asked(config, PATH, json, show),
        FallbackCommand::Set { lists } => json!({ "set": parsed(lists)? }),
        FallbackCommand::Rollback { version } => json!({ "to_version": version }),
    };
    agreed::change(
        config,
        PATH,
        change,
        "Requests go by it from now on: `pomona fallback show`.",
    )
}

fn parsed(lists: &[String]) -> anyhow::Result<Value> {
    let mut set = Map::new();
    for one in lists {
        let Some((class, targets)) = one.split_once('=') else {
            bail!("`{one}` is no CLASS=LIST, such as batch=rack,rented,pause:20");
        };
        if set.insert(class.to_owned(), targets.into()).is_some() {
            bail!("{class} is named twice");
        }
    }
    Ok(set.into())
}

fn joined(targets: &Value) -> String {
    let targets: Vec<String> = list(targets).iter().map(text).collect();
    targets.join(", ")
}

fn show(answer: &Value) {
    match answer["version"].as_u64() {
        Some(0) | None => tables::say("Nobody has changed these:"),
        Some(version) => tables::say(&format!("Version {version}")),
    }
    let rows = Class::ALL.into_iter().map(|class| {
        let targets = joined(&answer["lists"][class.as_str()]);
        vec![class.to_string(), targets]
    });
    tables::say(&tables::laid_out(&["CLASS", "IN THIS ORDER"], rows.collect()));
    for made in list(&answer["history"]) {
        let lists = Class::ALL.into_iter().map(|class| {
            let targets = joined(&made["lists"][class.as_str()]);
            format!("{class}={}", targets.replace(", ", ","))
        });
        let lists: Vec<String> = lists.collect();
        tables::say(&format!(
            "version {} by {}: {}",
            made["version"],
            text(&made["by"]),
            lists.join(" ")
        ));
    }
}
