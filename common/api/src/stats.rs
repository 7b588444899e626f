//! `GET /v1/batch/stats`: the keys of mlx-batch-server, filled from the engines' reports.

use pomona_common::report::EngineReport;
use pomona_common::{Class, NodeId};
use serde_json::{Map, Value, json};

use crate::backend::Reported;

pub(crate) fn batch_stats(reports: &[Reported]) -> Value {
    let engines: Vec<(&NodeId, &EngineReport)> = reports
        .iter()
        .filter_map(|reported| Some((&reported.node, reported.report.engine.as_ref()?)))
        .collect();
    let Some((_, first)) = engines.first() else {
        return json!({ "enabled": true, "settings": {}, "coordinators": {}, "coverage": {} });
    };
    let batch = &first.knobs.batch;
    let mut coordinators = Map::new();
    for (id, engine) in &engines {
        let classes = &engine.classes;
        let requests: u64 = classes.values().map(|class| class.finished).sum();
        let batches: u64 = classes.values().map(|class| class.batches).sum();
        for (model, loaded) in &engine.models {
            let key = if engines.len() == 1 {
                model.to_string()
            } else {
                format!("{model}@{}", id.short())
            };
            coordinators.insert(
                key,
                json!({
                    "coordinator": {
                        "total_requests": requests,
                        "total_batches": batches,
                        "total_tokens": loaded.tokens,
                        "pending_requests": loaded.waiting,
                        "active_requests": loaded.running,
                        "batch_window_ms": engine.knobs.batch.window_ms,
                        "max_batch_size": engine.knobs.batch.max_slots,
                    },
                    "generator": {},
                }),
            );
        }
    }
    let windows: Map<String, Value> = Class::ALL
        .iter()
        .map(|class| (class.to_string(), first.knobs.class(*class).window_ms.into()))
        .collect();
    json!({
        "enabled": true,
        "settings": {
            "batch_window_ms": batch.window_ms,
            "max_batch_size": batch.max_slots,
            "batch_completion_size": first.knobs.total_slots,
            "batch_prefill_size": batch.max_slots,
            "batch_prefill_step_size": batch.prefill_chunk,
        },
        "window_effective_ms": windows,
        "coordinators": coordinators,
        "coverage": {},
    })
}
