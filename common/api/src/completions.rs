//! From a request to running generations.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response};
use bytes::Bytes;
use pomona_common::class::{Hints, classify, split_alias};
use pomona_common::failure::InvalidCode;
use pomona_common::{
    Accounting, Class, ClassReason, Failure, Generation, Maker, ModelRecord, NodeId, RequestId, limits,
};
use pomona_text::{ModelText, TemplateError};

use crate::access::Caller;
use crate::as_text::{Context, as_text};
use crate::backend::{Backend, GenerationStream};
use crate::entry_stats::EntryStats;
use crate::error::Refusal;
use crate::request::{self, Ask, Kind, Prompt};
use crate::usage::{Asked, Tally};
use crate::{error, respond, stream};

/// A request whose answers are being made.
pub(crate) struct Running {
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: u32,
    /// When the request was read.
    pub(crate) began: Instant,
    pub(crate) entry_stats: Arc<EntryStats>,
    pub(crate) kind: Kind,
    pub(crate) request: RequestId,
    pub(crate) created_s: u64,
    pub(crate) class: Class,
    pub(crate) class_reason: ClassReason,
    /// Who makes the first of the answers.
    pub(crate) maker: Maker,
    pub(crate) model: ModelRecord,
    pub(crate) text: Arc<ModelText>,
    pub(crate) ask: Ask,
    /// Text of the prompt, where it is to be echoed.
    pub(crate) echo: String,
    pub(crate) streams: Vec<GenerationStream>,
    /// What it takes.
    pub(crate) tally: Tally,
}

impl Running {
    /// An answer is whole: `told` of its tokens are counted. Of a cloud's, the rest is counted now.
    pub(crate) fn finished(&self, accounting: &Accounting, told: u32) {
        if accounting.node.is_none() {
            self.tally
                .took(accounting.completion_tokens.saturating_sub(told) as usize);
        }
        self.tally.finished(accounting);
    }

    /// What is known of an answer's cost when a stop string ends it here, before the engine's own
    /// account of it.
    pub(crate) fn accounting_so_far(&self, completion_tokens: u32) -> Accounting {
        Accounting {
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            node: self.maker.node(),
            ..Accounting::default()
        }
    }
}

/// Answers a chat or completion request.
pub(crate) async fn complete<B: Backend>(
    backend: &Arc<B>,
    kind: Kind,
    caller: &Caller,
    headers: &HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let request = RequestId::from_bits(random());
    let mut response = match begin(backend, kind, request, caller, headers, &body).await {
        Ok(running) => {
            let maker = match &running.maker {
                Maker::Node(node) => ("x-pomona-node", node.to_string()),
                Maker::Cloud(cloud) => ("x-pomona-cloud", cloud.to_string()),
            };
            let headers = [
                maker,
                ("x-pomona-class", running.class.to_string()),
                ("x-pomona-class-reason", running.class_reason.as_str().to_owned()),
            ];
            let mut response = if running.ask.stream {
                stream::respond(running)
            } else {
                respond::respond(running).await
            };
            for (name, value) in headers {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    response.headers_mut().insert(name, value);
                }
            }
            response
        }
        Err(Refusal::Denied(denied)) => error::denied(&denied),
        Err(Refusal::Failed(failure)) => {
            if matches!(failure, Failure::Internal { .. }) {
                tracing::error!(%request, %failure, "request failed");
            }
            error::response(&failure)
        }
    };
    if let Ok(value) = HeaderValue::from_str(&request.to_string()) {
        response.headers_mut().insert("x-pomona-request-id", value);
    }
    response
}

