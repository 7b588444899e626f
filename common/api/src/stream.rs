//! Answers as server-sent events.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, AbortHandle, Abortable, SelectAll};
use pomona_common::generation::{Chunk, GenerationEvent};
use pomona_common::{Accounting, Energy, Failure, FinishReason, limits};
use pomona_text::AnswerText;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::completions::Running;
use crate::enough::Enough;
use crate::error;
use crate::request::Kind;
use crate::respond::{LAST_WORD, accounting_json, finish_reason, head, logprobs_json, object_name, usage};

type Events = futures_util::stream::BoxStream<'static, (usize, Option<GenerationEvent>)>;

/// State of one streamed response.
struct Sse {
    running: Running,
    events: SelectAll<Events>,
    answers: Vec<Option<AnswerText>>,
    /// Ends each of them, but for its last event.
    enough: Vec<Enough>,
    /// Aborting one drops its events, which cancels its sequence wherever that is.
    cancel: Vec<AbortHandle>,
    /// Those that a stop string ended and whose account is awaited, and until when.
    cut: BTreeMap<usize, Instant>,
    tokens: Vec<u32>,
    open: usize,
    accountings: BTreeMap<usize, Accounting>,
    /// What they drew, of those that have not ended.
    energies: BTreeMap<usize, Energy>,
    deadline: Instant,
    begun: bool,
    answered: bool,
    done: bool,
}

