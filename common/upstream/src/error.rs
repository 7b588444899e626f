//! What can go wrong with a server, in the operator's terms. Texts of the server are not passed on: some repeat
//! keys and prompts.

use std::fmt;
use std::time::Duration;

/// A part of an answer that has a time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Name, connection and TLS.
    Connect,
    /// From the request to the status.
    Status,
    /// From the status to the first text.
    FirstText,
    /// Between two texts.
    Text,
}

impl Phase {
    /// How long it may take, at a server whose first text may take `first_text`.
    pub const fn limit(self, first_text: Duration) -> Duration {
        match self {
            Phase::Connect => Duration::from_secs(5),
            // Some servers say nothing before they have prefilled.
            Phase::Status | Phase::FirstText => first_text,
            Phase::Text => Duration::from_secs(30),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Connect => "a connection",
            Phase::Status => "a status",
            Phase::FirstText => "the first text",
            Phase::Text => "more text",
        })
    }
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// It failed lately, and is left alone for a while.
    #[error("it failed lately, and is asked again in {} s", .0.as_secs().max(1))]
    LeftAlone(Duration),
    /// It has no room, and says when it will.
    #[error("it has no room, and wants to be asked again in {} s", .0.as_secs().max(1))]
    NoRoom(Duration),
    /// As many answers are under way as may be.
    #[error("{0} of its answers are under way, the limit")]
    Busy(usize),
    /// This minute's requests or tokens are taken.
    #[error("its minute is full, and has room in {} s", .0.as_secs().max(1))]
    MinuteFull(Duration),
    /// No connection.
    #[error("it is not reached: {0}")]
    Unreachable(String),
    /// It sends people elsewhere.
    #[error("it redirects (HTTP {0}), which is not followed: configure where it really is")]
    Redirects(u16),
    /// It refuses.
    #[error("it refuses: HTTP {status}{}", code.as_deref().map(|code| format!(" ({code})")).unwrap_or_default())]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its name for the reason, where that is one word.
        code: Option<String>,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// It kept silent for too long.
    #[error("it gave no sign of {0} in time")]
    Silent(Phase),
    /// It made an answer, and keeps it to itself.
    #[error("it has filtered its answer")]
    Filtered,
    /// It does not speak the protocol.
    #[error("it answers with {0}")]
    Garbage(String),
    /// The connection ended before the answer did.
    #[error("it broke off")]
    BrokeOff,
}

impl UpstreamError {
    /// Whether it says something about the server, rather than about one request.
    pub fn is_ill(&self) -> bool {
        match self {
            UpstreamError::LeftAlone(_)
            | UpstreamError::NoRoom(_)
            | UpstreamError::Busy(_)
            | UpstreamError::MinuteFull(_) => false,
            // It is there, and says what is wrong with what it was asked. That it knows no model is so for that
            // model; that it knows no key, for all.
            UpstreamError::Refused { status, .. } => !matches!(status, 400 | 404 | 413 | 422),
            UpstreamError::Filtered => false,
            UpstreamError::Unreachable(_)
            | UpstreamError::Redirects(_)
            | UpstreamError::Silent(_)
            | UpstreamError::Garbage(_)
            | UpstreamError::BrokeOff => true,
        }
    }

    /// Whether the server can have made nothing of the request: it was not reached, or says so.
    pub fn made_nothing(&self) -> bool {
        match self {
            UpstreamError::LeftAlone(_)
            | UpstreamError::NoRoom(_)
            | UpstreamError::Busy(_)
            | UpstreamError::MinuteFull(_)
            | UpstreamError::Unreachable(_)
            | UpstreamError::Redirects(_)
            | UpstreamError::Refused { .. }
            | UpstreamError::Silent(Phase::Connect) => true,
            UpstreamError::Silent(_)
            | UpstreamError::Filtered
            | UpstreamError::Garbage(_)
            | UpstreamError::BrokeOff => false,
        }
    }

    /// When it has room again, if it says so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            // What it says of a key that it does not know, say, is no time at which it does.
            UpstreamError::Refused {
                status, retry_after, ..
            } => retry_after.filter(|_| matches!(status, 429 | 503)),
            UpstreamError::MinuteFull(left) | UpstreamError::NoRoom(left) => Some(*left),
            // One of its answers ends soon; nobody knows when.
            UpstreamError::Busy(_) => Some(Duration::from_secs(5)),
            // One that is left alone is tried again then, and may fail again.
            UpstreamError::LeftAlone(_)
            | UpstreamError::Unreachable(_)
            | UpstreamError::Redirects(_)
            | UpstreamError::Silent(_)
            | UpstreamError::Filtered
            | UpstreamError::Garbage(_)
            | UpstreamError::BrokeOff => None,
        }
    }
}
