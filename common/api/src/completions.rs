//! From a request to running generations.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response};
use bytes::Bytes;
use pomona_common::class::{Hints, classify, split_alias};
use pomona_common::cloud::SPILLED;
use pomona_common::failure::InvalidCode;
use pomona_common::{
    Accounting, Class, ClassReason, Energy, Failure, Generation, Maker, ModelRecord, NodeId, RequestId, Seek,
    limits,
};
use pomona_text::{AnswerText, ModelText};

use crate::access::Caller;
use crate::as_text::{Context, as_text};
use crate::backend::{Backend, GenerationStream};
use crate::entry_stats::EntryStats;
use crate::error::Refusal;
use crate::request::{self, Ask, Kind};
use crate::resolve::resolve;
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
    /// Who makes the first of the answers.
    pub(crate) maker: Maker,
    pub(crate) model: ModelRecord,
    /// None of a model that takes text.
    pub(crate) text: Option<Arc<ModelText>>,
    pub(crate) ask: Ask,
    /// Text of the prompt, where it is to be echoed.
    pub(crate) echo: String,
    pub(crate) streams: Vec<GenerationStream>,
    /// What it takes.
    pub(crate) tally: Tally,
}

impl Running {
    /// An answer is whole: `told` of its tokens are counted. Of one that came as text, the rest is counted now.
    pub(crate) fn finished(&self, accounting: &Accounting, energy: Option<Energy>, told: u32) {
        if self.text.is_none() || accounting.node.is_none() {
            self.tally
                .took(accounting.completion_tokens.saturating_sub(told) as usize);
        }
        self.tally.finished(accounting, energy);
    }

    /// Turns the tokens of one of the answers into text.
    pub(crate) fn answer(&self) -> Option<AnswerText> {
        let text = self.text.as_ref()?;
        Some(text.answer(self.ask.stops.clone()))
    }

