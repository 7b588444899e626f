//! Faults of a whole cluster, with figures: real processes, killed, cut off and started anew.
//! A short fixed part runs with all tests; `cargo xtask test cluster` runs everything. The last
//! line is one JSON object; raw samples and histories lie in `target/cluster`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    reason = "a test"
)]

mod entry;
mod former;
mod gates;
mod key_limits;
mod lan_discovery;
mod leader_kills;
mod mdns_flood;
mod memory;
mod node_loss;
mod nodes_apart;
mod offload;
mod paths;
mod rough_links;
mod served_memory;
mod slowed;
mod swap;
mod tail;
mod unload;

use std::panic::catch_unwind;

use pomona_tests::{mdns_forger, udp_relay};
use serde_json::{Map, Value, json};

/// How much of a scenario is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Short,
    Full,
}

impl Scale {
    fn pick(self, short: usize, full: usize) -> usize {
        match self {
            Scale::Short => short,
            Scale::Full => full,
        }
    }
}

/// What a scenario came to.
enum Outcome {
    Figures(Value),
    Skipped(&'static str),
}

type Scenario = fn(Scale) -> Outcome;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("leader_kills", leader_kills::run),
    ("lan_discovery", lan_discovery::run),
    ("node_loss", node_loss::run),
    ("entry", entry::run),
    ("nodes_apart", nodes_apart::run),
    ("paths", paths::run),
    ("mdns_flood", mdns_flood::run),
    ("rough_links", rough_links::run),
    ("memory", memory::run),
    ("served_memory", served_memory::run),
    ("key_limits", key_limits::run),
    ("swap", swap::run),
    ("tail", tail::run),
    ("slowed", slowed::run),
    ("unload", unload::run),
    ("offload", offload::run),
];

fn main() {
    let words: Vec<String> = std::env::args().collect();
    match &words[..] {
        [_, word, listens, target] if word == udp_relay::ARGUMENT => return udp_relay::run(listens, target),
        [_, word, cluster, rate] if word == mdns_forger::ARGUMENT => {
            return mdns_forger::run(cluster, rate.parse().expect("services a minute"));
        }
        _ => {}
    }
    // The harness of other tests lists and filters; this one runs what is named, or all.
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let full = std::env::var("POMONA_TEST_CLUSTER").is_ok_and(|value| value == "full");
    let scale = if full { Scale::Full } else { Scale::Short };
    let (mut figures, mut ran, mut failed) = (Map::new(), Vec::new(), 0);
    let mut skipped = Vec::new();
    for (name, scenario) in SCENARIOS {
        if !named.is_empty() && !named.iter().any(|word| word == name) {
            continue;
        }
        println!("scenario {name}");
        match catch_unwind(|| scenario(scale)) {
            Ok(Outcome::Figures(value)) => {
                println!("scenario {name}: {value}");
                figures.insert((*name).to_owned(), value);
                ran.push(*name);
            }
            Ok(Outcome::Skipped(why)) => {
                println!("SKIPPED {name}: {why}");
                skipped.push(json!({ "scenario": name, "why": why }));
            }
            Err(_) => {
                println!("scenario {name}: FAILED");
                failed += 1;
            }
        }
    }
    println!("{} passed, {failed} failed, {} skipped", ran.len(), skipped.len());
    println!(
        "{}",
        json!({ "figures": figures, "ran": ran, "skipped": skipped, "scale": format!("{scale:?}") })
    );
    assert!(failed == 0, "{failed} scenarios failed");
}

/// Keeps raw samples for whoever wants to compute a figure again.
fn keep(name: &str, raw: &Value) {
    let folder = pomona_tests::root().join("target/cluster");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join(format!("{name}.json")), format!("{raw:#}\n")).expect("a file");
}

/// The value at a share of the samples.
fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = ((sorted.len() as f64 * q) as usize).min(last);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
