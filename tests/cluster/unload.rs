//! A laptop that stays short of memory lets a model go that nobody uses there and another machine has: its engine gives
//! the memory back, and who asks the laptop for it is answered all the same. Real engines; the pressure is scripted.

use std::time::{Duration, Instant};

use pomona_tests::{MODEL, Machine, eventually, greedy, stream_from};
use serde_json::{Value, json};

use crate::former::{SOON, holders, lead, start_engine};
use crate::offload::{of_role, rung};
use crate::{Outcome, Scale, keep};

/// A new leader learns for five minutes what people use before it lets anything go.
const LEARNS: Duration = Duration::from_secs(420);
/// What the weights take at least, in bytes.
const WEIGHTS: u64 = 200 << 20;

pub(crate) fn run(scale: Scale) -> Outcome {
    if scale == Scale::Short {
        return Outcome::Skipped("a leader learns for five minutes what people use: the full run has it");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("readings.json");
    let pressure = |percent: u32| std::fs::write(&script, json!({ "pressure_percent": percent }).to_string());
    pressure(20).expect("a script");
    let (mut coordinator, mut laptop, mut rack) = (Machine::empty(), Machine::empty(), Machine::empty());
    lead(&mut coordinator);
    laptop.configure(&format!("[probe]\nscript = {script:?}\n"));
    for (node, role, others) in [(&mut laptop, "laptop", 0), (&mut rack, "rack", 1)] {
        start_engine(&coordinator, node, role, others + 1);
    }
    let here = || of_role(&coordinator, "laptop");
    eventually("its memory is told", SOON, || rss(&here()) > Some(WEIGHTS));
    let before = rss(&here());

    pressure(90).expect("a script");
    let began = Instant::now();
    eventually("batch is held off", SOON, || rung(&here()) == "hold");
    eventually("the model makes room", LEARNS, || rung(&here()) == "unload");
    let unloaded_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    eventually("its memory is free", SOON, || {
        holders(&coordinator, MODEL) == 1 && freed(before, rss(&here())) > Some(WEIGHTS)
    });
    let figures = json!({
        "unloaded_s": unloaded_s, "freed_s": began.elapsed().as_secs_f64(),
        "rss_before_bytes": before, "rss_after_bytes": rss(&here()),
    });
    keep("unload", &figures);
    let mut body = greedy("Who answers?", 8);
    body["stream"] = true.into();
    let answer = stream_from(laptop.node, &body);
    assert!(answer.done && answer.error.is_none(), "{:?}", answer.error);
    Outcome::Figures(figures)
}

/// Resident memory of a node's engine, in bytes.
fn rss(node: &Value) -> Option<u64> {
    node["report"]["machine"]["engine"]["rss"]["Measured"].as_u64()
}

fn freed(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    before.zip(now).map(|(before, now)| before.saturating_sub(now))
}
