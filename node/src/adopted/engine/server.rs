//! One server of another program: whether it is there, and what it answers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pomona_common::failure::InvalidCode;
use pomona_common::generation::GenerationEvent;
use pomona_common::{Accounting, Failure, FinishReason, ModelName, TextAsk, Usage};
use pomona_upstream::{Client, Piece, UpstreamError};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::News;
use super::load::{Load, Others};
use super::queue::{Job, Slots};
use crate::adopted::{Adopted, servers};

/// Between two looks whether one is there that was not, and at what one that is has to do.
const LOOK_FOR: Duration = Duration::from_secs(2);
/// So many of the latter between two looks at its models: some look through all of them for a list.
const LOADS_A_LOOK: u32 = 5;
/// After so many looks it is asked again which process it is.
const WHOSE: u32 = 6;
/// Looks in a row that it does not answer until it counts as gone: one that computes may be late with a list. That
/// nobody listens any more is seen at once.
const MISSES: u32 = 12;

/// See the module's documentation.
pub(super) struct Server {
    pub(super) adopted: Adopted,
    /// Where that is written.
    pub(super) folder: PathBuf,
    client: Client,
    pub(super) is_up: bool,
    /// Why it is not, once that is known.
    pub(super) why_not: Option<String>,
    /// Its process, as far as the system tells.
    pub(super) pid: Option<u32>,
    /// What it has to do for others.
    pub(super) others: Others,
    /// Texts that it has sent.
    pub(super) tokens: u64,
    /// Looks at it, until it is dropped.
    look: Option<AbortHandle>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(look) = &self.look {
            look.abort();
        }
    }
}

impl Server {
    pub(super) fn new(adopted: Adopted, folder: &Path) -> Result<Self, String> {
        Ok(Self {
            client: adopted.client()?,
            adopted,
            folder: folder.to_owned(),
            is_up: false,
            why_not: None,
            pid: None,
            others: Others::default(),
            tokens: 0,
            look: None,
        })
    }

    pub(super) fn looked_at_by(mut self, look: AbortHandle) -> Self {
        self.look = Some(look);
        self
    }

    /// What it can do at once.
    pub(super) fn slots(&self) -> Slots {
        Slots {
            all: if self.is_up { self.adopted.slots } else { 0 },
            others: self.others.count(),
        }
    }

    /// Tells whether it is there, and what it has to do, for as long as anybody listens.
    pub(super) fn look(
        &self,
        model: ModelName,
        news: mpsc::Sender<News>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (client, adopted) = (self.client.clone(), self.adopted.clone());
        async move {
            let (mut missed, mut known, mut load) = (MISSES, None, Load::default());
            for nth in 0u32.. {
                let seen = match servers::models(&client).await {
                    Ok(models) if models.contains(&adopted.model) => Ok(()),
                    Ok(_) => Err((
                        format!("{} has no `{}` any more", adopted.url, adopted.model),
                        true,
                    )),
                    Err(error) => {
                        let is_gone = matches!(error, UpstreamError::Unreachable(_));
                        Err((format!("{}: {error}", adopted.url), is_gone))
                    }
                };
                let state = match seen {
                    Ok(()) => {
                        missed = 0;
                        // It may have been started anew between two looks.
                        let is_old = known
                            .is_none_or(|pid: Option<u32>| pid.is_some_and(|pid| !pomona_probe::lives(pid)));
                        if is_old || nth % WHOSE == 0 {
                            let port = client.address().port;
                            let pid = tokio::task::spawn_blocking(move || pomona_probe::listener(port)).await;
                            known = Some(pid.ok().flatten());
                        }
                        Some(Ok(known.flatten()))
                    }
                    Err((why, is_gone)) => {
                        missed = missed.saturating_add(1);
                        let is_over = is_gone || missed >= MISSES;
                        if is_over {
                            // It comes back as another process.
                            known = None;
                            load.forget();
                        }
                        is_over.then_some(Err(why))
                    }
                };
                if let Some(state) = state
                    && news.send(News::Server(model.clone(), state)).await.is_err()
                {
                    return;
                }
                for _ in 0..if known.is_some() { LOADS_A_LOOK } else { 1 } {
                    if known.is_some() {
                        let requests = load.look(&client, &adopted.model).await;
                        if news.send(News::Load(model.clone(), requests)).await.is_err() {
                            return;
                        }
                    }
                    tokio::time::sleep(LOOK_FOR).await;
                }
            }
        }
    }

