//! Text to token ids and back: tokenizer, chat template, incremental decoding, stop strings.
//! Requests are tokenised once, where they enter the cluster.
#![forbid(unsafe_code)]

mod answer;
mod template;

use std::sync::Arc;

use pomona_common::control::TextBundle;
use tokenizers::Tokenizer;

pub use answer::{AnswerText, Piece};
pub use template::{Message, TemplateError};

use template::Template;

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// `tokenizer.json` is not a tokenizer.
    #[error("tokenizer.json cannot be used: {0}")]
    Tokenizer(String),
    /// The chat template does not parse.
    #[error("chat template cannot be used")]
    Template(#[source] TemplateError),
}

/// The text side of one model.
#[derive(Debug)]
pub struct ModelText {
    tokenizer: Arc<Tokenizer>,
    template: Option<Template>,
    bundle: TextBundle,
}

impl ModelText {
    /// Builds tokenizer and template.
    ///
    /// # Errors
    /// One of them is broken.
    pub fn new(bundle: TextBundle) -> Result<Self, TextError> {
        let mut tokenizer = Tokenizer::from_bytes(&bundle.tokenizer_json)
            .map_err(|error| TextError::Tokenizer(error.to_string()))?;
        // Limits of the file would cut prompts silently.
        tokenizer
            .with_truncation(None)
            .map_err(|error| TextError::Tokenizer(error.to_string()))?;
        tokenizer.with_padding(None);
        let template = if bundle.chat_template.is_empty() {
            None
        } else {
            let template = Template::new(&bundle).map_err(TextError::Template)?;
            Some(template)
        };
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            template,
            bundle: TextBundle {
                tokenizer_json: Vec::new(),
                ..bundle
            },
        })
    }

    /// Renders a conversation, ready for the answer.
    ///
    /// # Errors
    /// The model has no template, or it refuses the conversation.
    pub fn render_chat(&self, messages: &[Message]) -> Result<String, TemplateError> {
        let template = self.template.as_ref().ok_or(TemplateError::Missing)?;
        template.render(messages)
    }

    /// Token ids of a text. Names of special tokens in it are honoured only in rendered
    /// templates; `plain` text keeps them as characters where the tokenizer can.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| TextError::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a plain completion prompt.
    ///
    /// # Errors
    /// As [`ModelText::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = self.tokenizer.token_to_id(&self.bundle.bos_token)
            && self.bundle.add_bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The text of one token by itself, for log-probabilities.
    pub fn token_text(&self, id: u32) -> String {
        self.tokenizer.decode(&[id], false).unwrap_or_default()
    }

    /// Starts to decode an answer that ends before any of `stops`.
    pub fn answer(&self, stops: Vec<String>) -> AnswerText {
        AnswerText::new(self.tokenizer.clone(), stops)
    }

    /// Tokens that end an answer.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.bundle.stop_tokens
    }

    /// Size of the vocabulary.
    pub fn vocab(&self) -> u32 {
        self.bundle.vocab
    }
}
