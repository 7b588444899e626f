//! Why a request is not let in.

use std::fmt;

use pomona_common::{Class, ModelName};

/// See the module's documentation; texts are for whoever holds the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No key came, where one is needed.
    #[error(
        "this endpoint needs an API key: send it as `Authorization: Bearer sk-pomona-…` or `x-api-key`; an operator makes one with `pomona key create`"
    )]
    Missing,
    /// Unknown, revoked, rotated away, or past its end; which of them is not for strangers to know.
    #[error("this API key is not valid here: it was revoked or rotated, has expired, or was never made")]
    Invalid,
    /// The key has other models.
    #[error("this API key may not ask for the model `{0}`")]
    Model(ModelName),
    /// The key has other classes.
    #[error("this API key may not send {0} requests")]
    Class(Class),
    /// A limit of the key is reached.
    #[error("this API key has reached its limit of {bound}; come back in {retry_after_s} s")]
    Limited {
        /// Which.
        bound: Bound,
        /// When to come back, in seconds.
        retry_after_s: u64,
    },
    /// One request that is more than the key may ever have.
    #[error(
        "the request may take {needed} tokens, prompt and answer together, and this API key's limit is {bound}: shorten the prompt or lower `max_tokens`"
    )]
    TooMuch {
        /// Tokens that it may take.
        needed: u64,
        /// Which limit.
        bound: Bound,
    },
}

/// A limit, as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// How many.
    pub limit: u64,
    /// Of what, such as `tokens a minute`.
    pub of: &'static str,
    /// For which model only.
    pub model: Option<ModelName>,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.limit, self.of)?;
        match &self.model {
            Some(model) => write!(f, " for `{model}`"),
            None => Ok(()),
        }
    }
}
