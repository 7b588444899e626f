//! Tokenizers and templates by content, loaded once on first use.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use pomona_common::control::TextBundle;
use pomona_common::{Failure, ModelRecord, limits};
use pomona_text::ModelText;
use sha2::{Digest, Sha256};
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
    /// What `load` says, or the bundle is broken, or not the model's.
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
            check(model, &bundle)?;
            let internal = |detail: String| Failure::Internal { detail };
            let built = tokio::task::spawn_blocking(move || ModelText::new(bundle))
                .await
                .map_err(|error| internal(error.to_string()))?;
            built.map(Arc::new).map_err(|error| internal(error.to_string()))
        });
        text.await.cloned()
    }
}

/// A bundle comes from whatever node says that it has the model: what it does to prompts is the
/// catalogue's word, not that node's.
fn check(model: &ModelRecord, bundle: &TextBundle) -> Result<(), Failure> {
    let digest = |bytes: &[u8]| -> String {
        let digest = Sha256::digest(bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let digests = &model.digests;
    let same = digest(&bundle.tokenizer_json) == digests.tokenizer
        && digest(bundle.chat_template.as_bytes()) == digests.template;
    if same {
        return Ok(());
    }
    Err(Failure::Internal {
        detail: format!(
            "the tokenizer or template of `{}` is not the catalogue's",
            model.name
        ),
    })
}

#[cfg(test)]
mod tests {
    use pomona_common::ModelDigests;

    use super::*;

    #[test]
    fn a_template_that_is_not_the_catalogues_is_refused() -> Result<(), pomona_common::id::IdError> {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let record = ModelRecord {
            name: "m".parse()?,
            digests: ModelDigests {
                weights: String::new(),
                tokenizer: empty.into(),
                template: empty.into(),
            },
            weight_bytes: 0,
            dequantized_bytes: 0,
            kv_bytes_per_token: 0,
            context: 0,
            created_s: 0,
        };
        let mut bundle = TextBundle {
            tokenizer_json: Vec::new(),
            chat_template: String::new(),
            stop_tokens: Vec::new(),
            bos_token: String::new(),
            eos_token: String::new(),
            add_bos: false,
            vocab: 0,
        };
        assert_eq!(check(&record, &bundle), Ok(()));
        bundle.chat_template = "You are a parrot.".into();
        assert!(check(&record, &bundle).is_err());
        Ok(())
    }
}