    /// Makes one answer.
    pub(super) fn answer(
        &self,
        sequence: u64,
        ask: TextAsk,
        news: mpsc::Sender<News>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (client, there) = (self.client.clone(), self.adopted.model.clone());
        async move {
            let ended = match make(&client, &ask, &there, sequence, &news).await {
                Ok(ended) => ended,
                Err(error) => Ended::Failed(error),
            };
            // Fails when nobody is there any more.
            let _ = news.send(News::Ended(sequence, ended)).await;
        }
    }
}

async fn make(
    client: &Client,
    ask: &TextAsk,
    there: &str,
    sequence: u64,
    news: &mpsc::Sender<News>,
) -> Result<Ended, UpstreamError> {
    let tokens = u64::from(ask.prompt_tokens) + u64::from(ask.max_tokens);
    let mut answer = client.turn(tokens)?.ask(ask, there).await?;
    let mut texts = 0u64;
    loop {
        let text = match answer.next().await? {
            Some(Piece::Text(text)) => text,
            Some(Piece::Thought) => String::new(),
            Some(Piece::End { reason, usage }) => {
                let usage = usage.and_then(|usage| ask.plausible(usage, texts));
                return Ok(Ended::Whole { reason, usage });
            }
            None => return Err(UpstreamError::BrokeOff),
        };
        if texts >= u64::from(ask.max_tokens) {
            // It goes on beyond what was asked for.
            let (reason, usage) = (FinishReason::Length, None);
            return Ok(Ended::Whole { reason, usage });
        }
        texts += 1;
        if news.send(News::Text(sequence, text)).await.is_err() {
            return Err(UpstreamError::BrokeOff);
        }
    }
}

/// How an answer ended.
pub(super) enum Ended {
    /// It is whole.
    Whole {
        reason: FinishReason,
        /// Tokens, if the server counts them.
        usage: Option<Usage>,
    },
    /// It is not.
    Failed(UpstreamError),
}

impl Ended {
    /// Why the server is not there any more, if that is how it ended.
    pub(super) fn is_gone(&self) -> Option<String> {
        match self {
            Ended::Failed(error @ UpstreamError::Unreachable(_)) => Some(error.to_string()),
            Ended::Failed(_) | Ended::Whole { .. } => None,
        }
    }

    /// The last event of an answer.
    pub(super) fn event(self, job: &Job, began: Instant, knob_version: u64) -> GenerationEvent {
        match self {
            Ended::Whole { reason, usage } => {
                let accounting = accounting(job, began, usage, knob_version);
                GenerationEvent::Finished { reason, accounting }
            }
            Ended::Failed(error) => {
                tracing::warn!(%error, "a server gave no answer");
                GenerationEvent::Failed(failure(&error, job))
            }
        }
    }
}

fn accounting(job: &Job, began: Instant, usage: Option<Usage>, knob_version: u64) -> Accounting {
    let count = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let first = job.first.unwrap_or_else(Instant::now);
    Accounting {
        queue_ms: ms(began.duration_since(job.since)),
        prefill_ms: ms(first.saturating_duration_since(began)),
        decode_ms: ms(first.elapsed()),
        prompt_tokens: usage.map_or(job.text.prompt_tokens, |usage| count(usage.prompt)),
        completion_tokens: usage.map_or(job.texts, |usage| count(usage.answer)),
        cached_tokens: usage.map_or(0, |usage| count(usage.cached)),
        knob_version,
        build: "adopted".into(),
        ..Accounting::default()
    }
}

/// What a server says, in the user's terms: what another machine may do better, the relay asks another one for, as long as
/// nothing was said.
fn failure(error: &UpstreamError, job: &Job) -> Failure {
    let text = format!("the server of this model: {error}");
    match error {
        UpstreamError::Refused {
            status: 400 | 413 | 422,
            ..
        }
        | UpstreamError::Filtered => Failure::invalid("", InvalidCode::InvalidValue, text),
        _ => Failure::ModelNotLoaded {
            model: job.generation.model.to_string(),
            detail: text,
        },
    }
}
