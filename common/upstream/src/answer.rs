//! An answer on its way.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
use pomona_common::{FinishReason, Usage};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::client::Turn;
use crate::error::{Phase, UpstreamError};
use crate::events::Events;

/// Of a refusal, so much is read for its code.
const REFUSAL_BYTES: usize = 16 * 1024;
/// And of a document: a list of a thousand models.
const DOCUMENT_BYTES: usize = 1024 * 1024;
/// And for so long.
const REFUSAL: Duration = Duration::from_secs(5);
/// Characters of such a code.
const CODE_CHARS: usize = 64;

/// Part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// More of it.
    Text(String),
    /// It is being thought about, which takes tokens.
    Thought,
    /// It is whole.
    End {
        /// Why it ends.
        reason: FinishReason,
        /// Tokens as the server counts them, if it does.
        usage: Option<Usage>,
    },
}

/// An answer that a server has begun. Dropping it closes the connection, which ends the answer there.
pub struct Answer {
    body: Incoming,
    events: Events,
    ready: VecDeque<Piece>,
    /// Whether text has come.
    begun: bool,
    ended: bool,
    deadline: Instant,
    turn: Turn,
    /// The connection, which moves its bytes.
    _connection: JoinSet<()>,
}

impl Answer {
    /// What a server answered, if that is an answer.
    ///
    /// # Errors
    /// It refuses, or sends something else.
    pub(crate) async fn of(
        response: Response<Incoming>,
        turn: Turn,
        connection: JoinSet<()>,
    ) -> Result<Self, (Turn, UpstreamError)> {
        let status = response.status();
        if status.is_redirection() {
            return Err((turn, UpstreamError::Redirects(status.as_u16())));
        }
        if !status.is_success() {
            return Err((turn, refusal(response).await));
        }
        let kind = response.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or("nothing");
        if !kind.starts_with("text/event-stream") {
            let kind: String = kind.chars().take(CODE_CHARS).collect();
            let error = UpstreamError::Garbage(format!("{kind} where events were asked for"));
            return Err((turn, error));
        }
        Ok(Self {
            body: response.into_body(),
            events: Events::default(),
            ready: VecDeque::new(),
            begun: false,
            ended: false,
            deadline: Instant::now() + Phase::FirstText.limit(turn.first_text()),
            turn,
            _connection: connection,
        })
    }

    /// The next part; nothing comes after the end, or an error. Cancel-safe.
    ///
    /// # Errors
    /// The server is silent for too long, breaks off, or sends something else.
    pub async fn next(&mut self) -> Result<Option<Piece>, UpstreamError> {
        if self.ended {
            return Ok(None);
        }
        let outcome = self.piece().await;
        match &outcome {
            Ok(Piece::Text(_) | Piece::Thought) if !self.begun => {
                self.begun = true;
                self.turn.began();
            }
            Ok(Piece::Text(_) | Piece::Thought) => {}
            // An empty answer is one.
            Ok(Piece::End { usage, .. }) => {
                self.ended = true;
                self.turn.succeeded();
                if let Some(usage) = usage {
                    self.turn.took(usage.sum());
                }
            }
            Err(error) => {
                self.ended = true;
                self.turn.failed(error);
            }
        }
        outcome.map(Some)
    }

    async fn piece(&mut self) -> Result<Piece, UpstreamError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                self.deadline = Instant::now() + Phase::Text.limit(self.turn.first_text());
                return Ok(piece);
            }
            let phase = if self.begun { Phase::Text } else { Phase::FirstText };
            // Comments and empty events do not count: they come from servers that hang as well.
            let frame = timeout_at(self.deadline, self.body.frame())
                .await
                .map_err(|_| UpstreamError::Silent(phase))?;
            match frame {
                Some(Ok(frame)) => {
                    let bytes = frame.into_data().unwrap_or_default();
                    self.ready.extend(self.events.push(&bytes)?);
                }
                Some(Err(_)) => return Err(UpstreamError::BrokeOff),
                None => return self.events.finish()?.ok_or(UpstreamError::BrokeOff),
            }
        }
    }
}

/// A response that is one document.
pub(crate) async fn document(response: Response<Incoming>) -> Result<Value, UpstreamError> {
    let status = response.status();
    if status.is_redirection() {
        return Err(UpstreamError::Redirects(status.as_u16()));
    }
    if !status.is_success() {
        return Err(refusal(response).await);
    }
    let read = tokio::time::timeout(REFUSAL, read_some(response.into_body(), DOCUMENT_BYTES)).await;
    let read = read.map_err(|_| UpstreamError::Silent(Phase::Text))?;
    serde_json::from_slice(&read).map_err(|_| UpstreamError::Garbage("what is no JSON".to_owned()))
}

async fn refusal(response: Response<Incoming>) -> UpstreamError {
    let status = response.status().as_u16();
    let wait = response.headers().get(RETRY_AFTER);
    // A date is not worth a parser here: the time it is left alone is bounded anyway.
    let wait = wait.and_then(|wait| wait.to_str().ok()?.trim().parse().ok());
    let read = read_some(response.into_body(), REFUSAL_BYTES);
    let body = tokio::time::timeout(REFUSAL, read).await;
    UpstreamError::Refused {
        status,
        code: body.ok().and_then(|body| code(&body)),
        retry_after: wait.map(Duration::from_secs),
    }
}

async fn read_some(mut body: Incoming, most: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        read.extend_from_slice(&frame.into_data().unwrap_or_else(|_| Bytes::new()));
        if read.len() > most {
            break;
        }
    }
    read
}

/// The server's word for what is wrong: one word, since its sentences may hold keys and prompts.
fn code(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = &body["error"];
    let code = error["code"].as_str().or(error["type"].as_str())?;
    let is_word = code.len() <= CODE_CHARS
        && code
            .bytes()
            .all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'-' | b'.'));
    is_word.then(|| code.to_owned())
}
