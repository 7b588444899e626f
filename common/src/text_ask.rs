//! A request as text, for servers that tokenise by themselves: clouds.

use serde::{Deserialize, Serialize};

use crate::catalogue::ModelDigests;
use crate::class::Class;
use crate::id::{KeyId, ModelName, RequestId};
use crate::machine::Pools;

/// What is to be answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TextPrompt {
    /// Role and text of each message.
    Chat(Vec<(String, String)>),
    /// Text to be gone on with.
    Text(String),
}

/// One answer to a prompt, with what a client asked for as far as servers of the OpenAI API agree on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextAsk {
    /// The client's request.
    pub request: RequestId,
    /// Which of the `n` answers to the prompt this is.
    pub choice: u32,
    /// The model, by its name in the catalogue.
    pub model: ModelName,
    /// What the cluster has under that name.
    pub digests: ModelDigests,
    /// Class of load.
    pub class: Class,
    /// The API key that asked.
    pub key: Option<KeyId>,
    /// Where it may be answered: anywhere, or it is for machines only.
    pub pools: Pools,
    /// The prompt.
    pub prompt: TextPrompt,
    /// Tokens of the prompt, as this cluster's tokenizer of the model counts them.
    pub prompt_tokens: u32,
    /// Longest answer, in tokens.
    pub max_tokens: u32,
    /// Texts that end the answer.
    pub stops: Vec<String>,
    /// As in [`Sampling`](crate::Sampling).
    pub temperature: f32,
    /// As in [`Sampling`](crate::Sampling).
    pub top_p: f32,
    /// As in [`Sampling`](crate::Sampling).
    pub presence_penalty: f32,
    /// As in [`Sampling`](crate::Sampling).
    pub frequency_penalty: f32,
    /// Where the client named one.
    pub seed: Option<u64>,
}
