//! Counters of the engine since it started.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::report::{ClassReport, EngineBuild, EngineReport, LoadedModel};
use pomona_common::{Accounting, Class, Histogram, ModelName};
use pomona_sched::Scheduler;

/// Counters that outlive sequences.
#[derive(Debug)]
pub struct Stats {
    classes: BTreeMap<Class, ClassReport>,
    tokens: BTreeMap<ModelName, u64>,
    steps: u64,
    step_ms: Histogram,
    paused: BTreeMap<Class, u32>,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            classes: Class::ALL.map(|class| (class, ClassReport::default())).into(),
            tokens: BTreeMap::new(),
            steps: 0,
            step_ms: Histogram::for_millis(),
            paused: BTreeMap::new(),
        }
    }
}

impl Stats {
    /// The counters of a class.
    pub fn class(&mut self, class: Class) -> &mut ClassReport {
        self.classes.entry(class).or_default()
    }

    /// A step took this long, with so many rows of each class, and so many of each paused.
    pub fn step(&mut self, took: Duration, rows: &BTreeMap<Class, u32>, paused: BTreeMap<Class, u32>) {
        self.steps += 1;
        self.step_ms.record(took.as_secs_f64() * 1e3);
        self.paused = paused;
        for (class, rows) in rows {
            self.class(*class).batch_size.record(f64::from(*rows));
        }
    }

    /// A token left the engine.
    pub fn token(&mut self, class: Class, model: &ModelName) {
        self.class(class).tokens += 1;
        *self.tokens.entry(model.clone()).or_default() += 1;
    }

    /// An answer came to its end.
    pub fn finished(&mut self, class: Class, accounting: &Accounting) {
        let class = self.class(class);
        class.finished += 1;
        if accounting.decode_ms > 0.0 {
            let tokens = f64::from(accounting.completion_tokens.saturating_sub(1));
            class.slot_tok_s.record(tokens * 1e3 / accounting.decode_ms);
        }
    }

    /// Everything, with the scheduler's present state. `canary` is one that is in it, which is
    /// nobody's load.
    pub fn report(
        &mut self,
        build: &EngineBuild,
        scheduler: &mut Scheduler,
        weights: &BTreeMap<ModelName, u64>,
        canary: Option<(Class, &ModelName)>,
    ) -> EngineReport {
        let without = |(waiting, running): (u32, u32), is_its: bool| {
            let (canary_waits, canary_runs) = (is_its && running == 0, is_its && running > 0);
            let waiting = waiting.saturating_sub(u32::from(canary_waits));
            (waiting, running - u32::from(canary_runs))
        };
        for class in Class::ALL {
            let stats = scheduler.take_stats(class);
            let is_its = canary.is_some_and(|(own, _)| own == class);
            let (waiting, running) = without(scheduler.population(Some(class), None), is_its);
            let paused = self.paused.get(&class).copied().unwrap_or(0).min(running);
            let report = self.class(class);
            report.batches = stats.batches;
            for window in stats.windows {
                report.window_ms.record(window.as_secs_f64() * 1e3);
            }
            (report.waiting, report.running, report.paused) = (waiting, running, paused);
        }
        let models = weights
            .iter()
            .map(|(model, bytes)| {
                let is_its = canary.is_some_and(|(_, own)| own == model);
                let (waiting, running) = without(scheduler.population(None, Some(model)), is_its);
                let loaded = LoadedModel {
                    running,
                    waiting,
                    tokens: self.tokens.get(model).copied().unwrap_or(0),
                    weight_bytes: *bytes,
                };
                (model.clone(), loaded)
            })
            .collect();
        EngineReport {
            build: build.clone(),
            knobs: scheduler.paced_knobs(),
            models,
            classes: self.classes.clone(),
            kv_used: scheduler.kv_allocated(),
            steps: self.steps,
            step_ms: Some(self.step_ms.clone()),
        }
    }
}
