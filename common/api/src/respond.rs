//! Answers as JSON: the shared shapes, and the response that comes in one piece.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use futures_util::future::try_join_all;
use pomona_common::generation::{GenerationEvent, TokenLogprob};
use pomona_common::{Accounting, Class, Energy, Failure, FinishReason, limits};
use pomona_text::{AnswerText, ModelText};
use serde_json::{Value, json};

use crate::backend::GenerationStream;
use crate::completions::Running;
use crate::error;
use crate::request::Kind;

/// How long the account of an answer is waited for that a stop string ended: an engine looks up after its step.
pub(crate) const LAST_WORD: Duration = Duration::from_millis(500);

/// One answer, complete.
struct Choice {
    text: String,
    logprobs: Vec<(u32, TokenLogprob)>,
    reason: FinishReason,
    accounting: Accounting,
}

/// Collects all answers and responds.
pub(crate) async fn respond(mut running: Running) -> Response<Body> {
    let streams = std::mem::take(&mut running.streams);
    let answers = streams.into_iter().map(|stream| {
        let answer = running.answer();
        collect(&running, stream, answer)
    });
    let limit = limits::wall_clock(running.class);
    // All at once: they run side by side, and one clock is for all. The first failure drops the
    // others, which cancels them.
    let collected = tokio::time::timeout(limit, try_join_all(answers)).await;
    let limit_s = limit.as_secs();
    match collected.unwrap_or(Err(Failure::TimedOut { limit_s })) {
        Ok(choices) => error::json_response(StatusCode::OK, &whole(&running, &choices)),
        Err(failure) => {
            running.tally.failed(error::code(&failure));
            error::response(&failure)
        }
    }
}

async fn collect(
    running: &Running,
    mut stream: GenerationStream,
    mut answer: Option<AnswerText>,
) -> Result<Choice, Failure> {
    let mut choice = Choice {
        text: String::new(),
        logprobs: Vec::new(),
        reason: FinishReason::Stop,
        accounting: Accounting::default(),
    };
    let (mut tokens, mut energy) = (0, None);
    loop {
        match stream.events.recv().await {
            None => return Err(Failure::NodeLost),
            Some(GenerationEvent::Granted | GenerationEvent::GrantedBy(_)) => {}
            Some(GenerationEvent::GrantedByCloud(_)) => {}
            Some(GenerationEvent::Energy(told)) => energy = Some(told),
            Some(GenerationEvent::Text(text)) => {
                running.tally.took(1);
                tokens += 1;
                choice.text.push_str(&text);
            }
            Some(GenerationEvent::Failed(failure)) => return Err(failure),
            Some(GenerationEvent::Finished { reason, accounting }) => {
                choice
                    .text
                    .push_str(&answer.as_mut().map(AnswerText::finish).unwrap_or_default());
                choice.reason = reason;
                choice.accounting = accounting;
                running.finished(&choice.accounting, energy, tokens);
                return Ok(choice);
            }
            Some(GenerationEvent::Chunk(chunk)) => {
                // Tokens of a model whose tokenizer nobody has.
                let answer = answer.as_mut().ok_or(Failure::NodeLost)?;
                running.tally.took(chunk.tokens.len());
                choice
                    .logprobs
                    .extend(chunk.tokens.iter().copied().zip(chunk.logprobs));
                for token in chunk.tokens {
                    tokens += 1;
                    let piece = answer.push(token);
                    choice.text.push_str(&piece.text);
                    if piece.stopped {
                        let (accounting, energy) = last_word(running, stream, tokens).await;
                        running.tally.finished(&accounting, energy);
                        choice.accounting = accounting;
                        return Ok(choice);
                    }
                }
            }
        }
    }
}

/// What an answer took that a stop string ended after so many tokens: as the engine says, or what is known here.
async fn last_word(running: &Running, stream: GenerationStream, tokens: u32) -> (Accounting, Option<Energy>) {
    let GenerationStream {
        mut events,
        mut enough,
        ..
    } = stream;
    let finished = async {
        let mut energy = None;
        while let Some(event) = events.recv().await {
            match event {
                GenerationEvent::Energy(told) => energy = Some(told),
                GenerationEvent::Finished { accounting, .. } => return (Some(accounting), energy),
                _ => {}
            }
        }
        (None, energy)
    };
    enough.say();
    let heard = tokio::time::timeout(LAST_WORD, finished).await;
    let (accounting, energy) = heard.unwrap_or_default();
    (running.cut(accounting, tokens), energy)
}

