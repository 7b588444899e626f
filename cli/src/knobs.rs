//! The knobs of engines that the cluster agrees on.

use anyhow::{Context, bail};
use hyper::Method;
use pomona_cluster_config::Config;
use pomona_common::Class;
use serde_json::{Map, Value, json};

use crate::admin::{ask, tell};
use crate::arguments::KnobsCommand;
use crate::tables::{self, list, text};

const PATH: &str = "/admin/v1/knobs";
const OF_CLASS: [&str; 5] = [
    "window_ms",
    "max_slots",
    "reserved_slots",
    "prefill_chunk",
    "step_share",
];

pub(crate) fn run(config: &Config, command: &KnobsCommand, json: bool) -> anyhow::Result<()> {
    let mut change = match command {
        KnobsCommand::Show => {
            let knobs = ask(config, &Method::GET, PATH)?;
            if json {
                tables::print_json(&knobs);
            } else {
                show(&knobs);
            }
            return Ok(());
        }
        KnobsCommand::Set { knobs, force } => json!({ "set": parsed(knobs)?, "force": force }),
        KnobsCommand::Rollback { version, force } => json!({ "to_version": version, "force": force }),
    };
    change["by"] = std::env::var("USER").unwrap_or_default().into();
    tell(config, &Method::PATCH, PATH, &change)?;
    tables::say("Every node has them within seconds: `pomona knobs show`.");
    Ok(())
}

fn parsed(knobs: &[String]) -> anyhow::Result<Value> {
    let mut set = Map::new();
    for knob in knobs {
        let Some((name, value)) = knob.split_once('=') else {
            bail!("`{knob}` is no NAME=VALUE, such as batch.window_ms=200");
        };
        let value: u32 = value
            .parse()
            .with_context(|| format!("`{value}` is no whole number, which {name} has to be"))?;
        set.insert(name.to_owned(), value.into());
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
    let rows = OF_CLASS.iter().map(|name| {
        let values = Class::ALL.iter().map(|class| text(&knobs[class.as_str()][name]));
        std::iter::once((*name).to_owned()).chain(values).collect()
    });
    let header: Vec<&str> = std::iter::once("KNOB")
        .chain(Class::ALL.iter().map(|class| class.as_str()))
        .collect();
    tables::say(&tables::laid_out(&header, rows.collect()));
    for made in list(&answer["history"]) {
        tables::say(&format!("version {} by {}", made["version"], text(&made["by"])));
    }
}