/// The response: headers now, events as they come. Dropping the body cancels everything.
pub(crate) fn respond(mut running: Running) -> Response<Body> {
    let mut events = SelectAll::new();
    let mut answers = Vec::new();
    let mut enough = Vec::new();
    let mut cancel = Vec::new();
    for (index, generation) in std::mem::take(&mut running.streams).into_iter().enumerate() {
        answers.push(running.answer());
        enough.push(generation.enough);
        let (handle, registration) = AbortHandle::new_pair();
        cancel.push(handle);
        events.push(Abortable::new(numbered(index, generation.events), registration).boxed());
    }
    let deadline = Instant::now() + limits::wall_clock(running.class);
    let sse = Sse {
        open: answers.len(),
        tokens: vec![0; answers.len()],
        answers,
        enough,
        cancel,
        cut: BTreeMap::new(),
        events,
        running,
        accountings: BTreeMap::new(),
        energies: BTreeMap::new(),
        deadline,
        begun: false,
        answered: false,
        done: false,
    };
    let body = stream::unfold(sse, |mut sse| async move {
        let text = sse.next().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(Bytes::from(text)), sse))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would undo streaming.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The events of one answer under its number; after the last one, `None` once.
fn numbered(index: usize, events: tokio::sync::mpsc::Receiver<GenerationEvent>) -> Events {
    stream::unfold(Some(events), move |events| async move {
        let mut events = events?;
        let event = events.recv().await;
        let rest = event.is_some().then_some(events);
        Some(((index, event), rest))
    })
    .boxed()
}

impl Sse {
    /// The next bytes to send; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        if self.done {
            return None;
        }
        if !self.begun {
            self.begun = true;
            if self.running.kind == Kind::Chat {
                let roles = (0..self.answers.len()).map(|index| {
                    self.data(
                        index,
                        json!({ "role": "assistant", "content": "" }),
                        Value::Null,
                        None,
                    )
                });
                return Some(roles.collect());
            }
        }
        loop {
            let quiet = tokio::time::sleep(limits::SSE_KEEP_ALIVE);
            let last_word = self.cut.values().min().copied().unwrap_or(self.deadline);
            tokio::select! {
                // What has come counts before what is late.
                biased;
                () = tokio::time::sleep_until(self.deadline) => {
                    let limit_s = limits::wall_clock(self.running.class).as_secs();
                    return Some(self.fail(&Failure::TimedOut { limit_s }));
                }
                event = self.events.next() => {
                    let Some((index, event)) = event else {
                        return Some(self.fail(&Failure::NodeLost));
                    };
                    let text = self.on_event(index, event);
                    if !text.is_empty() {
                        return Some(text);
                    }
                }
                () = tokio::time::sleep_until(last_word), if !self.cut.is_empty() => {
                    let index = self.cut.iter().find(|(_, until)| **until <= last_word).map(|(index, _)| *index);
                    if let Some(index) = index {
                        return Some(self.last_word(index, None));
                    }
                }
                () = quiet => return Some(": keep-alive\n\n".to_owned()),
            }
        }
    }

    fn on_event(&mut self, index: usize, event: Option<GenerationEvent>) -> String {
        match event {
            _ if self.accountings.contains_key(&index) => String::new(),
            Some(GenerationEvent::Energy(energy)) => {
                self.energies.insert(index, energy);
                String::new()
            }
            // An answer that a stop string ended is still being made for a moment.
            Some(GenerationEvent::Finished { accounting, .. }) if self.cut.contains_key(&index) => {
                self.last_word(index, Some(accounting))
            }
            Some(GenerationEvent::Failed(_)) | None if self.cut.contains_key(&index) => {
                self.last_word(index, None)
            }
            _ if self.cut.contains_key(&index) => String::new(),
            Some(
                GenerationEvent::Granted | GenerationEvent::GrantedBy(_) | GenerationEvent::GrantedByCloud(_),
            ) => String::new(),
            Some(GenerationEvent::Text(text)) => {
                // Few servers send more than a token at once; what they count in the end is what counts.
                self.running.tally.took(1);
                self.tokens[index] += 1;
                if text.is_empty() {
                    // It is being thought about.
                    return String::new();
                }
                self.first_byte();
                self.text(index, text, Value::Null)
            }
            Some(GenerationEvent::Chunk(chunk)) => self.on_chunk(index, chunk),
            Some(GenerationEvent::Finished { reason, accounting }) => {
                let answer = self.answers[index].as_mut();
                let rest = answer.map(AnswerText::finish).unwrap_or_default();
                self.account(index, accounting);
                self.end(index, rest, reason)
            }
            Some(GenerationEvent::Failed(failure)) => self.fail(&failure),
            None => self.fail(&Failure::NodeLost),
        }
    }

    fn on_chunk(&mut self, index: usize, chunk: Chunk) -> String {
        let (Some(model), Some(answer)) = (&self.running.text, &mut self.answers[index]) else {
            // Tokens of a model whose tokenizer nobody has.
            return self.fail(&Failure::NodeLost);
        };
        self.running.tally.took(chunk.tokens.len());
        let logprobs: Vec<_> = chunk.tokens.iter().copied().zip(chunk.logprobs).collect();
        let logprobs = logprobs_json(self.running.kind, model, &logprobs);
        let mut text = String::new();
        let mut stopped = false;
        for token in chunk.tokens {
            self.tokens[index] += 1;
            let piece = answer.push(token);
            text.push_str(&piece.text);
            stopped |= piece.stopped;
        }
        if stopped {
            return self.cut(index, text);
        }
        if text.is_empty() && logprobs.is_null() {
            return String::new();
        }
        self.first_byte();
        self.text(index, text, logprobs)
    }

    /// A stop string ends an answer, of which this is the rest; its account is still to come.
    fn cut(&mut self, index: usize, rest: String) -> String {
        self.enough[index].say();
        self.cut.insert(index, Instant::now() + LAST_WORD);
        if rest.is_empty() {
            return String::new();
        }
        self.first_byte();
        self.text(index, rest, Value::Null)
    }

    fn last_word(&mut self, index: usize, heard: Option<Accounting>) -> String {
        self.cut.remove(&index);
        self.cancel[index].abort();
        let accounting = self.running.cut(heard, self.tokens[index]);
        self.account(index, accounting);
        self.end(index, String::new(), FinishReason::Stop)
    }

    fn first_byte(&mut self) {
        if !self.answered {
            self.answered = true;
            let waited = self.running.began.elapsed();
            self.running
                .entry_stats
                .record_first_byte(self.running.class, waited);
        }
    }

    fn account(&mut self, index: usize, accounting: Accounting) {
        let energy = self.energies.remove(&index);
        self.running.finished(&accounting, energy, self.tokens[index]);
        self.accountings.insert(index, accounting);
    }

    fn text(&self, index: usize, text: String, logprobs: Value) -> String {
        self.data(index, json!({ "content": text }), logprobs, None)
    }

    /// The last events of one answer, and of the response after the last answer.
    fn end(&mut self, index: usize, rest: String, reason: FinishReason) -> String {
        let mut out = String::new();
        if !rest.is_empty() {
            out.push_str(&self.text(index, rest, Value::Null));
        }
        out.push_str(&self.data(index, json!({}), Value::Null, Some(reason)));
        self.open -= 1;
        if self.open == 0 {
            self.done = true;
            if self.running.ask.include_usage {
                let accountings: Vec<&Accounting> = self.accountings.values().collect();
                let mut last = head(&self.running, object_name(self.running.kind, true));
                last["choices"] = json!([]);
                last["usage"] = usage(&accountings);
                last["pomona"] = accounting_json(&accountings);
                out.push_str(&format!("data: {last}\n\n"));
            }
            out.push_str("data: [DONE]\n\n");
        }
        out
    }

    /// A well-formed end with an error.
    fn fail(&mut self, failure: &Failure) -> String {
        self.done = true;
        self.events.clear();
        self.running.tally.failed(error::code(failure));
        format!("data: {}\n\ndata: [DONE]\n\n", error::envelope(failure))
    }

    fn data(&self, index: usize, delta: Value, logprobs: Value, reason: Option<FinishReason>) -> String {
        let reason = reason.map(finish_reason);
        let choice = match self.running.kind {
            Kind::Chat => {
                json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason })
            }
            Kind::Text => {
                let text = delta["content"].as_str().unwrap_or_default();
                json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
            }
        };
        let mut body = head(&self.running, object_name(self.running.kind, true));
        body["choices"] = json!([choice]);
        if self.running.ask.include_usage {
            body["usage"] = Value::Null;
        }
        format!("data: {body}\n\n")
    }
}

/// Kept well below the 15 s of silence that clients and proxies tolerate.
const _: () = assert!(limits::SSE_KEEP_ALIVE.as_millis() < Duration::from_secs(15).as_millis());
