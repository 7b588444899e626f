//! What people read: tables that fit a terminal, and errors.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the program's output"
)]

use comfy_table::{ContentArrangement, Table, presets};
use hyper::Method;
use pomona_cluster_config::Config;
use pomona_common::Class;
use serde_json::Value;

use crate::admin::ask;
use crate::coordinators;

/// Where a coordinator says how the cluster is.
pub(crate) const STATUS: &str = "/admin/v1/status";

/// An error with its causes, in one sentence after the other.
pub(crate) fn complain(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

/// Prints a line.
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// Prints JSON.
pub(crate) fn print_json(value: &Value) {
    println!("{value:#}");
}

/// Asks for what is at a path, and prints it: as JSON, or as people read it.
pub(crate) fn asked(
    config: &Config,
    path: &str,
    json: bool,
    show: impl FnOnce(&Value),
) -> anyhow::Result<()> {
    let answer = ask(config, &Method::GET, path)?;
    if json {
        print_json(&answer);
    } else {
        show(&answer);
    }
    Ok(())
}

/// Prints a table in the house style.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) {
    say(&laid_out(header, rows));
}

/// A table in the house style.
pub(crate) fn laid_out(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

/// Values that each class has, a row a name.
pub(crate) fn by_class(what: &str, names: &[&str], values: &Value) {
    let rows = names.iter().map(|name| {
        let of_classes = Class::ALL.iter().map(|class| text(&values[class.as_str()][name]));
        std::iter::once((*name).to_owned()).chain(of_classes).collect()
    });
    let classes = Class::ALL.iter().map(|class| class.as_str());
    let header: Vec<&str> = std::iter::once(what).chain(classes).collect();
    table(&header, rows.collect());
}

/// Who made which version of what the cluster agrees on.
pub(crate) fn versions(history: &Value) {
    for made in list(history) {
        say(&format!("version {} by {}", made["version"], text(&made["by"])));
    }
}

/// The open join tokens.
pub(crate) fn tokens(tokens: &Value) {
    let now_s = now_s();
    let rows: Vec<Vec<String>> = list(tokens)
        .iter()
        .map(|token| {
            let left = token["expires_s"].as_u64().unwrap_or(0).saturating_sub(now_s);
            vec![
                text(&token["id"]),
                text(&token["role"]),
                text(&token["name"]),
                format!("{} min {} s", left / 60, left % 60),
            ]
        })
        .collect();
    if rows.is_empty() {
        say("no open tokens; make one with `pomona token create`");
    } else {
        table(&["TOKEN", "ROLE", "NAME", "EXPIRES IN"], rows);
    }
}

pub(crate) fn status(config: &Config, json: bool) -> anyhow::Result<()> {
    let status = ask(config, &Method::GET, STATUS)?;
    if json {
        print_json(&status);
        return Ok(());
    }
    let connected = list(&status["nodes"])
        .iter()
        .filter(|node| node["connected"] == true)
        .count();
    say(&format!("cluster   {}", text(&status["cluster"])));
    let raft = &status["raft"];
    if let Some(why) = raft["stopped"].as_str() {
        say(&format!(
            "STOPPED   it writes nothing any more: {why}; see its disk, and start it again"
        ));
    }
    let part = match (
        raft["leads"] == true,
        raft["member"] == false,
        raft["leader"].as_u64(),
    ) {
        (true, _, _) => "leads".to_owned(),
        (_, true, _) => "is not part of the cluster".to_owned(),
        (_, _, Some(leader)) => format!("follows coordinator {leader}"),
        (_, _, None) => "knows no leader".to_owned(),
    };
    say(&format!(
        "raft      coordinator {} {part}; term {}, applied {}",
        raft["number"], raft["term"], raft["applied"]
    ));
    say(&format!(
        "nodes     {connected} of {} connected",
        list(&status["nodes"]).len()
    ));
    say(&format!("plan      {}", status["plan"]));
    say(&format!("loaded    {}", words(&status["loaded"])));
    match words(&status["not_ready"]).as_str() {
        "-" => say(&format!("ready     yes: http://{}/v1", config.own_http())),
        why => say(&format!("ready     no: {why}")),
    }
    for warning in coordinators::warnings(list(&status["coordinators"])) {
        say(&warning);
    }
    Ok(())
}

pub(crate) fn models(config: &Config, json: bool) -> anyhow::Result<()> {
    let status = ask(config, &Method::GET, STATUS)?;
    if json {
        print_json(&status["models"]);
        return Ok(());
    }
    let rows = list(&status["models"])
        .iter()
        .map(|model| {
            let holds = |node: &&Value| !node["report"]["engine"]["models"][text(&model["name"])].is_null();
            let nodes: Vec<String> = list(&status["nodes"])
                .iter()
                .filter(holds)
                .map(|n| text(&n["name"]))
                .collect();
            vec![
                text(&model["name"]),
                gib(model["weight_bytes"].as_f64().unwrap_or(0.0)),
                model["context"].to_string(),
                if nodes.is_empty() {
                    "not loaded".into()
                } else {
                    nodes.join(", ")
                },
            ]
        })
        .collect();
    table(&["MODEL", "SIZE", "CONTEXT", "LOADED ON"], rows);
    Ok(())
}

/// Bytes as gibibytes.
pub(crate) fn gib(bytes: f64) -> String {
    format!("{:.2} GiB", bytes / (1u64 << 30) as f64)
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Seconds since 1970.
fn now_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// How long ago a moment was, given in seconds since 1970.
pub(crate) fn ago(at_s: &Value) -> String {
    let now_s = now_s();
    match now_s.saturating_sub(at_s.as_u64().unwrap_or(now_s)) {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// How far away a moment is, given in seconds since 1970.
pub(crate) fn until(at_s: u64) -> String {
    match at_s.saturating_sub(now_s()) {
        0 => "ended".to_owned(),
        left @ 1..=7199 => format!("in {} min", left.div_ceil(60)),
        left @ 7200..=172_799 => format!("in {} h", left / 3600),
        left => format!("in {} days", left / 86_400),
    }
}

fn words(value: &Value) -> String {
    let words: Vec<String> = list(value).iter().map(text).collect();
    if words.is_empty() {
        "-".into()
    } else {
        words.join(", ")
    }
}
