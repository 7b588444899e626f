//! The service levels that the cluster agrees on.

use pomona_cluster_config::Config;
use pomona_common::SLO_NAMES;
use serde_json::{Value, json};

use crate::agreed;
use crate::arguments::SloCommand;
use crate::knobs::numbers;
use crate::tables;

const PATH: &str = "/admin/v1/slo";

pub(crate) fn run(config: &Config, command: &SloCommand, json: bool) -> anyhow::Result<()> {
    let change = match command {
        SloCommand::Show => return tables::asked(config, PATH, json, show),
        SloCommand::Set { values } => json!({ "set": numbers(values, "interactive.ttft_ms=600")? }),
        SloCommand::Rollback { version } => json!({ "to_version": version }),
    };
    agreed::change(
        config,
        PATH,
        change,
        "Every node has them within seconds: `pomona slo show`.",
    )
}

fn show(answer: &Value) {
    let slos = &answer["slos"];
    match slos["version"].as_u64() {
        Some(0) | None => {
            tables::say("Nobody has changed these; nodes go by their configurations for queues:")
        }
        Some(version) => tables::say(&format!("Version {version}")),
    }
    tables::by_class("SERVICE LEVEL", &SLO_NAMES, slos);
    tables::versions(&answer["history"]);
}
