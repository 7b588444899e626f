//! Readings that cannot be true count as missing: a report with absurd numbers costs its sender
//! those numbers, and the reader nothing.

use std::collections::BTreeMap;

use crate::id::ModelName;
use crate::limits;
use crate::report::{ClassReport, EngineReport, NodeReport};
use crate::unit::{Bytes, Percent, Reading, Watts};

/// No machine that Pomona runs on draws more, in watts: a Mac Pro may take 1,280 W for long, of a supply of 1.4 kW.
const POWER: f32 = 1_500.0;
/// Nor has more memory, swap or footprint, in bytes: 16 TiB.
const MEMORY: u64 = 16 << 40;
/// A counter that is higher is somebody's joke.
const COUNTER: u64 = 1 << 53;
/// As are so many sequences.
const SEQUENCES: u32 = 1 << 20;
/// Texts of a report are cut here, in characters.
const TEXT: usize = 256;

/// Takes out of a report what cannot be true and cuts what is too long; gives how many places that
/// were.
pub fn keep_plausible(report: &mut NodeReport) -> usize {
    let mut dropped = 0;
    let machine = &mut report.machine;
    watts(&mut machine.power, &mut dropped);
    for reading in [
        &mut machine.swap_used,
        &mut machine.memory_total,
        &mut machine.memory_available,
        &mut machine.agent.rss,
        &mut machine.agent.footprint,
        &mut machine.engine.rss,
        &mut machine.engine.footprint,
        &mut machine.conditions.compressed,
    ] {
        bytes(reading, MEMORY, &mut dropped);
    }
    drop_unless(&mut machine.memory_total, |total| total.get() > 0, &mut dropped);
    if let Some(total) = machine.memory_total.value() {
        bytes(&mut machine.memory_available, total.get(), &mut dropped);
    }
    for reading in [
        &mut machine.pressure,
        &mut machine.conditions.battery,
        &mut machine.conditions.gpu,
    ] {
        percent(reading, &mut dropped);
    }
    let rails = &mut machine.conditions.rails;
    let before = rails.len();
    rails.truncate(limits::RAILS);
    rails.retain(|rail| is_power(rail.power));
    dropped += before - rails.len();
    for rail in rails {
        text(&mut rail.name, &mut dropped);
    }
    text(&mut machine.power_source, &mut dropped);
    text(&mut machine.chip, &mut dropped);
    text(&mut machine.os, &mut dropped);
    if let Some(blocked) = &mut report.blocked {
        text(blocked, &mut dropped);
    }
    let before = report.first_byte_ms.len();
    report.first_byte_ms.retain(|_, waits| waits.is_sound());
    dropped += before - report.first_byte_ms.len();
    report.kv_budget_bytes = report.kv_budget_bytes.min(MEMORY);
    report.failed.truncate(limits::MODELS);
    if let Some(engine) = &mut report.engine {
        counters(engine, &mut dropped);
        let before = engine.models.len();
        while engine.models.len() > limits::MODELS {
            engine.models.pop_last();
        }
        dropped += before - engine.models.len();
        for name in [
            &mut engine.build.mlx_version,
            &mut engine.build.build,
            &mut engine.build.backend,
            &mut engine.build.precision,
            &mut engine.build.blas,
            &mut engine.build.scheduler,
        ] {
            text(name, &mut dropped);
        }
    }
    dropped
}

