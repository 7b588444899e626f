//! Telemetry at its limits: what the rings of 256 nodes occupy when they are full, and what share
//! of a core decodes and takes in the reports of 5,000 nodes that report every second. The last
//! line is one JSON object.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark"
)]

use std::collections::BTreeMap;
use std::time::Instant;

use pomona_common::conditions::{Conditions, Rail, Supply};
use pomona_common::control::NodeMessage;
use pomona_common::report::{
    ClassReport, EngineReport, LoadedModel, MachineReport, NodeReport, ProcessReport, REPORT_VERSION,
};
use pomona_common::unit::{Bytes, Percent, Reading, Watts};
use pomona_common::{Class, Histogram, NodeId};
use pomona_decide::Telemetry;
use serde_json::json;

/// Nodes whose rings are filled for a week.
const FULL: u128 = 256;
/// Nodes that report in the ingest part, and for how many seconds.
const NODES: u128 = 5000;
const SECONDS: u64 = 20;
const WEEK_S: u64 = 7 * 24 * 3600;

/// As a busy node sends it: four models, two classes with their histograms.
fn report() -> NodeReport {
    let mut class = ClassReport::default();
    for i in 0..200 {
        class.ttft_ms.record(f64::from(i));
        class.slot_tok_s.record(f64::from(i) / 4.0);
    }
    let models = (0..4).map(|i| {
        let name = format!("mlx-community/model-{i}").parse().unwrap();
        (name, LoadedModel::default())
    });
    let mut waits = Histogram::for_millis();
    waits.record(40.0);
    let gib = |n: u64| Reading::Measured(Bytes(n << 30));
    NodeReport {
        version: REPORT_VERSION,
        wall_ms: 1_800_000_000_000,
        sequence: 4711,
        machine: MachineReport {
            power: Reading::Measured(Watts(31.5)),
            power_source: "macmon".into(),
            swap_used: gib(1),
            memory_total: gib(64),
            memory_available: gib(20),
            pressure: Reading::Measured(Percent(30.0)),
            thermal: Reading::Unavailable,
            agent: ProcessReport {
                rss: gib(0),
                footprint: gib(0),
            },
            engine: ProcessReport {
                rss: gib(20),
                footprint: gib(22),
            },
            chip: "Apple M4 Pro".into(),
            os: "macOS 26.1 25B78".into(),
            conditions: Conditions {
                rails: ["cpu", "gpu", "ane", "dram"]
                    .map(|name| Rail {
                        name: name.into(),
                        power: Watts(4.0),
                    })
                    .to_vec(),
                supply: Reading::Measured(Supply::Mains),
                battery: Reading::Measured(Percent(80.0)),
                ..Conditions::default()
            },
        },
        engine: Some(EngineReport {
            models: models.collect(),
            classes: [(Class::Interactive, class.clone()), (Class::Batch, class)].into(),
            kv_used: 1 << 30,
            step_ms: Some(Histogram::for_millis()),
            ..EngineReport::default()
        }),
        first_byte_ms: BTreeMap::from([(Class::Interactive, waits)]),
        dequantizes: false,
        kv_budget_bytes: 4 << 30,
        engine_kills: 0,
        reached_generation: 3,
        blocked: None,
        failed: Vec::new(),
    }
}

fn main() {
    let mut report = report();
    let mut full = Telemetry::new(FULL as usize);
    for now_s in 0..=WEEK_S {
        // Coarse steps need one report each; the last quarter of an hour is complete.
        let whole = now_s + 900 >= WEEK_S || now_s.is_multiple_of(10);
        for node in (0..FULL).filter(|_| whole) {
            full.ingest(now_s, NodeId::from_bits(node), &mut report);
        }
    }
    let bytes = full.bytes();
    drop(full);

    let frame = pomona_wire::encode(&NodeMessage::Report(Box::new(report))).unwrap();
    let mut telemetry = Telemetry::new(NODES as usize);
    let mut seconds = Vec::new();
    for now_s in 0..SECONDS {
        let began = Instant::now();
        for node in 0..NODES {
            let message: NodeMessage = pomona_wire::decode_body(&frame[4..]).unwrap();
            let NodeMessage::Report(mut report) = message else {
                unreachable!("a report was encoded")
            };
            telemetry.ingest(now_s, NodeId::from_bits(node), &mut report);
        }
        seconds.push(began.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let figures = json!({
        "rings_of_256_nodes_mb": bytes as f64 / 1e6,
        "report_frame_bytes": frame.len(),
        "ingest_5000_nodes_median_core_share": seconds[seconds.len() / 2],
        "ingest_5000_nodes_worst_core_share": seconds.last(),
    });
    println!(
        "{}",
        json!({ "figures": figures, "raw": { "seconds": seconds }, "ran": ["rings", "ingest"], "skipped": [] })
    );
}
