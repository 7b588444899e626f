//! The node's own `/v1`: the engine here, without network or coordinator, and the rest of the
//! cluster for what is not here.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use pomona_api::{Access, Backend, EntryStats, GenerationStream, Reported, TextCache, UsageLog};
use pomona_common::{Class, Failure, Generation, ModelName, ModelRecord, NodeId, Slo, TextAsk};
use pomona_text::ModelText;

use crate::entry::Entry;
use crate::reporter::Reporter;
use crate::store::Store;
use crate::supervisor::Supervisor;

pub(crate) struct NodeBackend {
    id: NodeId,
    name: String,
    store: Store,
    supervisor: Supervisor,
    entry: Entry,
    reporter: Reporter,
    texts: TextCache,
    entry_stats: Arc<EntryStats>,
    access: Access,
    usage: UsageLog,
}

impl NodeBackend {
    pub(crate) fn new(
        id: NodeId,
        name: String,
        store: Store,
        supervisor: Supervisor,
        entry: Entry,
        reporter: Reporter,
        (entry_stats, access, usage): (Arc<EntryStats>, Access, UsageLog),
    ) -> Self {
        Self {
            id,
            name,
            store,
            supervisor,
            entry,
            reporter,
            texts: TextCache::default(),
            entry_stats,
            access,
            usage,
        }
    }
}

impl Backend for NodeBackend {
    fn access(&self) -> &Access {
        &self.access
    }

    fn usage(&self) -> &UsageLog {
        &self.usage
    }

    fn slo(&self, class: Class) -> Slo {
        self.entry.slo(class)
    }

    fn models(&self) -> Vec<ModelRecord> {
        self.entry.models()
    }

    fn model(&self, name: &str) -> Option<ModelRecord> {
        self.entry.model(name)
    }

    async fn text(&self, model: &ModelRecord) -> Result<Arc<ModelText>, Failure> {
        let (store, entry, name) = (self.store.clone(), self.entry.clone(), model.name.clone());
        let here = store.models().borrow().iter().any(|own| own == model);
        let load = || async move {
            if !here {
                return entry.fetch_text(&name).await;
            }
            let internal = |detail: String| Failure::Internal { detail };
            tokio::task::spawn_blocking(move || store.text(&name))
                .await
                .map_err(|error| internal(error.to_string()))?
                .map_err(|error| internal(error.to_string()))
        };
        self.texts.get(model, load).await
    }

    async fn generate(
        &self,
        generation: Generation,
        text: Result<&TextAsk, &'static str>,
    ) -> Result<GenerationStream, Failure> {
        self.entry.generate(generation, text).await
    }

    fn reports(&self) -> Vec<Reported> {
        let report = self.reporter.latest().borrow().report.clone();
        let made = UNIX_EPOCH + Duration::from_millis(report.wall_ms);
        vec![Reported {
            node: self.id,
            name: self.name.clone(),
            // A clock that was set back makes it new.
            age: made.elapsed().unwrap_or_default(),
            report,
            rung: self.entry.rung(),
            gates: None,
        }]
    }

    fn entry_stats(&self) -> &Arc<EntryStats> {
        &self.entry_stats
    }

    fn not_ready(&self) -> Vec<String> {
        if self.entry.has_elsewhere() {
            return Vec::new();
        }
        let view = self.supervisor.view();
        let view = view.borrow();
        let mut failing = Vec::new();
        if view.pid.is_none() {
            failing.push("the engine is not running".to_owned());
        }
        if view.loaded.is_empty() {
            failing.push(
                view.blocked()
                    .unwrap_or_else(|| "no model is loaded yet".to_owned()),
            );
        }
        failing
    }

    fn loaded(&self) -> Vec<ModelName> {
        self.supervisor.view().borrow().loaded.iter().cloned().collect()
    }
}
