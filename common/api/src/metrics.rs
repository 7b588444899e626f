//! `GET /metrics`: Prometheus text, rendered from the reports. A value that is not measured is
//! left out, never zero.

use std::collections::BTreeMap;
use std::fmt::Write;

use pomona_common::Histogram;
use pomona_common::conditions::{Conditions, Supply};
use pomona_common::gate::Gate;
use pomona_common::report::{EngineReport, MachineReport};

use crate::backend::Reported;
use crate::entry_stats::EntryStats;

pub(crate) fn render(reports: &[Reported], entry: &EntryStats, usage_lost: u64) -> String {
    let mut out = Text::default();
    out.value(
        "pomona_usage_records_lost_total",
        "counter",
        "",
        usage_lost as f64,
    );
    for ((class, reason), count) in entry.requests() {
        let labels = format!("class=\"{class}\",reason=\"{}\"", reason.as_str());
        out.value("pomona_requests_total", "counter", &labels, count as f64);
    }
    for (class, waits) in &entry.first_bytes() {
        out.histogram(
            "pomona_first_byte_seconds",
            &format!("class=\"{class}\""),
            waits,
            1e-3,
        );
    }
    for ((class, budget), (promised, missed)) in entry.missed() {
        let labels = format!("class=\"{class}\",budget=\"{}\"", budget.as_str());
        out.value("pomona_slo_judged_total", "counter", &labels, promised as f64);
        out.value("pomona_slo_missed_total", "counter", &labels, missed as f64);
    }
    for reported in reports {
        let (id, report) = (reported.node, &reported.report);
        let node = format!("node=\"{id}\",name=\"{}\"", escape(&reported.name));
        let age = reported.age.as_secs_f64();
        out.value("pomona_node_report_age_seconds", "gauge", &node, age);
        let rung = reported.rung as u8;
        out.value("pomona_node_relief_rung", "gauge", &node, f64::from(rung));
        if let Some(gates) = &reported.gates {
            for gate in Gate::ALL {
                let stage = gates.get(&gate).copied().unwrap_or_default() as u8;
                let labels = format!("{node},gate=\"{gate}\"");
                out.value("pomona_node_gate_stage", "gauge", &labels, f64::from(stage));
            }
        }
        machine(&mut out, &node, &report.machine);
        conditions(&mut out, &node, &report.machine.conditions);
        out.value(
            "pomona_engine_kills_total",
            "counter",
            &node,
            report.engine_kills as f64,
        );
        if let Some(report) = &report.engine {
            engine(&mut out, &node, report);
        }
    }
    out.finish()
}

fn machine(out: &mut Text, node: &str, machine: &MachineReport) {
    let bytes = [
        ("pomona_node_swap_used_bytes", machine.swap_used),
        ("pomona_node_memory_total_bytes", machine.memory_total),
        ("pomona_node_memory_available_bytes", machine.memory_available),
        ("pomona_agent_resident_bytes", machine.agent.rss),
        ("pomona_agent_footprint_bytes", machine.agent.footprint),
        ("pomona_engine_resident_bytes", machine.engine.rss),
        ("pomona_engine_footprint_bytes", machine.engine.footprint),
    ];
    for (name, reading) in bytes {
        if let Some(bytes) = reading.value() {
            out.value(name, "gauge", node, bytes.get() as f64);
        }
    }
    if let Some(watts) = machine.power.value() {
        let labels = format!("{node},source=\"{}\"", escape(&machine.power_source));
        out.value(
            "pomona_node_power_watts",
            "gauge",
            &labels,
            f64::from(watts.get()),
        );
    }
    if let Some(pressure) = machine.pressure.value() {
        out.value(
            "pomona_node_memory_pressure_percent",
            "gauge",
            node,
            f64::from(pressure.get()),
        );
    }
}

fn conditions(out: &mut Text, node: &str, conditions: &Conditions) {
    for rail in &conditions.rails {
        let labels = format!("{node},rail=\"{}\"", escape(&rail.name));
        let watts = f64::from(rail.power.get());
        out.value("pomona_node_rail_watts", "gauge", &labels, watts);
    }
    if let Some(bytes) = conditions.compressed.value() {
        out.value("pomona_node_compressed_bytes", "gauge", node, bytes.get() as f64);
    }
    let percents = [
        ("pomona_node_battery_percent", conditions.battery),
        ("pomona_node_gpu_percent", conditions.gpu),
    ];
    for (name, reading) in percents {
        if let Some(percent) = reading.value() {
            out.value(name, "gauge", node, f64::from(percent.get()));
        }
    }
    let activity = &conditions.activity;
    let supply = conditions.supply.value();
    let states = [
        (
            "pomona_node_on_battery",
            supply.map(|supply| supply == Supply::Battery),
        ),
        ("pomona_node_low_power", conditions.low_power.value()),
        ("pomona_node_indexing", activity.indexing.value()),
        ("pomona_node_video", activity.video.value()),
        ("pomona_node_capture", activity.capture.value()),
        ("pomona_node_locked", activity.locked.value()),
    ];
    for (name, state) in states {
        if let Some(state) = state {
            out.value(name, "gauge", node, f64::from(state));
        }
    }
    if let Some(seconds) = activity.idle_s.value() {
        out.value("pomona_node_idle_seconds", "gauge", node, seconds as f64);
    }
}