    /// What an answer took that a stop string ended after so many tokens, as the engine says or as far as is known
    /// here. What was made beyond it is nothing to its client.
    pub(crate) fn cut(&self, heard: Option<Accounting>, completion_tokens: u32) -> Accounting {
        let known = || Accounting {
            prompt_tokens: self.prompt_tokens,
            node: self.maker.node(),
            ..Accounting::default()
        };
        Accounting {
            completion_tokens,
            ..heard.unwrap_or_else(known)
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
    let mut said = vec![("x-pomona-request-id", request.to_string())];
    let mut classified = None;
    let begun = begin(backend, (kind, request), caller, headers, &body, &mut classified).await;
    // Who is refused wants to know by what: for batch there is less room.
    if let Some((class, reason)) = classified {
        said.push(("x-pomona-class", class.to_string()));
        said.push(("x-pomona-class-reason", reason.as_str().to_owned()));
    }
    let mut response = match begun {
        Ok(running) => {
            said.push(match &running.maker {
                Maker::Node(node) => ("x-pomona-node", node.to_string()),
                Maker::Cloud(cloud) => ("x-pomona-cloud", cloud.to_string()),
            });
            if running.ask.stream {
                stream::respond(running)
            } else {
                respond::respond(running).await
            }
        }
        Err(Refusal::Denied(denied)) => error::denied(&denied),
        Err(Refusal::Failed(failure)) => {
            if matches!(failure, Failure::Internal { .. }) {
                tracing::error!(%request, %failure, "request failed");
            }
            error::response(&failure)
        }
    };
    for (name, value) in said {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Starts the answers; `classified` is what is known of the class, also when nothing comes of it.
async fn begin<B: Backend>(
    backend: &Arc<B>,
    (kind, request): (Kind, RequestId),
    caller: &Caller,
    headers: &HeaderMap,
    body: &[u8],
    classified: &mut Option<(Class, ClassReason)>,
) -> Result<Running, Refusal> {
    let began = Instant::now();
    let ask = request::parse(kind, body)?;
    let (model, alias) = find_model(&**backend, &ask.model)?;
    caller.may_ask(&model.name)?;
    let of_key = caller.terms().and_then(|terms| terms.class);
    let (class, class_reason) = class_of(of_key, headers, &ask, alias)?;
    *classified = Some((class, class_reason));
    caller.may_be(class)?;
    let ticket = backend.access().begin(caller, &model.name)?;
    backend.entry_stats().count(class, class_reason);
    tracing::debug!(%request, %class, reason = class_reason.as_str(), model = %model.name, "request");
    let (mut ask, resolved) = resolve(&**backend, ask, &model).await?;
    let room = match resolved.text {
        Some(_) => model.context.saturating_sub(resolved.tokens).max(1),
        // Its server counts.
        None => model.context,
    };
    let max_tokens = ask.max_tokens.unwrap_or(limits::DEFAULT_MAX_TOKENS).min(room);
    if let Some(ticket) = &ticket {
        ticket.reserve(u64::from(resolved.tokens) + u64::from(max_tokens) * u64::from(ask.choices))?;
    }
    let context = Context {
        request,
        caller,
        class,
        model: &model,
        prompt_tokens: resolved.tokens,
        max_tokens,
    };
    let mut text_ask = as_text(&context, &mut ask);
    if let (true, Err(why)) = (model.digests.is_adopted(), &text_ask) {
        let text = format!("`{}` is at a server of another program: {why}", model.name);
        return Err(Failure::invalid("", InvalidCode::Unsupported, text).into());
    }
    let is_spilled = headers.contains_key(SPILLED);
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
        let mut generation = Generation {
            request,
            choice,
            model: model.name.clone(),
            digests: model.digests.clone(),
            class,
            class_reason,
            prompt: resolved.prompt.clone(),
            resume: Vec::new(),
            max_tokens,
            stop_tokens: match &resolved.text {
                Some(text) if !ask.ignore_eos => text.stop_tokens().to_vec(),
                Some(_) | None => Vec::new(),
            },
            sampling,
            cache_salt: caller.cache_salt(),
            pools: caller.reach(),
            text: None,
            seek: Seek::Any,
        };
        if let Ok(text) = &mut text_ask {
            text.choice = choice;
            text.seed = ask.seeded.then_some(seed.wrapping_add(u64::from(choice)));
            generation.text = model.digests.is_adopted().then(|| Arc::new(text.clone()));
        }
        let for_clouds = match &text_ask {
            Ok(_) if is_spilled => Err("another cluster has sent this here"),
            Ok(text) => Ok(text),
            Err(why) => Err(*why),
        };
        streams.push(backend.generate(generation, for_clouds).await?);
        // It is read once, and by now somebody reads it.
        if let Some(ticket) = ticket.as_ref().filter(|_| choice == 0) {
            ticket.took(resolved.tokens.into());
        }
    }
    let maker = streams.first().map(|stream| stream.maker.clone());
    let maker = maker.unwrap_or(Maker::Node(NodeId::from_bits(0)));
    let asked = Asked {
        request,
        cloud: maker.cloud().cloned(),
        key: caller.key(),
        model: model.name.clone(),
        class,
        class_reason,
        began,
        prompt_tokens: resolved.tokens,
        choices: ask.choices,
        slo: backend.slo(class),
    };
    let entry_stats = backend.entry_stats();
    let tally = Tally::new(asked, ticket, entry_stats.clone(), backend.usage().clone());
    Ok(Running {
        tally,
        prompt_tokens: resolved.tokens,
        began,
        entry_stats: entry_stats.clone(),
        kind,
        request,
        created_s: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        class,
        maker,
        model,
        text: resolved.text,
        ask,
        echo: resolved.echo,
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

/// 128 random bits; all zero only if the system has no randomness at all.
fn random() -> u128 {
    let mut bytes = [0; 16];
    let _ = getrandom::fill(&mut bytes);
    u128::from_le_bytes(bytes)
}
