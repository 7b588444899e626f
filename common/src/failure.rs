//! What can go wrong with a request, once, for every layer. `pomona-api` turns it into HTTP.

use serde::{Deserialize, Serialize};

use crate::cloud::CloudName;
use crate::limits;

/// A failure in the user's terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The request itself is wrong.
    #[error("{message}")]
    Invalid {
        /// What is wrong and what would be right.
        message: String,
        /// The field at fault.
        parameter: Option<String>,
        /// Stable code for programs.
        code: InvalidCode,
    },
    /// No such model in the catalogue; nothing is ever loaded because a client asked.
    #[error("the model `{model}` does not exist: `pomona models` lists what this cluster serves")]
    UnknownModel {
        /// As the client wrote it, shortened.
        model: String,
    },
    /// The model is in the catalogue, and no node serves it at the moment.
    #[error("the model `{model}` is not loaded on any node yet: {detail}")]
    ModelNotLoaded {
        /// The model.
        model: String,
        /// What it waits for.
        detail: String,
    },
    /// Queue full or waited too long.
    #[error("the service is at capacity: {detail}")]
    Overloaded {
        /// Which bound was hit.
        detail: String,
        /// When to come back, in seconds.
        retry_after_s: u32,
    },
    /// The request can never fit this node's KV budget.
    #[error(
        "the request needs {needed} KV cache bytes and the budget is {budget}: shorten the prompt or lower `max_tokens`"
    )]
    TooLarge {
        /// Bytes it would take.
        needed: u64,
        /// Bytes there are.
        budget: u64,
    },
    /// The engine died under the request.
    #[error("the engine stopped while answering; send the request again")]
    EngineLost,
    /// The node's session broke under the request.
    #[error("the node went away while answering; send the request again")]
    NodeLost,
    /// The request ran into its wall-clock limit.
    #[error("the request took longer than {limit_s} s")]
    TimedOut {
        /// The limit.
        limit_s: u64,
    },
    /// A bug of ours; the log has the detail.
    #[error("internal error: {detail}")]
    Internal {
        /// Without secrets or prompts.
        detail: String,
    },
    /// No cloud answers it. Sent to those who asked for one.
    #[error("no cloud answers it: {detail}")]
    NoCloud {
        /// Each of them, and why.
        detail: String,
        /// Whether one was really asked: it may want to be paid, and is not asked for the same again.
        asked: bool,
    },
    /// A cloud gave the answer up half-way: nobody else can go on with it.
    #[error("cloud:{cloud} gave up while answering: {detail}; send the request again")]
    CloudLost {
        /// Its name.
        cloud: CloudName,
        /// Why.
        detail: String,
    },
}

/// Stable codes of invalid requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InvalidCode {
    /// The body is not JSON.
    InvalidJson,
    /// A field has the wrong type.
    InvalidType,
    /// A field is out of its range.
    InvalidValue,
    /// A required field is missing.
    MissingField,
    /// A field this server does not offer.
    Unsupported,
    /// Prompt and answer do not fit the context.
    ContextLengthExceeded,
    /// The body is over its limit.
    BodyTooLarge,
}

impl InvalidCode {
    /// The code as clients see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            InvalidCode::InvalidJson => "invalid_json",
            InvalidCode::InvalidType => "invalid_type",
            InvalidCode::InvalidValue => "invalid_value",
            InvalidCode::MissingField => "missing_required_parameter",
            InvalidCode::Unsupported => "unsupported_parameter",
            InvalidCode::ContextLengthExceeded => "context_length_exceeded",
            InvalidCode::BodyTooLarge => "request_too_large",
        }
    }
}

impl Failure {
    /// An invalid request, with the field at fault.
    pub fn invalid(parameter: &str, code: InvalidCode, message: impl Into<String>) -> Self {
        Failure::Invalid {
            message: message.into(),
            parameter: (!parameter.is_empty()).then(|| parameter.to_owned()),
            code,
        }
    }

    /// No model of this name, which is a client's text and may be long.
    pub fn unknown_model(name: &str) -> Self {
        Failure::UnknownModel {
            model: name.chars().take(limits::MODEL_NAME_CHARS).collect(),
        }
    }

    /// Whether a cloud may answer what no machine does.
    pub const fn may_spill(&self) -> bool {
        match self {
            Failure::Overloaded { .. }
            | Failure::ModelNotLoaded { .. }
            | Failure::TooLarge { .. }
            | Failure::EngineLost
            | Failure::NodeLost => true,
            Failure::Invalid { .. }
            | Failure::UnknownModel { .. }
            | Failure::TimedOut { .. }
            | Failure::Internal { .. }
            | Failure::NoCloud { .. }
            | Failure::CloudLost { .. } => false,
        }
    }

    /// The same with why no cloud answers either, where it has room for that.
    #[must_use]
    pub fn and_no_cloud(mut self, why: &str) -> Self {
        if let Failure::Overloaded { detail, .. } | Failure::ModelNotLoaded { detail, .. } = &mut self {
            *detail = with_no_cloud(detail, why);
        }
        self
    }

    /// The same where a cloud has room again in so many seconds: that passes, whatever machines say.
    #[must_use]
    pub fn and_full_clouds(self, why: &str, retry_after_s: u32) -> Self {
        let (detail, retry_after_s) = match self {
            // Nobody tries again what has ended engines.
            Failure::EngineLost => return self,
            Failure::Overloaded {
                detail,
                retry_after_s: before,
            } => (detail, before.min(retry_after_s)),
            other if other.may_spill() => (other.to_string(), retry_after_s),
            other => return other,
        };
        Failure::Overloaded {
            detail: with_no_cloud(&detail, why),
            retry_after_s,
        }
    }

    /// Whether another replica, or the same one a moment later, may answer instead, given that
    /// nothing was sent to the client.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Failure::EngineLost | Failure::NodeLost | Failure::ModelNotLoaded { .. } => true,
            Failure::Overloaded { .. }
            | Failure::Invalid { .. }
            | Failure::UnknownModel { .. }
            | Failure::TooLarge { .. }
            | Failure::TimedOut { .. }
            | Failure::Internal { .. }
            | Failure::NoCloud { .. }
            | Failure::CloudLost { .. } => false,
        }
    }
}

fn with_no_cloud(detail: &str, why: &str) -> String {
    format!("{detail}; no cloud answers it either: {why}")
}
