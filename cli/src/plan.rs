//! The plan: what is where, what changed, and why.

use hyper::Method;
use pomona_cluster_config::Config;
use serde_json::{Map, Value, json};

use crate::admin::{ask, tell};
use crate::arguments::{Place, PlanCommand};
use crate::tables::{self, list, text};

pub(crate) fn run(config: &Config, command: &PlanCommand, json: bool) -> anyhow::Result<()> {
    let path = match command {
        PlanCommand::Show => "/admin/v1/plan".to_owned(),
        PlanCommand::Diff { .. } => "/admin/v1/plan/moves".to_owned(),
        PlanCommand::Explain { model } => format!("/admin/v1/plan/explain/{model}"),
    };
    let answer = ask(config, &Method::GET, &path)?;
    match command {
        _ if json => tables::print_json(&answer),
        PlanCommand::Show => show(&answer),
        PlanCommand::Diff { plans } => diff(&answer, *plans),
        PlanCommand::Explain { .. } => explain(&answer),
    }
    Ok(())
}

fn show(plan: &Value) {
    let rows: Vec<Vec<String>> = list(&plan["models"])
        .iter()
        .flat_map(|model| {
            let name = text(&model["name"]);
            let wanted = wanted(&model["policy"]);
            let holders = list(&model["holders"]);
            if holders.is_empty() {
                return vec![vec![
                    name,
                    wanted,
                    "-".into(),
                    "no place".into(),
                    text(&model["unplaced"]),
                ]];
            }
            holders
                .iter()
                .enumerate()
                .map(|(i, holder)| {
                    let state = match holder["loaded"].as_bool() {
                        Some(true) => "loaded",
                        Some(false) => "loading",
                        None => "away",
                    };
                    // The model is named once.
                    let (name, wanted) = match i {
                        0 => (name.clone(), wanted.clone()),
                        _ => (String::new(), String::new()),
                    };
                    vec![
                        name,
                        wanted,
                        text(&holder["name"]),
                        state.into(),
                        text(&holder["reason"]),
                    ]
                })
                .collect()
        })
        .collect();
    tables::say(&format!("plan {}", plan["plan"]));
    tables::table(&["MODEL", "WANTED", "NODE", "STATE", "WHY"], rows);
}

fn diff(moves: &Value, plans: usize) {
    let history = list(&moves["history"]);
    let shown = &history[history.len().saturating_sub(plans)..];
    let mut rows = Vec::new();
    for plan in shown {
        let label = format!("plan {}, {} ago", plan["plan"], tables::ago(&plan["at_s"]));
        rows.extend(move_rows(&label, list(&plan["moves"])));
    }
    rows.extend(move_rows("next", list(&moves["next"])));
    if rows.is_empty() {
        tables::say("The latest plans moved nothing, and the next one would not either.");
    } else {
        tables::table(&["PLAN", "", "MODEL", "NODE", "WHY"], rows);
    }
}

fn move_rows(plan: &str, moves: &[Value]) -> Vec<Vec<String>> {
    let row = |(i, one): (usize, &Value)| {
        vec![
            if i == 0 { plan.to_owned() } else { String::new() },
            text(&one["do"]),
            text(&one["model"]),
            text(&one["name"]),
            text(&one["reason"]),
        ]
    };
    moves.iter().enumerate().map(row).collect()
}

fn explain(explanation: &Value) {
    let used = match explanation["used_s"].as_u64() {
        Some(0) | None => "never".to_owned(),
        Some(_) => format!("{} ago", tables::ago(&explanation["used_s"])),
    };
    tables::say(&format!(
        "{}: {}; asked for {used}",
        text(&explanation["model"]),
        wanted(&explanation["policy"])
    ));
    let rows = list(&explanation["nodes"])
        .iter()
        .map(|node| vec![text(&node["name"]), text(&node["role"]), text(&node["why"])])
        .collect();
    tables::table(&["NODE", "ROLE", "VERDICT"], rows);
}

/// A policy in a few words.
fn wanted(policy: &Value) -> String {
    let mut words = vec![match policy["replicas"].as_u64() {
        Some(1) => "1 replica".to_owned(),
        Some(count) => format!("{count} replicas"),
        None => "everywhere".to_owned(),
    }];
    let names = |field: &str| {
        list(&policy[field])
            .iter()
            .map(text)
            .collect::<Vec<_>>()
            .join(", ")
    };
    if !list(&policy["pools"]).is_empty() {
        words.push(format!("on {}", names("pools")));
    }
    if !list(&policy["pins"]).is_empty() {
        words.push(format!("pinned to {}", names("pins")));
    }
    if policy["spread"] == true {
        words.push("spread".to_owned());
    }
    match policy["keep"].as_u64() {
        Some(seconds) => words.push(format!("unloaded after {seconds} s")),
        None if policy["keep"] == "always" => words.push("kept".to_owned()),
        None => {}
    }
    words.join(", ")
}

/// `pomona model place`.
pub(crate) fn place(config: &Config, place: &Place) -> anyhow::Result<()> {
    let mut change = Map::new();
    if let Some(replicas) = &place.replicas {
        change.insert("replicas".into(), number_or_word(replicas));
    }
    if let Some(keep) = &place.keep {
        change.insert("keep".into(), number_or_word(keep));
    }
    if !place.pools.is_empty() {
        let pools: Vec<&String> = place.pools.iter().filter(|pool| *pool != "any").collect();
        change.insert("pools".into(), json!(pools));
    }
    if !place.pins.is_empty() {
        let pins: Vec<&String> = place.pins.iter().filter(|pin| *pin != "none").collect();
        change.insert("pins".into(), json!(pins));
    }
    if let Some(spread) = place.spread {
        change.insert("spread".into(), spread.into());
    }
    anyhow::ensure!(
        !change.is_empty(),
        "say what is to change, see `pomona model place --help`"
    );
    let path = format!("/admin/v1/models/{}", place.model);
    let answer = tell(config, &Method::PATCH, &path, &Value::Object(change))?;
    if answer["changed"] == true {
        tables::say("The next plan follows it: `pomona plan show`.");
    } else {
        tables::say("It was so already.");
    }
    Ok(())
}

fn number_or_word(text: &str) -> Value {
    text.parse::<u64>().map_or_else(|_| text.into(), Into::into)
}
