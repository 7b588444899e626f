//! The swap gate by the book, `literal`: it trips after its 90 s of scripted swap, batch gets no more while
//! it has, an operator who insists is recorded, and it clears after its 60 s. The full run has the time.

use std::time::{Duration, Instant};

use pomona_tests::{MODEL, Machine, eventually};
use serde_json::json;

use crate::former::{SOON, holders, join, lead};
use crate::gates::{has_tripped, refuses_more};
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

    swap(900);
    let began = Instant::now();
    eventually("it trips", TRIPS, || has_tripped(&coordinator, "swap"));
    let tripped_s = began.elapsed().as_secs_f64();
    let (ok, _, errors) = coordinator.pomona(&["knobs", "set", "batch.max_slots=5"]);
    assert!(ok, "less is no matter: {errors}");
    refuses_more(&coordinator, "swap");

    swap(100);
    let began = Instant::now();
    eventually("it clears", CLEARS, || !has_tripped(&coordinator, "swap"));
    let cleared_s = began.elapsed().as_secs_f64();
    let (ok, _, errors) = coordinator.pomona(&["knobs", "set", "batch.max_slots=24"]);
    assert!(ok, "{errors}");
    assert!(tripped_s > 85.0 && cleared_s > 55.0, "{tripped_s} {cleared_s}");
    let figures = json!({ "tripped_s": tripped_s, "cleared_s": cleared_s });
    keep("swap", &json!({ "figures": figures }));
    Outcome::Figures(figures)
}