fn engine(out: &mut Text, node: &str, engine: &EngineReport) {
    let build = &engine.build;
    let [backend, precision, mlx, hash, scheduler] = [
        &build.backend,
        &build.precision,
        &build.mlx_version,
        &build.build,
        &build.scheduler,
    ]
    .map(|text| escape(text));
    let labels = format!(
        "{node},backend=\"{backend}\",precision=\"{precision}\",mlx=\"{mlx}\",build=\"{hash}\",scheduler=\"{scheduler}\""
    );
    out.value("pomona_engine_info", "gauge", &labels, 1.0);
    out.value("pomona_engine_kv_bytes", "gauge", node, engine.kv_used as f64);
    out.value("pomona_engine_steps_total", "counter", node, engine.steps as f64);
    if let Some(steps) = &engine.step_ms {
        out.histogram("pomona_engine_step_seconds", node, steps, 1e-3);
    }
    for (class, report) in &engine.classes {
        let labels = format!("{node},class=\"{class}\"");
        let gauges = [
            ("pomona_sequences_waiting", report.waiting),
            ("pomona_sequences_running", report.running),
            ("pomona_sequences_paused", report.paused),
        ];
        for (name, value) in gauges {
            out.value(name, "gauge", &labels, f64::from(value));
        }
        out.value(
            "pomona_sequences_finished_total",
            "counter",
            &labels,
            report.finished as f64,
        );
        out.value(
            "pomona_sequences_cancelled_total",
            "counter",
            &labels,
            report.cancelled as f64,
        );
        out.value("pomona_tokens_total", "counter", &labels, report.tokens as f64);
        out.histogram("pomona_ttft_seconds", &labels, &report.ttft_ms, 1e-3);
        out.histogram("pomona_batch_window_seconds", &labels, &report.window_ms, 1e-3);
        out.histogram("pomona_batch_size", &labels, &report.batch_size, 1.0);
        out.histogram("pomona_slot_tokens_per_second", &labels, &report.slot_tok_s, 1.0);
    }
    for (model, loaded) in &engine.models {
        let labels = format!("{node},model=\"{model}\"");
        out.value(
            "pomona_model_tokens_total",
            "counter",
            &labels,
            loaded.tokens as f64,
        );
        out.value(
            "pomona_model_weight_bytes",
            "gauge",
            &labels,
            loaded.weight_bytes as f64,
        );
    }
}

/// Samples grouped by metric: the format wants all samples of one name together.
#[derive(Default)]
struct Text {
    families: BTreeMap<&'static str, (&'static str, String)>,
}

impl Text {
    fn family(&mut self, name: &'static str, kind: &'static str) -> &mut String {
        &mut self
            .families
            .entry(name)
            .or_insert_with(|| (kind, String::new()))
            .1
    }

    fn value(&mut self, name: &'static str, kind: &'static str, labels: &str, value: f64) {
        let _ = writeln!(self.family(name, kind), "{name}{{{labels}}} {value}");
    }

    fn histogram(&mut self, name: &'static str, labels: &str, histogram: &Histogram, scale: f64) {
        let mut seen = 0;
        let family = self.family(name, "histogram");
        for (bound, count) in histogram.buckets() {
            seen += count;
            let bound = if bound.is_finite() {
                format!("{}", bound * scale)
            } else {
                "+Inf".into()
            };
            let _ = writeln!(family, "{name}_bucket{{{labels},le=\"{bound}\"}} {seen}");
        }
        let _ = writeln!(family, "{name}_sum{{{labels}}} {}", histogram.sum() * scale);
        let _ = writeln!(family, "{name}_count{{{labels}}} {seen}");
    }

    fn finish(self) -> String {
        self.families
            .into_iter()
            .map(|(name, (kind, samples))| format!("# TYPE {name} {kind}\n{samples}"))
            .collect()
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
