//! A request as text, for servers that tokenise by themselves: clouds.

use serde::{Deserialize, Serialize};

use crate::catalogue::ModelDigests;
use crate::class::Class;
use crate::id::{KeyId, ModelName, RequestId};
use crate::machine::Pools;
use crate::sampling::Sampling;

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
    /// As in [`Sampling`].
    pub temperature: f32,
    /// As in [`Sampling`].
    pub top_p: f32,
    /// As in [`Sampling`].
    pub presence_penalty: f32,
    /// As in [`Sampling`].
    pub frequency_penalty: f32,
    /// Where the client named one.
    pub seed: Option<u64>,
}

impl TextAsk {
    /// A request for a short answer, with everything else as it is usual.
    pub fn new(model: ModelName, prompt: TextPrompt, max_tokens: u32) -> Self {
        let sampling = Sampling::default();
        Self {
            request: RequestId::from_bits(0),
            choice: 0,
            model,
            digests: ModelDigests::default(),
            class: Class::Interactive,
            key: None,
            pools: Pools::default(),
            prompt,
            prompt_tokens: 1,
            max_tokens,
            stops: Vec::new(),
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            seed: None,
        }
    }

    /// Tokens that the prompt can have, whoever counts: none has more than its bytes, with what a template puts around
    /// each message.
    pub fn most_prompt_tokens(&self) -> u64 {
        const AROUND: usize = 16;
        let bytes = match &self.prompt {
            TextPrompt::Chat(messages) => {
                let of_message = |(role, text): &(String, String)| role.len() + text.len() + AROUND;
                messages.iter().map(of_message).sum::<usize>()
            }
            TextPrompt::Text(text) => text.len(),
        };
        let most = (bytes + AROUND) as u64;
        most.max(self.prompt_tokens.into())
    }

    /// What a server says that prompt and answer took, unless that cannot be: `texts` came of the answer.
    pub fn plausible(&self, usage: Usage, texts: u64) -> Option<Usage> {
        /// Beyond what can be, for servers that count what they add.
        const TIMES_MOST: u64 = 2;
        let Usage {
            prompt,
            answer,
            cached,
        } = usage;
        let most = self.most_prompt_tokens().saturating_add(self.max_tokens.into());
        let sum = usage.sum();
        let is_plausible = prompt > 0 && (answer > 0 || texts == 0) && sum <= most.saturating_mul(TIMES_MOST);
        is_plausible.then_some(Usage {
            cached: cached.min(prompt),
            ..usage
        })
    }
}

/// Tokens that a server says a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: u64,
    /// Of the answer.
    pub answer: u64,
    /// Of the prompt, those that it had in a cache; 0 where it does not say.
    pub cached: u64,
}

impl Usage {
    /// Of prompt and answer.
    pub fn sum(&self) -> u64 {
        self.prompt.saturating_add(self.answer)
    }
}
