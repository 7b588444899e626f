//! `docs/benchmarks.md`, written from the kept results in `docs/benchmarks/`.

use std::fs;
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};

use crate::commands::output;

/// Keeps a result with its raw samples, and writes the page anew.
pub(crate) fn keep(name: &str, figures: &Value, raw: &Value) -> anyhow::Result<()> {
    let folder = crate::root().join("docs/benchmarks");
    fs::create_dir_all(&folder)?;
    let result = json!({
        "command": format!("cargo xtask bench {name}"),
        "date": output("date", Command::new("date").args(["-u", "+%Y-%m-%d"]))?.trim(),
        "machine": machine(),
        "versions": { "pomona": env!("CARGO_PKG_VERSION"), "mlx": "0.32.2", "mlx-lm": "0.32.2", "openblas": openblas() },
        "figures": figures,
        "raw": raw,
    });
    fs::write(folder.join(format!("{name}.json")), format!("{result:#}\n"))?;
    fs::write(crate::root().join("docs/benchmarks.md"), page()?)?;
    Ok(())
}

fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("{} cores, {}", cores, model.unwrap_or("unknown processor").trim())
}

fn openblas() -> String {
    let packages = Command::new("dpkg-query")
        .args(["-W", "-f", "${Version}", "libopenblas0-pthread"])
        .output();
    packages
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

/// One section a kept result, one row a figure.
fn page() -> anyhow::Result<String> {
    let mut page = String::from(
        "# Benchmarks\n\nWritten by `cargo xtask bench`. Every figure comes from the command of its section, against \
         a named peer in\nthe same run; medians over the rounds. Raw samples are in `docs/benchmarks/`.\n",
    );
    for name in ["engine", "gateway", "telemetry", "planner", "weights", "idle"] {
        let path = crate::root().join(format!("docs/benchmarks/{name}.json"));
        let Ok(text) = fs::read(&path) else {
            continue;
        };
        let result: Value =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
        let text = |field: &str| result[field].as_str().unwrap_or_default().to_owned();
        let versions: Vec<String> = result["versions"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, version)| format!("{name} {}", version.as_str().unwrap_or_default()))
            .collect();
        page.push_str(&format!(
            "\n## `{}`\n\n{}; {}; {}\n\n| | figure | value |\n|---|---|---|\n",
            text("command"),
            text("date"),
            text("machine"),
            versions.join(", ")
        ));
        for (group, value) in result["figures"].as_object().into_iter().flatten() {
            match value.as_object() {
                Some(figures) => figures.iter().for_each(|(figure, value)| {
                    page.push_str(&format!("| {group} | {figure} | {} |\n", number(value)));
                }),
                None => page.push_str(&format!("| | {group} | {} |\n", number(value))),
            }
        }
    }
    // Scenarios of whole clusters are told in words, by whoever ran them.
    let told = crate::root().join("docs/benchmarks/cluster.md");
    page.push('\n');
    page.push_str(&fs::read_to_string(&told).with_context(|| format!("{}", told.display()))?);
    Ok(page)
}

fn number(value: &Value) -> String {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => format!("{float:.3}"),
            _ => number.to_string(),
        },
        Value::Array(items) => items.iter().map(number).collect::<Vec<_>>().join(" to "),
        other => other.to_string(),
    }
}
