//! The cluster's `/v1`: requests go to a node that has the model, by the last plan and the last
//! reports, with or without a leader.

use std::sync::Arc;

use pomona_api::{Access, Backend, EntryStats, GenerationStream, Reported, TextCache, UsageLog};
use pomona_common::control::TextBundle;
use pomona_common::{Class, Failure, Generation, ModelName, ModelRecord, NodeId, Slo, TextAsk};
use pomona_raft::Replica;
use pomona_text::ModelText;

use crate::clouds::Clouds;
use crate::dispatch::Dispatcher;
use crate::sessions::Sessions;

pub(crate) struct CoordinatorBackend {
    pub(crate) replica: Replica,
    pub(crate) sessions: Arc<Sessions>,
    /// What this coordinator is configured for.
    pub(crate) clouds: Arc<Clouds>,
    dispatcher: Dispatcher,
    texts: TextCache,
    entry_stats: Arc<EntryStats>,
    access: Access,
    usage: UsageLog,
}

impl CoordinatorBackend {
    pub(crate) fn new(
        replica: Replica,
        sessions: Arc<Sessions>,
        (access, usage): (Access, UsageLog),
        clouds: Arc<Clouds>,
    ) -> Self {
        Self {
            dispatcher: Dispatcher::new(replica.clone(), sessions.clone(), clouds.clone()),
            clouds,
            replica,
            sessions,
            texts: TextCache::default(),
            entry_stats: Arc::default(),
            access,
            usage,
        }
    }

    /// Starts an answer for a client of a node, which holds it itself.
    pub(crate) async fn generate_for_node(
        &self,
        node: NodeId,
        generation: Generation,
    ) -> Result<GenerationStream, Failure> {
        self.dispatcher.of(node).generate(generation).await
    }

    /// Has a cloud answer for a client of a node, by this coordinator's list.
    pub(crate) async fn spill_for_node(&self, ask: &TextAsk) -> Result<GenerationStream, Failure> {
        let list = self.replica.known().fallback(ask.class).into_owned();
        self.clouds.answer(&list, ask).await
    }

    /// What tokenising for a model needs, from a node that has it.
    pub(crate) async fn fetch_text(&self, model: &ModelRecord) -> Result<TextBundle, Failure> {
        self.dispatcher.expect_replica(&model.name).await;
        for connected in self.sessions.all().into_values() {
            let has_it = connected
                .stored()
                .iter()
                .any(|stored| stored.digests == model.digests);
            if !has_it {
                continue;
            }
            match pomona_dispatch::fetch_text(&connected.session, &model.name).await {
                Ok(bundle) => return Ok(bundle),
                Err(error) => tracing::warn!(node = connected.name, %error, "tokenizer not fetched"),
            }
        }
        Err(self.dispatcher.not_loaded(&model.name))
    }
}

impl Backend for CoordinatorBackend {
    fn access(&self) -> &Access {
        &self.access
    }

    fn usage(&self) -> &UsageLog {
        &self.usage
    }

    fn slo(&self, class: Class) -> Slo {
        self.replica.known().slo(class)
    }

    fn models(&self) -> Vec<ModelRecord> {
        self.replica.known().catalogue.values().cloned().collect()
    }

    fn model(&self, name: &str) -> Option<ModelRecord> {
        let name: ModelName = name.parse().ok()?;
        self.replica.known().catalogue.get(&name).cloned()
    }

    async fn text(&self, model: &ModelRecord) -> Result<Arc<ModelText>, Failure> {
        self.texts.get(model, || self.fetch_text(model)).await
    }

    async fn generate(
        &self,
        generation: Generation,
        text: Result<&TextAsk, &'static str>,
    ) -> Result<GenerationStream, Failure> {
        self.dispatcher.generate_held(generation, text).await
    }

    fn reports(&self) -> Vec<Reported> {
        let state = self.replica.known();
        self.sessions
            .all()
            .into_iter()
            .filter_map(|(node, connected)| {
                let (age, report) = connected.report()?;
                let name = connected.name.clone();
                Some(Reported {
                    node,
                    name,
                    age,
                    report,
                    rung: state.relief(node).rung,
                    gates: Some(state.gates.stages(node)),
                })
            })
            .collect()
    }

    fn entry_stats(&self) -> &Arc<EntryStats> {
        &self.entry_stats
    }

    fn not_ready(&self) -> Vec<String> {
        let nodes = self.sessions.all();
        let mut failing = Vec::new();
        if nodes.is_empty() {
            failing.push("no node is connected".to_owned());
        } else if self.loaded().is_empty() {
            let blocked = nodes.values().find_map(|node| node.report()?.1.blocked.clone());
            failing.push(blocked.unwrap_or_else(|| "no model is loaded yet".to_owned()));
        }
        failing
    }

    fn loaded(&self) -> Vec<ModelName> {
        let mut models: Vec<ModelName> = self
            .reports()
            .iter()
            .filter_map(|reported| reported.report.engine.as_ref())
            .flat_map(|engine| engine.models.keys().cloned())
            .collect();
        models.sort();
        models.dedup();
        models
    }
}
