//! The gates of the nodes: which have acted, and why.

use anyhow::bail;
use hyper::Method;
use pomona_cluster_config::Config;
use serde_json::Value;

use crate::admin::{ask, follow};
use crate::arguments::GatesCommand;
use crate::node_commands::path_of;
use crate::tables::{self, ago, list, text};

const PATH: &str = "/admin/v1/gates";
/// Transitions that the overview ends with.
const LATEST: usize = 10;

pub(crate) fn run(config: &Config, command: Option<&GatesCommand>, json: bool) -> anyhow::Result<()> {
    match command.unwrap_or(&GatesCommand::Show) {
        GatesCommand::Show if json => tables::print_json(&ask(config, &Method::GET, PATH)?),
        GatesCommand::Show => show(&ask(config, &Method::GET, PATH)?),
        GatesCommand::Rules => rules(&ask(config, &Method::GET, PATH)?["rules"], json),
        GatesCommand::Watch => watch(config, json)?,
        GatesCommand::Close { ticket } => {
            let path = format!("{PATH}/tickets/{ticket}");
            if ask(config, &Method::DELETE, &path)?["changed"] != true {
                bail!("no ticket {ticket} is open: see `pomona gates`");
            }
            tables::say(&format!("Ticket {ticket} is closed."));
        }
        GatesCommand::Forgive { node, model } => {
            let path = format!("{}/kills/{model}", path_of(node)?);
            let answer = ask(config, &Method::DELETE, &path)?;
            if answer["changed"] != true {
                bail!("no kill of the engine of {node} with {model} is on record: see `pomona gates`");
            }
            tables::say(&format!("{model} may be placed on {node} again."));
        }
    }
    Ok(())
}

fn show(answer: &Value) {
    let open = list(&answer["open"]);
    if open.is_empty() {
        tables::say("All gates are clear.");
    } else {
        let rows = open.iter().map(|open| {
            let what = match open["relocates"].as_str() {
                None => text(&open["reason"]),
                Some(model) => format!("{}; moves {model} away", text(&open["reason"])),
            };
            vec![
                gate(open),
                text(&open["name"]),
                text(&open["stage"]),
                ago(&open["since_s"]),
                what,
            ]
        });
        tables::table(&["GATE", "NODE", "STAGE", "SINCE", "WHY"], rows.collect());
    }
    for ticket in list(&answer["tickets"])
        .iter()
        .filter(|ticket| ticket["closed"] == false)
    {
        tables::say(&format!("Ticket {}: {}", ticket["number"], text(&ticket["text"])));
    }
    for killed in list(&answer["kills"]) {
        tables::say(&format!(
            "The engine of {} was killed with {} {} times within 7 days{}",
            text(&killed["name"]),
            text(&killed["model"]),
            list(&killed["at_s"]).len(),
            killed["latest"]
                .as_str()
                .map_or_else(|| ".".into(), |why| format!("; the latest: {why}."))
        ));
    }
    let transitions = list(&answer["transitions"]);
    if !transitions.is_empty() {
        tables::say("\nLatest:");
    }
    for passed in &transitions[transitions.len().saturating_sub(LATEST)..] {
        tables::say(&line(passed));
    }
}

fn line(passed: &Value) -> String {
    format!(
        "{} ago: {} of {} {}: {}",
        ago(&passed["at_s"]),
        gate(passed),
        text(&passed["name"]),
        text(&passed["to"]),
        text(&passed["reason"])
    )
}

/// Its name; with the model, where there is one gate for each.
fn gate(of: &Value) -> String {
    match of["model"].as_str() {
        Some(model) => format!("{} ({model})", text(&of["gate"])),
        None => text(&of["gate"]),
    }
}

fn rules(rules: &Value, json: bool) {
    if json {
        return tables::print_json(rules);
    }
    let rows = list(rules).iter().map(|rule| {
        let remedy = match rule["secondary"].as_str() {
            Some(second) => format!(
                "{}, after {} s {second}",
                text(&rule["remedy"]),
                rule["secondary_after_s"]
            ),
            None => text(&rule["remedy"]),
        };
        let unit = text(&rule["unit"]);
        vec![
            text(&rule["gate"]),
            format!("> {} {unit} for {} s", rule["trips_above"], rule["trips_after_s"]),
            format!("<= {} {unit} for {} s", rule["clears_at"], rule["clears_after_s"]),
            remedy,
        ]
    });
    tables::table(&["GATE", "TRIPS", "CLEARS", "DOES"], rows.collect());
    for rule in list(rules) {
        tables::say(&format!("{}: {}", text(&rule["gate"]), text(&rule["measures"])));
    }
}

/// Tells transitions as they come, until Ctrl-C.
fn watch(config: &Config, json: bool) -> anyhow::Result<()> {
    follow(config, &format!("{PATH}/events"), |event| {
        if json {
            tables::say(&event.to_string());
        } else {
            tables::say(&line(event));
        }
    })
}
