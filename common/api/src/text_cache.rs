//! Tokenizers and templates by content, loaded once on first use.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use pomona_common::control::TextBundle;
use pomona_common::{Failure, ModelRecord, limits};
use pomona_text::ModelText;
use tokio::sync::OnceCell;

type Cell = Arc<OnceCell<Arc<ModelText>>>;

/// See the module's documentation. Bounded by the size of the catalogue.
#[derive(Debug, Default)]
pub struct TextCache {
    cells: Mutex<BTreeMap<(String, String), Cell>>,
}

impl TextCache {
    /// The text side of a model; `load` brings the bundle when it is not here yet. Requests for
    /// the same model wait for one load.
    ///
    /// # Errors
    /// What `load` says, or the bundle is broken.
    pub async fn get<L, F>(&self, model: &ModelRecord, load: L) -> Result<Arc<ModelText>, Failure>
    where
        L: FnOnce() -> F,
        F: Future<Output = Result<TextBundle, Failure>>,
    {
        let key = (model.digests.tokenizer.clone(), model.digests.template.clone());
        let cell = {
            let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            if cells.len() > limits::MODELS {
                cells.clear();
            }
            cells.entry(key).or_default().clone()
        };
        let text = cell.get_or_try_init(|| async {
            let bundle = load().await?;
            let internal = |detail: String| Failure::Internal { detail };
            let built = tokio::task::spawn_blocking(move || ModelText::new(bundle))
                .await
                .map_err(|error| internal(error.to_string()))?;
            built.map(Arc::new).map_err(|error| internal(error.to_string()))
        });
        text.await.cloned()
    }
}
