//! The node's own `/v1`: the local engine, no network, no coordinator.

use std::sync::Arc;

use pomona_api::{Backend, FirstBytes, GenerationStream, TextCache};
use pomona_common::report::NodeReport;
use pomona_common::{Failure, Generation, ModelName, ModelRecord, NodeId};
use pomona_text::ModelText;

use crate::reporter::Reporter;
use crate::store::Store;
use crate::supervisor::Supervisor;

pub(crate) struct NodeBackend {
    id: NodeId,
    name: String,
    store: Store,
    supervisor: Supervisor,
    reporter: Reporter,
    texts: TextCache,
    first_bytes: Arc<FirstBytes>,
}

impl NodeBackend {
    pub(crate) fn new(
        id: NodeId,
        name: String,
        store: Store,
        supervisor: Supervisor,
        reporter: Reporter,
        first_bytes: Arc<FirstBytes>,
    ) -> Self {
        Self {
            id,
            name,
            store,
            supervisor,
            reporter,
            texts: TextCache::default(),
            first_bytes,
        }
    }

    /// Whether this node has the content that the request was resolved for.
    pub(crate) fn check_digests(&self, generation: &Generation) -> Result<(), Failure> {
        let models = self.store.models();
        let models = models.borrow();
        match models.iter().find(|record| record.name == generation.model) {
            Some(record) if record.digests == generation.digests => Ok(()),
            Some(_) => Err(not_here(
                generation,
                "this node has other contents under the name",
            )),
            None => Err(not_here(generation, "it is not in this node's store")),
        }
    }
}

fn not_here(generation: &Generation, detail: &str) -> Failure {
    Failure::ModelNotLoaded {
        model: generation.model.to_string(),
        detail: detail.to_owned(),
    }
}

impl Backend for NodeBackend {
    fn models(&self) -> Vec<ModelRecord> {
        self.store.models().borrow().to_vec()
    }

    async fn text(&self, model: &ModelRecord) -> Result<Arc<ModelText>, Failure> {
        let (store, name) = (self.store.clone(), model.name.clone());
        let load = || async move {
            let internal = |detail: String| Failure::Internal { detail };
            tokio::task::spawn_blocking(move || store.text(&name))
                .await
                .map_err(|error| internal(error.to_string()))?
                .map_err(|error| internal(error.to_string()))
        };
        self.texts.get(model, load).await
    }

    async fn generate(&self, generation: Generation) -> Result<GenerationStream, Failure> {
        let events = self.supervisor.generate(generation).await?;
        Ok(GenerationStream {
            node: self.id,
            events,
        })
    }

    fn reports(&self) -> Vec<(NodeId, String, Arc<NodeReport>)> {
        let latest = self.reporter.latest().borrow().clone();
        vec![(self.id, self.name.clone(), latest)]
    }

    fn first_bytes(&self) -> &Arc<FirstBytes> {
        &self.first_bytes
    }

    fn not_ready(&self) -> Vec<String> {
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
