//! What an engine tells its node.

use std::time::Duration;

use pomona_common::Class;
use pomona_common::report::{ClassReport, EngineReport, LoadedModel};
use pomona_common::signs::{FirstToken, Speeds};

use super::Engine;

impl Engine {
    /// What it reports.
    pub fn report(&mut self) -> EngineReport {
        let models = self.models.values().map(|record| {
            let (waiting, running) = self.scheduler.population(None, Some(&record.name));
            let loaded = LoadedModel {
                running,
                waiting,
                weight_bytes: record.weight_bytes,
                ..LoadedModel::default()
            };
            (record.name.clone(), loaded)
        });
        let models = models.collect();
        let classes = Class::ALL.map(|class| {
            let (waiting, running) = self.scheduler.population(Some(class), None);
            let report = ClassReport {
                waiting,
                running,
                tokens: self.tokens[class.index()],
                ..ClassReport::default()
            };
            (class, report)
        });
        EngineReport {
            knobs: self.scheduler.paced_knobs(),
            models,
            classes: classes.into(),
            kv_used: self.scheduler.kv_allocated(),
            ..EngineReport::default()
        }
    }

    /// Interactive answers so far, and the first tokens of the latest.
    pub fn first_tokens(&self) -> (u64, Vec<FirstToken>) {
        (self.answers, self.first_tokens.clone())
    }

    /// How fast its steps are, as the product's engine tells it.
    pub fn speeds(&mut self) -> Speeds {
        Speeds {
            steps_percent: self.steadiness.percent(Duration::from_micros(self.now)),
            ..Speeds::default()
        }
    }

    /// Bytes of KV cache: of rows, and of what is kept of others.
    pub fn kv_bytes(&self) -> u64 {
        self.scheduler.kv_allocated() + self.prefixes.bytes()
    }

    /// Sequences of a class in slots.
    pub fn running_of(&self, class: Class) -> u32 {
        self.scheduler.population(Some(class), None).1
    }

    /// Sequences of a class that wait or run.
    pub fn of_class(&self, class: Class) -> u32 {
        let (waiting, running) = self.scheduler.population(Some(class), None);
        waiting + running
    }
}
