//! What the surface needs from whoever answers.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pomona_common::gate::{Gate, Stage};
use pomona_common::generation::GenerationEvent;
use pomona_common::report::NodeReport;
use pomona_common::{Class, Failure, Generation, Maker, ModelName, ModelRecord, NodeId, Rung, Slo, TextAsk};
use pomona_text::ModelText;
use tokio::sync::mpsc;

use crate::access::Access;
use crate::enough::Enough;
use crate::entry_stats::EntryStats;
use crate::usage::UsageLog;

/// An answer being made. Dropping it cancels it, wherever it is.
#[derive(Debug)]
pub struct GenerationStream {
    /// Who makes it.
    pub maker: Maker,
    /// Events after the grant. The end of the channel without `Finished` or `Failed` means that
    /// the node went away.
    pub events: mpsc::Receiver<GenerationEvent>,
    /// Ends it, but for its last event.
    pub enough: Enough,
}

/// The last report of a node.
#[derive(Debug, Clone)]
pub struct Reported {
    /// The node.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// How old the report is.
    pub age: Duration,
    /// What it says.
    pub report: Arc<NodeReport>,
    /// How far the node is relieved of batch work.
    pub rung: Rung,
    /// How far its gates have acted that are not clear, where that is known.
    pub gates: Option<BTreeMap<Gate, Stage>>,
}

/// Answers requests that are resolved to token ids.
pub trait Backend: Send + Sync + 'static {
    /// Who may ask.
    fn access(&self) -> &Access;

    /// Where it is written down what requests took.
    fn usage(&self) -> &UsageLog;

    /// Models that may be asked for.
    fn models(&self) -> Vec<ModelRecord>;

    /// One of them.
    fn model(&self, name: &str) -> Option<ModelRecord>;

    /// The text side of a model, loaded on first use.
    fn text(&self, model: &ModelRecord) -> impl Future<Output = Result<Arc<ModelText>, Failure>> + Send;

    /// Starts an answer: comes back when a slot is granted or refused. `text` is the same request for a cloud, or
    /// why none may answer it.
    fn generate(
        &self,
        generation: Generation,
        text: Result<&TextAsk, &'static str>,
    ) -> impl Future<Output = Result<GenerationStream, Failure>> + Send;

    /// Last reports of the nodes behind this endpoint.
    fn reports(&self) -> Vec<Reported>;

    /// What is promised to a class.
    fn slo(&self, class: Class) -> Slo;

    /// Where waits for the first byte are counted.
    fn entry_stats(&self) -> &Arc<EntryStats>;

    /// What keeps this endpoint from answering; empty when it is ready.
    fn not_ready(&self) -> Vec<String>;

    /// Models that some node has loaded now.
    fn loaded(&self) -> Vec<ModelName>;
}