fn whole(running: &Running, choices: &[Choice]) -> Value {
    let items: Vec<Value> = choices
        .iter()
        .enumerate()
        .map(|(index, choice)| {
            let reason = finish_reason(choice.reason);
            let text = running.text.as_deref();
            let logprobs = text.map_or(Value::Null, |text| {
                logprobs_json(running.kind, text, &choice.logprobs)
            });
            match running.kind {
                Kind::Chat => json!({
                    "index": index,
                    "message": { "role": "assistant", "content": choice.text, "refusal": null },
                    "logprobs": logprobs,
                    "finish_reason": reason,
                }),
                Kind::Text => json!({
                    "index": index,
                    "text": format!("{}{}", running.echo, choice.text),
                    "logprobs": logprobs,
                    "finish_reason": reason,
                }),
            }
        })
        .collect();
    let accountings: Vec<&Accounting> = choices.iter().map(|choice| &choice.accounting).collect();
    let mut body = head(running, object_name(running.kind, false));
    body["choices"] = items.into();
    body["usage"] = usage(&accountings);
    body["pomona"] = accounting_json(&accountings);
    body
}

/// The fields that every object of an answer starts with.
pub(crate) fn head(running: &Running, object: &str) -> Value {
    let prefix = match running.kind {
        Kind::Chat => "chatcmpl",
        Kind::Text => "cmpl",
    };
    let tier = match running.class {
        Class::Batch => "flex",
        Class::Interactive | Class::Background => "default",
    };
    json!({
        "id": format!("{prefix}-{}", running.request),
        "object": object,
        "created": running.created_s,
        "model": running.model.name,
        "service_tier": tier,
    })
}

pub(crate) fn object_name(kind: Kind, chunk: bool) -> &'static str {
    match (kind, chunk) {
        (Kind::Chat, false) => "chat.completion",
        (Kind::Chat, true) => "chat.completion.chunk",
        (Kind::Text, _) => "text_completion",
    }
}

pub(crate) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "stop",
    }
}

/// `usage` over all answers; the prompt is counted once.
pub(crate) fn usage(accountings: &[&Accounting]) -> Value {
    let first = accountings.first();
    let prompt = first.map_or(0, |a| a.prompt_tokens);
    let completion = accountings
        .iter()
        .fold(0u32, |sum, a| sum.saturating_add(a.completion_tokens));
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt.saturating_add(completion),
        "prompt_tokens_details": { "cached_tokens": first.map_or(0, |a| a.cached_tokens) },
    })
}

/// What the answers cost, one entry each.
pub(crate) fn accounting_json(accountings: &[&Accounting]) -> Value {
    accountings.iter().map(|accounting| json!(accounting)).collect()
}

pub(crate) fn logprobs_json(kind: Kind, text: &ModelText, logprobs: &[(u32, TokenLogprob)]) -> Value {
    if logprobs.is_empty() {
        return Value::Null;
    }
    let entry = |token: u32, logprob: f32| {
        let piece = text.token_text(token);
        json!({ "token": piece, "logprob": logprob, "bytes": piece.as_bytes() })
    };
    match kind {
        Kind::Chat => {
            let content: Vec<Value> = logprobs
                .iter()
                .map(|(token, logprob)| {
                    let mut item = entry(*token, logprob.logprob);
                    item["top_logprobs"] = logprob.top.iter().map(|(token, l)| entry(*token, *l)).collect();
                    item
                })
                .collect();
            json!({ "content": content, "refusal": null })
        }
        Kind::Text => {
            let top = |logprob: &TokenLogprob| -> serde_json::Map<String, Value> {
                let named = |(token, l): &(u32, f32)| (text.token_text(*token), json!(l));
                logprob.top.iter().map(named).collect()
            };
            json!({
                "tokens": logprobs.iter().map(|(token, _)| text.token_text(*token)).collect::<Vec<_>>(),
                "token_logprobs": logprobs.iter().map(|(_, l)| l.logprob).collect::<Vec<_>>(),
                "top_logprobs": logprobs.iter().map(|(_, l)| top(l)).collect::<Vec<_>>(),
            })
        }
    }
}