async fn begin<B: Backend>(
    backend: &Arc<B>,
    kind: Kind,
    request: RequestId,
    caller: &Caller,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Running, Refusal> {
    let began = Instant::now();
    let ask = request::parse(kind, body)?;
    let (model, alias) = find_model(&**backend, &ask.model)?;
    caller.may_ask(&model.name)?;
    let of_key = caller.terms().and_then(|terms| terms.class);
    let (class, class_reason) = class_of(of_key, headers, &ask, alias)?;
    caller.may_be(class)?;
    let ticket = backend.access().begin(caller, &model.name)?;
    backend.entry_stats().count(class, class_reason);
    tracing::debug!(%request, %class, reason = class_reason.as_str(), model = %model.name, "request");
    let text = backend.text(&model).await?;
    // Megabytes of text take a second: not on the threads that keep sessions alive.
    let (mut ask, model, resolved) = {
        let text = text.clone();
        tokio::task::spawn_blocking(move || {
            let resolved = resolve(&text, &ask, &model);
            (ask, model, resolved)
        })
        .await
        .map_err(|error| Failure::Internal {
            detail: error.to_string(),
        })?
    };
    let (prompt, echo) = resolved?;
    let room = model.context - prompt.len() as u32;
    let max_tokens = ask.max_tokens.unwrap_or(limits::DEFAULT_MAX_TOKENS).min(room);
    if let Some(ticket) = &ticket {
        ticket.reserve(prompt.len() as u64 + u64::from(max_tokens) * u64::from(ask.choices))?;
    }
    let context = Context {
        request,
        caller,
        headers,
        class,
        model: &model,
        prompt_tokens: prompt.len() as u32,
        max_tokens,
    };
    let mut text_ask = as_text(&context, &mut ask);
    let seed = if ask.seeded {
        ask.sampling.seed
    } else {
        random() as u64
    };
    let mut streams = Vec::with_capacity(ask.choices as usize);
    for choice in 0..ask.choices {
        let mut sampling = ask.sampling.clone();
        // Answers to one prompt differ; the first of them is the one that `n = 1` would give.
        sampling.seed = seed.wrapping_add(u64::from(choice));
        let generation = Generation {
            request,
            choice,
            model: model.name.clone(),
            digests: model.digests.clone(),
            class,
            class_reason,
            prompt: prompt.clone(),
            resume: Vec::new(),
            max_tokens,
            stop_tokens: if ask.ignore_eos {
                Vec::new()
            } else {
                text.stop_tokens().to_vec()
            },
            sampling,
            cache_salt: caller.cache_salt(),
            pools: caller.reach(),
        };
        if let Ok(text) = &mut text_ask {
            text.choice = choice;
            text.seed = ask.seeded.then_some(seed.wrapping_add(u64::from(choice)));
        }
        let as_text = text_ask.as_ref().map_err(|why| *why);
        streams.push(backend.generate(generation, as_text).await?);
        // It is read once, and by now somebody reads it.
        if let Some(ticket) = ticket.as_ref().filter(|_| choice == 0) {
            ticket.took(prompt.len() as u64);
        }
    }
    let asked = Asked {
        request,
        key: caller.key(),
        model: model.name.clone(),
        class,
        class_reason,
        began,
        choices: ask.choices,
    };
    Ok(Running {
        tally: Tally::new(asked, ticket, backend.usage().clone(), backend.clone()),
        prompt_tokens: prompt.len() as u32,
        began,
        entry_stats: backend.entry_stats().clone(),
        kind,
        request,
        created_s: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        class,
        class_reason,
        maker: streams
            .first()
            .map_or(Maker::Node(NodeId::from_bits(0)), |stream| stream.maker.clone()),
        model,
        text,
        ask,
        echo,
        streams,
    })
}

/// The model that a request names, and the class that the end of its name asks for. A model that is
/// called so goes before a class.
fn find_model<B: Backend>(backend: &B, name: &str) -> Result<(ModelRecord, Option<Class>), Failure> {
    if let Some(model) = backend.model(name) {
        return Ok((model, None));
    }
    let aliased = split_alias(name).and_then(|(name, class)| Some((backend.model(name)?, Some(class))));
    aliased.ok_or_else(|| Failure::unknown_model(name))
}

fn class_of(
    key: Option<Class>,
    headers: &HeaderMap,
    ask: &Ask,
    alias: Option<Class>,
) -> Result<(Class, ClassReason), Failure> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let hints = Hints {
        key,
        class: header("x-pomona-class"),
        priority: header("x-smg-priority"),
        service_tier: ask.service_tier.as_deref(),
        app: header("x-app"),
        user_agent: header("user-agent"),
        alias,
    };
    classify(hints)
        .map_err(|unknown| Failure::invalid("x-pomona-class", InvalidCode::InvalidValue, unknown.to_string()))
}

/// The prompt as token ids, with room for at least one more.
fn resolve(text: &ModelText, ask: &Ask, model: &ModelRecord) -> Result<(Vec<u32>, String), Failure> {
    let invalid = |message: String| {
        let parameter = if matches!(ask.prompt, Prompt::Chat(_)) {
            "messages"
        } else {
            "prompt"
        };
        Failure::invalid(parameter, InvalidCode::InvalidValue, message)
    };
    let encode_error = |error: pomona_text::TextError| invalid(error.to_string());
    let (prompt, echo) = match &ask.prompt {
        Prompt::Chat(messages) => {
            let rendered = text.render_chat(messages).map_err(|error| match error {
                TemplateError::Missing | TemplateError::Refused(_) => invalid(error.to_string()),
                TemplateError::Broken(_) => invalid(format!("{error}")),
            })?;
            (text.encode(&rendered).map_err(encode_error)?, String::new())
        }
        Prompt::Text(plain) => {
            let ids = text.encode_prompt(plain).map_err(encode_error)?;
            (ids, if ask.echo { plain.clone() } else { String::new() })
        }
        Prompt::Tokens(ids) => {
            if let Some(id) = ids.iter().find(|id| **id >= text.vocab()) {
                return Err(invalid(format!("token id {id} is not below {}", text.vocab())));
            }
            (ids.clone(), String::new())
        }
    };
    if prompt.is_empty() {
        return Err(invalid("the prompt is empty".into()));
    }
    if prompt.len() as u64 >= u64::from(model.context) {
        let parameter = if matches!(ask.prompt, Prompt::Chat(_)) {
            "messages"
        } else {
            "prompt"
        };
        let message = format!(
            "the prompt has {} tokens and the context of `{}` is {}: shorten it",
            prompt.len(),
            model.name,
            model.context
        );
        return Err(Failure::invalid(
            parameter,
            InvalidCode::ContextLengthExceeded,
            message,
        ));
    }
    Ok((prompt, echo))
}

/// 128 random bits; all zero only if the system has no randomness at all.
fn random() -> u128 {
    let mut bytes = [0; 16];
    let _ = getrandom::fill(&mut bytes);
    u128::from_le_bytes(bytes)
}
