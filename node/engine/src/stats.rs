//! Counters of the engine since it started.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::report::{ClassReport, EngineBuild, EngineReport, LoadedModel};
use pomona_common::{Class, Histogram, ModelName};
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

    /// Everything, with the scheduler's present state.
    pub fn report(
        &mut self,
        build: &EngineBuild,
        scheduler: &mut Scheduler,
        weights: &BTreeMap<ModelName, u64>,
    ) -> EngineReport {
        for class in Class::ALL {
            let stats = scheduler.take_stats(class);
            let (waiting, running) = scheduler.population(Some(class), None);
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
                let (waiting, running) = scheduler.population(None, Some(model));
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
            knobs: scheduler.knobs().clone(),
            models,
            classes: self.classes.clone(),
            kv_used: scheduler.kv_allocated(),
            steps: self.steps,
            step_ms: Some(self.step_ms.clone()),
        }
    }
}
