//! The knobs of engines that the cluster agrees on.

use anyhow::{Context, bail};
use pomona_cluster_config::Config;
use serde_json::{Map, Value, json};

use crate::agreed;
use crate::arguments::KnobsCommand;
use crate::tables;

const PATH: &str = "/admin/v1/knobs";
const OF_CLASS: [&str; 5] = [
    "window_ms",
    "max_slots",
    "reserved_slots",
    "prefill_chunk",
    "step_share",
];

pub(crate) fn run(config: &Config, command: &KnobsCommand, json: bool) -> anyhow::Result<()> {
    let change = match command {
        KnobsCommand::Show => return tables::asked(config, PATH, json, show),
        KnobsCommand::Set { knobs, force } => {
            json!({ "set": numbers(knobs, "batch.window_ms=200")?, "force": force })
        }
        KnobsCommand::Rollback { version, force } => json!({ "to_version": version, "force": force }),
    };
    agreed::change(
        config,
        PATH,
        change,
        "Every node has them within seconds: `pomona knobs show`.",
    )
}

/// Values by name, from NAME=VALUE as in `example`.
pub(crate) fn numbers(texts: &[String], example: &str) -> anyhow::Result<Value> {
    let mut set = Map::new();
    for text in texts {
        let Some((name, value)) = text.split_once('=') else {
            bail!("`{text}` is no NAME=VALUE, such as {example}");
        };
        let value: u32 = value
            .parse()
            .with_context(|| format!("`{value}` is no whole number from 0 on, which {name} has to be"))?;
        if set.insert(name.to_owned(), value.into()).is_some() {
            bail!("{name} is named twice");
        }
    }
    Ok(set.into())
}

fn show(answer: &Value) {
    let knobs = &answer["knobs"];
    if answer["agreed"] == true {
        tables::say(&format!(
            "Version {}, slice_ms {}",
            knobs["version"], knobs["slice_ms"]
        ));
    } else {
        tables::say("Nodes go by their configurations; the first `pomona knobs set` starts from these:");
    }
    tables::by_class("KNOB", &OF_CLASS, knobs);
    tables::versions(&answer["history"]);
}
