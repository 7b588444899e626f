//! One answer being made: what is asked of a node, and what comes back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::catalogue::ModelDigests;
use crate::class::{Class, ClassReason};
use crate::cloud::CloudName;
use crate::failure::Failure;
use crate::id::{ModelName, NodeId, RequestId};
use crate::machine::Pools;
use crate::sampling::Sampling;
use crate::text_ask::TextAsk;

/// A request as it travels: resolved to token ids, so that any node with the same digests
/// gives the same answer, and a stream can be continued elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// The client's request.
    pub request: RequestId,
    /// Which of the `n` answers to the prompt this is.
    pub choice: u32,
    /// Model to use.
    pub model: ModelName,
    /// What the token ids mean: a node with other digests refuses.
    pub digests: ModelDigests,
    /// Class of load.
    pub class: Class,
    /// Where the class came from.
    pub class_reason: ClassReason,
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Tokens already emitted by another node: prefilled with the prompt, counted as answer.
    pub resume: Vec<u32>,
    /// Longest answer, `resume` included.
    pub max_tokens: u32,
    /// Tokens that end the answer.
    pub stop_tokens: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Prompts share their KV prefix only under the same salt, so that timing tells nobody
    /// what others asked.
    pub cache_salt: u64,
    /// Where it may be answered. It travels beside the generation, see
    /// [`StreamRequest::GenerateIn`](crate::control::StreamRequest::GenerateIn): peers of before know none.
    #[serde(skip)]
    pub pools: Pools,
    /// The request as text, for a model that a server of another program has; then there are no token ids. It
    /// travels beside the generation as well.
    #[serde(skip)]
    pub text: Option<Arc<TextAsk>>,
    /// Which places will do. It travels beside the generation as well.
    #[serde(skip)]
    pub seek: Seek,
}

/// Which places will do for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Seek {
    /// Everyone who takes it.
    #[default]
    Any,
    /// One that begins at once, is not spared, and is not to be avoided; of what a person waits for one at which nobody
    /// sits. The present place keeps the answer otherwise.
    Better,
}

impl Generation {
    /// A node's question to its own engine whether it still makes tokens: one, of the smallest prompt
    /// that every vocabulary has.
    pub fn canary(model: ModelName) -> Self {
        Self {
            request: RequestId::from_bits(0),
            choice: 0,
            model,
            digests: ModelDigests::default(),
            class: Class::Interactive,
            class_reason: ClassReason::Canary,
            prompt: vec![0],
            resume: Vec::new(),
            max_tokens: 1,
            stop_tokens: Vec::new(),
            sampling: Sampling::greedy(),
            cache_salt: 0,
            pools: Pools::default(),
            text: None,
            seek: Seek::Any,
        }
    }
}

/// One step of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// Index of the first token of this chunk within the answer.
    pub position: u32,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// One entry a token when the request asked for log-probabilities, else empty.
    pub logprobs: Vec<TokenLogprob>,
}

/// Log-probability of a token and of its strongest rivals, natural logarithm, of the
/// distribution before temperature and filters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Of the chosen token.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// A stop token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// The client went away.
    Cancelled,
}

/// What an answer cost, sent with its last frame.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Accounting {
    /// From arrival at the engine to the first prefill step, in milliseconds.
    pub queue_ms: f64,
    /// From the first prefill step to the first token.
    pub prefill_ms: f64,
    /// From the first token to the last.
    pub decode_ms: f64,
    /// Engine time of all steps it took part in, each divided by the tokens that shared it.
    pub step_share_ms: f64,
    /// Prompt tokens.
    pub prompt_tokens: u32,
    /// Of those, found in a shared prefix instead of computed.
    pub cached_tokens: u32,
    /// Answer tokens.
    pub completion_tokens: u32,
    /// Version of the knobs that served it.
    pub knob_version: u64,
    /// Node that served it; the engine does not know and leaves it empty.
    pub node: Option<NodeId>,
    /// Engine build that served it.
    pub build: String,
}

/// Who makes an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Maker {
    /// A node.
    Node(NodeId),
    /// A cloud.
    Cloud(CloudName),
}

impl Maker {
    /// The node, if it is one.
    pub const fn node(&self) -> Option<NodeId> {
        match self {
            Maker::Node(node) => Some(*node),
            Maker::Cloud(_) => None,
        }
    }

    /// The cloud, if it is one.
    pub const fn cloud(&self) -> Option<&CloudName> {
        match self {
            Maker::Node(_) => None,
            Maker::Cloud(cloud) => Some(cloud),
        }
    }
}

/// What answers one generation, in this order: `Granted` or a form of it, any number of `Chunk`s or
/// `Text`s, and one `Finished` or `Failed`. `Failed` may come first: a refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GenerationEvent {
    /// A slot is promised.
    Granted,
    /// More of the answer.
    Chunk(Chunk),
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What it cost.
        accounting: Accounting,
    },
    /// The end, without the rest of the answer.
    Failed(Failure),
    /// A slot is promised by this node: the sender passes its answer on.
    GrantedBy(NodeId),
    /// This cloud has begun to answer: the sender passes its answer on. Sent to those who asked for one.
    GrantedByCloud(CloudName),
    /// More of the answer, as text.
    Text(String),
    /// What the machine drew for the answer, told before its end to those who know of it.
    Energy(Energy),
}

/// What a machine drew for one answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Its power at the end, for as long as the engine worked for this answer.
    pub joules: f64,
    /// What that power was read from; `scripted` is no measurement.
    pub source: String,
}

/// Longest name of what power was read from, in characters.
const SOURCE_CHARS: usize = 64;

impl Energy {
    /// As far as it can be so: a peer is believed no more than a sensor.
    pub fn plausible(self) -> Option<Self> {
        let Self { joules, source } = self;
        let source = source.chars().take(SOURCE_CHARS).collect();
        (joules.is_finite() && joules >= 0.0).then_some(Self { joules, source })
    }
}

impl GenerationEvent {
    /// Version of the protocol that brought it, of those that are told without being asked for.
    pub fn since(&self) -> u16 {
        match self {
            GenerationEvent::Energy(_) => 10,
            _ => 1,
        }
    }
}
