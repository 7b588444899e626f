//! The swap gate by the book, `literal`: it trips after its 90 s of scripted swap, batch gets no more while
//! it has, an operator who insists is recorded, and it clears after its 60 s. The full run has the time.

use std::time::{Duration, Instant};

use pomona_tests::{MODEL, Machine, eventually};
use serde_json::{Value, json};

use crate::former::{SOON, holders, join, lead};
use crate::{Outcome, Scale, keep};

/// The gate's own times, and two reports more.
const TRIPS: Duration = Duration::from_secs(96);
const CLEARS: Duration = Duration::from_secs(66);

pub(crate) fn run(scale: Scale) -> Outcome {
    if scale == Scale::Short {
        return Outcome::Skipped("the gate's own times take three minutes: the full run has them");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("readings.json");
    let swap = |mb: u64| {
        std::fs::write(&script, json!({ "swap_used_bytes": mb * 1_000_000 }).to_string()).expect("a script");
    };
    swap(0);
    let (mut coordinator, mut node) = (Machine::empty(), Machine::empty());
    coordinator.configure("[gates.swap]\nliteral = true\n");
    lead(&mut coordinator);
    node.configure(&format!("[probe]\nscript = {script:?}\n"));
    node.pull_model();
    join(&coordinator, &node, "rack", Some(&coordinator.quic()));
    node.start_node("echo");
    eventually("it is there", SOON, || holders(&coordinator, MODEL) == 1);

    let larger = ["knobs", "set", "batch.max_slots=20"];
    swap(900);
    let began = Instant::now();
    eventually("it trips", TRIPS, || has_tripped(&coordinator));
    let tripped_s = began.elapsed().as_secs_f64();
    let (ok, _, errors) = coordinator.pomona(&larger);
    assert!(!ok && errors.contains("the swap gate of"), "{errors}");
    let (ok, _, errors) = coordinator.pomona(&["knobs", "set", "batch.max_slots=5"]);
    assert!(ok, "less is no matter: {errors}");
    let (ok, _, errors) = coordinator.pomona(&[&larger[..], &["--force"]].concat());
    assert!(ok, "{errors}");
    let shown = coordinator.json(&["knobs", "show"]).to_string();
    let forced = "forced while a gate had tripped: ";
    let who = shown.split_once(forced).map(|(_, rest)| rest.split('"').next());
    assert!(who.flatten().is_some_and(|who| !who.trim().is_empty()), "{shown}");

    swap(100);
    let began = Instant::now();
    eventually("it clears", CLEARS, || !has_tripped(&coordinator));
    let cleared_s = began.elapsed().as_secs_f64();
    let (ok, _, errors) = coordinator.pomona(&["knobs", "set", "batch.max_slots=24"]);
    assert!(ok, "{errors}");
    assert!(tripped_s > 85.0 && cleared_s > 55.0, "{tripped_s} {cleared_s}");
    let figures = json!({ "tripped_s": tripped_s, "cleared_s": cleared_s });
    keep("swap", &json!({ "figures": figures }));
    Outcome::Figures(figures)
}

fn has_tripped(coordinator: &Machine) -> bool {
    let shown = coordinator.json(&["gates", "show"]);
    let open = shown["open"].as_array().cloned().unwrap_or_default();
    open.iter()
        .any(|gate: &Value| gate["gate"] == "swap" && gate["stage"] != "clear")
}
