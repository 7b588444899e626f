//! The nodes of the cluster, once or every second.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use hyper::Method;
use pomona_cluster_config::Config;
use serde_json::Value;

use crate::admin::ask;
use crate::tables::{self, STATUS, gib, list, text};

/// Between two looks of `--watch`.
const EVERY: Duration = Duration::from_secs(1);
/// Seconds of power that `--watch` draws, and how many of them share a character.
const DRAWN_S: u64 = 60;
const CELL_S: u64 = 5;

/// Lists the nodes once.
pub(crate) fn list_once(config: &Config, json: bool) -> anyhow::Result<()> {
    let status = ask(config, &Method::GET, STATUS)?;
    if json {
        tables::print_json(&status["nodes"]);
    } else {
        tables::say(&listed(&status, None));
    }
    Ok(())
}

/// Lists them every second until Ctrl-C: in place on a terminal, one JSON array a line for scripts.
pub(crate) fn watch(config: &Config, json: bool) -> anyhow::Result<()> {
    let in_place = !json && std::io::stdout().is_terminal();
    let power = format!("/admin/v1/history/power/{DRAWN_S}");
    let mut out = std::io::stdout().lock();
    loop {
        let status = ask(config, &Method::GET, STATUS)?;
        let text = if json {
            status["nodes"].to_string()
        } else {
            let history = ask(config, &Method::GET, &power)?;
            listed(&status, Some(&history["nodes"]))
        };
        // Home, then clear what is left of the last picture: no flicker.
        let home = if in_place { "\x1b[H\x1b[J" } else { "" };
        writeln!(out, "{home}{text}")?;
        out.flush()?;
        std::thread::sleep(EVERY);
    }
}

fn listed(status: &Value, power: Option<&Value>) -> String {
    let mut header = vec![
        "ID",
        "NAME",
        "ROLE",
        "STATE",
        "AGE",
        "ENGINE",
        "RUN/WAIT",
        "POWER",
        "FEED",
        "MEM FREE",
        "SWAP",
        "ENGINE RSS",
        "KILLS",
    ];
    if power.is_some() {
        header.push("POWER, LAST MINUTE");
    }
    let rows = list(&status["nodes"])
        .iter()
        .map(|node| {
            let mut row = row(node);
            if let Some(power) = power {
                row.push(sparkline(&power[text(&node["id"])]));
            }
            row
        })
        .collect();
    tables::laid_out(&header, rows)
}

fn row(node: &Value) -> Vec<String> {
    let machine = &node["report"]["machine"];
    let engine = &node["report"]["engine"];
    let sequences = |field: &str| -> u64 {
        let classes = engine["classes"].as_object();
        classes
            .into_iter()
            .flatten()
            .filter_map(|(_, class)| class[field].as_u64())
            .sum()
    };
    let rung = node["relieved"]["relief"]["rung"].as_str().unwrap_or("normal");
    let spared = format!("spared: {}", rung.replace('_', " "));
    let state = match (&node["approved"], &node["connected"]) {
        (Value::Bool(false), _) => "unapproved",
        (_, Value::Bool(true)) if node["lease"]["evicting"] == true => "leaving",
        (_, Value::Bool(true)) if node["availability"] == "Cordoned" => "cordoned",
        (_, Value::Bool(true)) if node["availability"]["Draining"].is_object() => "draining",
        (_, Value::Bool(true)) if node["presence"] == "suspected" => "suspected",
        (_, Value::Bool(true)) if rung != "normal" => &spared,
        (_, Value::Bool(true)) => "up",
        _ => node["presence"].as_str().unwrap_or("away"),
    };
    let id = text(&node["id"]);
    vec![
        id.chars().take(8).collect(),
        text(&node["name"]),
        text(&node["role"]),
        state.to_owned(),
        age(&node["report_age_ms"]),
        engine["build"]["backend"].as_str().unwrap_or("-").to_owned(),
        format!("{}/{}", sequences("running"), sequences("waiting")),
        reading(&machine["power"], |watts| format!("{watts:.0} W")),
        feed(&machine["conditions"]),
        reading(&machine["memory_available"], gib),
        reading(&machine["swap_used"], gib),
        reading(&machine["engine"]["rss"], gib),
        node["report"]["engine_kills"]
            .as_u64()
            .map_or("-".into(), |kills| kills.to_string()),
    ]
}

/// How old the last report is, when that is worth a look.
fn age(report_age_ms: &Value) -> String {
    match report_age_ms.as_u64() {
        None => "-".into(),
        Some(ms) if ms <= 1500 => "now".into(),
        Some(ms) => format!("{} s", ms / 1000),
    }
}

/// What feeds the machine.
fn feed(conditions: &Value) -> String {
    let supply = ["Measured", "Scripted"]
        .iter()
        .find_map(|origin| conditions["supply"][origin].as_str());
    match supply {
        Some("Battery") => reading(&conditions["battery"], |percent| {
            format!("battery {percent:.0} %")
        }),
        Some(_) => "mains".into(),
        None => "-".into(),
    }
}

/// A reading that says when it is scripted or not to be had.
fn reading(value: &Value, show: impl Fn(f64) -> String) -> String {
    match (value["Measured"].as_f64(), value["Scripted"].as_f64()) {
        (Some(number), _) => show(number),
        (None, Some(number)) => format!("{} (scripted)", show(number)),
        (None, None) => "-".into(),
    }
}

/// Points of a history, the newest at the right; a gap where nothing was reported.
fn sparkline(points: &Value) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let cells = (DRAWN_S / CELL_S) as usize;
    let mut highest = vec![f64::NAN; cells];
    for point in list(points) {
        let (Some(age_s), Some(value)) = (point[0].as_u64(), point[3].as_f64()) else {
            continue;
        };
        let back = (age_s / CELL_S) as usize;
        if let Some(cell) = cells.checked_sub(back + 1) {
            highest[cell] = highest[cell].max(value);
        }
    }
    let known = || highest.iter().copied().filter(|value| value.is_finite());
    let Some((low, high)) = known().reduce(f64::min).zip(known().reduce(f64::max)) else {
        return "-".into();
    };
    let level = |value: f64| {
        let share = if high > low {
            (value - low) / (high - low)
        } else {
            0.5
        };
        LEVELS[((share * 7.0).round() as usize).min(7)]
    };
    highest
        .iter()
        .map(|value| if value.is_finite() { level(*value) } else { ' ' })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sparkline_has_its_newest_at_the_right_and_gaps() {
        let points = json!([[58, 1, 1.0, 1.0], [3, 1, 9.0, 9.0], [0, 1, 5.0, 5.0]]);
        assert_eq!(sparkline(&points), "▁          █");
        assert_eq!(sparkline(&json!([])), "-");
        assert_eq!(sparkline(&json!([[0, 1, 4.0, 4.0]])).trim_start(), "▅");
    }
}
