//! What the go-between reports of its servers.

use pomona_common::report::{ADOPTED_BACKEND, ClassReport, EngineBuild, EngineReport, LoadedModel};
use pomona_common::{Class, Generation, ModelName};

use super::Adapter;
use super::server::Server;

pub(super) fn build() -> EngineBuild {
    EngineBuild {
        build: "adopted".into(),
        backend: ADOPTED_BACKEND.into(),
        precision: "its own".into(),
        scheduler: "its own".into(),
        ..EngineBuild::default()
    }
}

impl Adapter {
    /// What people ask servers for directly counts as interactive work that runs: they wait for it.
    pub(super) fn report(&self) -> EngineReport {
        let up = self.servers.iter().filter(|(_, server)| server.is_up);
        let others: u32 = up.clone().map(|(_, server)| server.others.count()).sum();
        let model = |(name, server): (&ModelName, &Server)| {
            let loaded = LoadedModel {
                running: self.count(|generation| generation.model == *name) + server.others.count(),
                waiting: self.queue.count(|generation| generation.model == *name),
                tokens: server.tokens,
                weight_bytes: server.adopted.memory_bytes,
            };
            (name.clone(), loaded)
        };
        let class = |class: Class| {
            let others = if class == Class::Interactive { others } else { 0 };
            let report = ClassReport {
                running: self.count(|generation| generation.class == class) + others,
                waiting: self.queue.count(|generation| generation.class == class),
                ..self.classes.get(&class).cloned().unwrap_or_default()
            };
            (class, report)
        };
        EngineReport {
            build: build(),
            knobs: self.knobs.entered(self.pace, self.is_short),
            models: up.map(model).collect(),
            classes: Class::ALL.into_iter().map(class).collect(),
            steps: self.progress,
            ..EngineReport::default()
        }
    }

    /// Requests of ours that servers work on.
    pub(super) fn count(&self, is_it: impl Fn(&Generation) -> bool) -> u32 {
        self.running
            .values()
            .filter(|running| is_it(&running.job.generation))
            .count() as u32
    }
}