/// Histograms that nobody can have recorded are emptied, and counts are kept from overflowing sums.
fn counters(engine: &mut EngineReport, dropped: &mut usize) {
    engine.kv_used = engine.kv_used.min(MEMORY);
    if engine.step_ms.as_ref().is_some_and(|steps| !steps.is_sound()) {
        engine.step_ms = None;
        *dropped += 1;
    }
    for class in engine.classes.values_mut() {
        let fresh = ClassReport::default();
        let histograms = [
            (&mut class.window_ms, fresh.window_ms),
            (&mut class.batch_size, fresh.batch_size),
            (&mut class.ttft_ms, fresh.ttft_ms),
            (&mut class.slot_tok_s, fresh.slot_tok_s),
        ];
        for (histogram, fresh) in histograms {
            if !histogram.is_sound() {
                *histogram = fresh;
                *dropped += 1;
            }
        }
        class.tokens = class.tokens.min(COUNTER);
        class.running = class.running.min(SEQUENCES);
        class.waiting = class.waiting.min(SEQUENCES);
    }
    for loaded in engine.models.values_mut() {
        loaded.running = loaded.running.min(SEQUENCES);
        loaded.waiting = loaded.waiting.min(SEQUENCES);
        loaded.tokens = loaded.tokens.min(COUNTER);
    }
}

fn is_power(watts: Watts) -> bool {
    (0.0..=POWER).contains(&watts.get())
}

fn watts(reading: &mut Reading<Watts>, dropped: &mut usize) {
    drop_unless(reading, is_power, dropped);
}

fn percent(reading: &mut Reading<Percent>, dropped: &mut usize) {
    drop_unless(reading, |percent| (0.0..=100.0).contains(&percent.get()), dropped);
}

fn bytes(reading: &mut Reading<Bytes>, limit: u64, dropped: &mut usize) {
    drop_unless(reading, |bytes| bytes.get() <= limit, dropped);
}

fn drop_unless<T: Copy>(reading: &mut Reading<T>, is_possible: impl Fn(T) -> bool, dropped: &mut usize) {
    if reading.value().is_some_and(|value| !is_possible(value)) {
        *reading = Reading::Unavailable;
        *dropped += 1;
    }
}

/// Takes out of what is told of kills what is too much.
pub fn keep_short(causes: &mut BTreeMap<ModelName, String>) {
    while causes.len() > limits::MODELS {
        causes.pop_last();
    }
    for cause in causes.values_mut() {
        text(cause, &mut 0);
    }
}

fn text(text: &mut String, dropped: &mut usize) {
    if let Some((at, _)) = text.char_indices().nth(TEXT) {
        text.truncate(at);
        *dropped += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::Rail;
    use crate::report::{MachineReport, ProcessReport};

    #[test]
    fn absurd_numbers_are_dropped_and_others_kept() {
        let machine = MachineReport {
            power: Reading::Measured(Watts(f32::NAN)),
            memory_total: Reading::Measured(Bytes(16 << 30)),
            memory_available: Reading::Measured(Bytes(17 << 30)),
            swap_used: Reading::Measured(Bytes(u64::MAX)),
            pressure: Reading::Measured(Percent(-1.0)),
            agent: ProcessReport {
                rss: Reading::Measured(Bytes(20 << 20)),
                ..ProcessReport::default()
            },
            chip: "x".repeat(10_000),
            ..MachineReport::default()
        };
        let mut absurd = NodeReport {
            machine,
            ..NodeReport::default()
        };
        let rail = |power| Rail {
            name: "cpu".into(),
            power: Watts(power),
        };
        absurd.machine.conditions.rails = vec![rail(f32::INFINITY), rail(12.0)];
        assert_eq!(keep_plausible(&mut absurd), 6);
        let machine = &absurd.machine;
        assert_eq!(machine.power, Reading::Unavailable);
        assert_eq!(machine.memory_available, Reading::Unavailable);
        assert_eq!(machine.memory_total, Reading::Measured(Bytes(16 << 30)));
        assert_eq!(machine.agent.rss, Reading::Measured(Bytes(20 << 20)));
        assert_eq!(machine.conditions.rails, [rail(12.0)]);
        assert_eq!(machine.chip.len(), 256);
        assert_eq!(keep_plausible(&mut absurd), 0, "once is enough");
        absurd.machine.memory_total = Reading::Measured(Bytes(0));
        absurd.machine.power = Reading::Measured(Watts(1_501.0));
        assert_eq!(keep_plausible(&mut absurd), 2);
        assert_eq!(absurd.machine.memory_total, Reading::Unavailable);
    }
}
