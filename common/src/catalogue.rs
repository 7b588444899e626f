//! What the cluster knows about a model.

use serde::{Deserialize, Serialize};

use crate::id::ModelName;
use crate::limits;

/// SHA-256 in hex.
const DIGEST_CHARS: usize = 64;

/// SHA-256 digests, in hex, of what gives token ids their meaning and an answer its content.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModelDigests {
    /// Of all weight files and `config.json`.
    pub weights: String,
    /// Of `tokenizer.json`.
    pub tokenizer: String,
    /// Of the chat template.
    pub template: String,
}

/// What digests of models begin with that servers of other programs have.
const ADOPTED: &str = "adopted:";

impl ModelDigests {
    /// Of a model that a server of another program has under this name: it keeps what is in it to itself, so the name
    /// is all that tells it from others. `digest` is its SHA-256 in hex.
    pub fn adopted(digest: &str) -> Self {
        let room = DIGEST_CHARS - ADOPTED.len();
        Self {
            weights: format!("{ADOPTED}{}", digest.get(..room).unwrap_or(digest)),
            ..Self::default()
        }
    }

    /// Whether a server of another program has it, which takes text and gives text.
    pub fn is_adopted(&self) -> bool {
        self.weights.starts_with(ADOPTED)
    }
}

impl ModelRecord {
    /// Whether it can be a model at all: whoever stores one says what it is.
    pub fn is_plausible(&self) -> bool {
        let digests = [
            &self.digests.weights,
            &self.digests.tokenizer,
            &self.digests.template,
        ];
        let sizes = [self.weight_bytes, self.dequantized_bytes];
        digests.iter().all(|digest| digest.len() <= DIGEST_CHARS)
            && sizes.iter().all(|size| *size <= 8 * limits::MODEL_BYTES)
    }
}

/// A model of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Its name, what clients send as `model`.
    pub name: ModelName,
    /// Its content.
    pub digests: ModelDigests,
    /// Bytes of its weight files.
    pub weight_bytes: u64,
    /// Bytes of its weights as 32-bit floats: what a back end takes that dequantises.
    pub dequantized_bytes: u64,
    /// Bytes of KV cache for one token at two bytes a number; a CPU back end takes twice that.
    pub kv_bytes_per_token: u64,
    /// Longest prompt and answer together, in tokens.
    pub context: u32,
    /// When it entered the catalogue, in seconds since 1970.
    pub created_s: u64,
}
