//! Prompts into token ids, where the cluster has the model's tokenizer.

use std::sync::Arc;

use pomona_common::failure::InvalidCode;
use pomona_common::{Failure, ModelRecord};
use pomona_text::{ModelText, TemplateError};

use crate::backend::Backend;
use crate::request::{Ask, Prompt};

/// Bytes of a token, roughly, where nobody can count: English in the tokenizers of today.
const TOKEN_BYTES: usize = 4;

/// A prompt as it travels.
pub(crate) struct Resolved {
    /// The model's text side; none of a model that takes text.
    pub(crate) text: Option<Arc<ModelText>>,
    /// Token ids; none of a model that takes text.
    pub(crate) prompt: Vec<u32>,
    /// How many tokens that is, or is about.
    pub(crate) tokens: u32,
    /// The prompt's text, where it is to be echoed.
    pub(crate) echo: String,
}

/// Resolves a request; what a server of another program has stays text.
pub(crate) async fn resolve<B: Backend>(
    backend: &B,
    ask: Ask,
    model: &ModelRecord,
) -> Result<(Ask, Resolved), Failure> {
    if model.digests.is_adopted() {
        let resolved = Resolved {
            text: None,
            prompt: Vec::new(),
            tokens: estimate(&ask.prompt),
            echo: String::new(),
        };
        return Ok((ask, resolved));
    }
    let text = backend.text(model).await?;
    let (reader, model) = (text.clone(), model.clone());
    // Megabytes of text take a second: not on the threads that keep sessions alive.
    let (ask, resolved) = tokio::task::spawn_blocking(move || {
        let resolved = tokens(&reader, &ask, &model);
        (ask, resolved)
    })
    .await
    .map_err(|error| Failure::Internal {
        detail: error.to_string(),
    })?;
    let (prompt, echo) = resolved?;
    let resolved = Resolved {
        text: Some(text),
        tokens: prompt.len() as u32,
        prompt,
        echo,
    };
    Ok((ask, resolved))
}

fn estimate(prompt: &Prompt) -> u32 {
    let bytes = match prompt {
        Prompt::Chat(messages) => messages
            .iter()
            .map(|message| message.content.len() + TOKEN_BYTES)
            .sum(),
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(ids) => ids.len() * TOKEN_BYTES,
    };
    u32::try_from(bytes.div_ceil(TOKEN_BYTES))
        .unwrap_or(u32::MAX)
        .max(1)
}

/// The prompt as token ids, with room for at least one more.
fn tokens(text: &ModelText, ask: &Ask, model: &ModelRecord) -> Result<(Vec<u32>, String), Failure> {
    let invalid = |message: String| {
        let parameter = if matches!(ask.prompt, Prompt::Chat(_)) {
            "messages"
        } else {
            "prompt"
        };
        Failure::invalid(parameter, InvalidCode::InvalidValue, message)
    };
    let encode_error = |error: pomona_text::TextError| invalid(error.to_string());
    let (prompt, echo) = match &ask.prompt {
        Prompt::Chat(messages) => {
            let rendered = text.render_chat(messages).map_err(|error| match error {
                TemplateError::Missing | TemplateError::Refused(_) => invalid(error.to_string()),
                TemplateError::Broken(_) => invalid(format!("{error}")),
            })?;
            (text.encode(&rendered).map_err(encode_error)?, String::new())
        }
        Prompt::Text(plain) => {
            let ids = text.encode_prompt(plain).map_err(encode_error)?;
            (ids, if ask.echo { plain.clone() } else { String::new() })
        }
        Prompt::Tokens(ids) => {
            if let Some(id) = ids.iter().find(|id| **id >= text.vocab()) {
                return Err(invalid(format!("token id {id} is not below {}", text.vocab())));
            }
            (ids.clone(), String::new())
        }
    };
    if prompt.is_empty() {
        return Err(invalid("the prompt is empty".into()));
    }
    if prompt.len() as u64 >= u64::from(model.context) {
        let parameter = if matches!(ask.prompt, Prompt::Chat(_)) {
            "messages"
        } else {
            "prompt"
        };
        let message = format!(
            "the prompt has {} tokens and the context of `{}` is {}: shorten it",
            prompt.len(),
            model.name,
            model.context
        );
        return Err(Failure::invalid(
            parameter,
            InvalidCode::ContextLengthExceeded,
            message,
        ));
    }
    Ok((prompt, echo))
}
