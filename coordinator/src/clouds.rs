//! Answers of clouds: asked for when no machine answers, after the log has let the request out and written it down.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use pomona_api::GenerationStream;
use pomona_clocks::wall_s;
use pomona_cluster_config::{CloudConfig, CloudKey, CloudModel};
use pomona_common::generation::GenerationEvent;
use pomona_common::{
    Accounting, CloudName, Failure, Fallback, FinishReason, Maker, ModelName, Money, Prices, TextAsk, Usage,
    limits,
};
use pomona_decide::clouds::LONGEST_S;
use pomona_decide::{Command, Deed, Reply, Reserved, Spill, SpillId, Took};
use pomona_dispatch::SPILL;
use pomona_raft::Replica;
use pomona_upstream::{Answer, Client, Piece, Rate, Settings, Turn, UpstreamError};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::random;

/// What an answer took is told so often; after that it is taken to have taken all that was reserved.
const SETTLEMENTS: u32 = 4;
/// As long as that may take.
const SETTLES: Duration = Duration::from_secs(60);
/// Between two times.
const PAUSE: Duration = Duration::from_secs(3);

/// The clouds that this coordinator is configured for.
pub(crate) struct Clouds {
    replica: Replica,
    known: BTreeMap<CloudName, Cloud>,
}

/// One of them.
pub(crate) struct Cloud {
    /// Where it is.
    pub(crate) address: String,
    /// Its client, or why there is none.
    pub(crate) client: Result<Client, String>,
    /// What it has.
    pub(crate) models: BTreeMap<ModelName, CloudModel>,
}

impl Clouds {
    /// Reads keys and certificates. What is missing is told by whoever asks for the cloud: machines answer
    /// without it.
    pub(crate) fn open(configured: &BTreeMap<CloudName, CloudConfig>, replica: Replica) -> Self {
        let open = |(name, config): (&CloudName, &CloudConfig)| {
            let client = client(config);
            if let Err(why) = &client {
                tracing::warn!(cloud = %name, why, "a cloud cannot be asked");
            }
            let cloud = Cloud {
                address: config.address.to_string(),
                client,
                models: config.models.clone(),
            };
            (name.clone(), cloud)
        };
        Self {
            known: configured.iter().map(open).collect(),
            replica,
        }
    }

    /// All of them.
    pub(crate) fn known(&self) -> &BTreeMap<CloudName, Cloud> {
        &self.known
    }

    /// Asks the clouds of a list in order, until one answers.
    ///
    /// # Errors
    /// [`Failure::NoCloud`], with what each of them said; [`Failure::Overloaded`] when one of them says when to come
    /// back, and none may want to be paid already.
    pub(crate) async fn answer(&self, list: &Fallback, ask: &TextAsk) -> Result<GenerationStream, Failure> {
        let (deadline, mut said, mut asked) = (Instant::now() + SPILL, Vec::new(), false);
        let mut soonest: Option<Duration> = None;
        for name in list.clouds() {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = tokio::time::timeout(left, self.ask(name, ask)).await;
            let not_asked = match answer {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(not_asked)) => not_asked,
                Err(_) => NotAnswered::asked("there was no time left for it"),
            };
            let NotAnswered {
                why,
                was_asked,
                retry_after,
            } = not_asked;
            soonest = soonest.into_iter().chain(retry_after).min();
            tracing::info!(cloud = %name, request = %ask.request, why, was_asked, "no answer of a cloud");
            said.push(format!("cloud:{name}: {why}"));
            asked |= was_asked;
        }
        let detail = said.join("; ");
        Err(match soonest.filter(|_| !asked) {
            // That passes: it is held, as what finds no free machine.
            Some(soonest) => Failure::Overloaded {
                detail,
                retry_after_s: u32::try_from(soonest.as_millis().div_ceil(1000))
                    .unwrap_or(u32::MAX)
                    .max(1),
            },
            None => Failure::NoCloud { detail, asked },
        })
    }

    async fn ask(&self, name: &CloudName, ask: &TextAsk) -> Result<GenerationStream, NotAnswered> {
        let not = NotAnswered::not_asked;
        let cloud = self.known.get(name);
        let cloud = cloud.ok_or_else(|| not("this coordinator is not configured for it"))?;
        let client = cloud.client.as_ref();
        let client = client.map_err(|_| not("it lacks something: `pomona cloud list` on the coordinator"))?;
        let model = cloud.models.get(&ask.model);
        let model = model.ok_or_else(|| not(&format!("it is not configured for `{}`", ask.model)))?;
        let spill = self.spill(name, cloud, model, ask).map_err(|why| not(&why))?;
        // Most refusals cost no entry of the log.
        if let Some(why) = self.replica.known().refuses_spill(&spill) {
            return Err(not(&why));
        }
        let turn = client.turn(spill.reserved.tokens);
        let turn = turn.map_err(|error| NotAnswered::said(&error))?;
        let (sender, events) = mpsc::channel(limits::STREAM_EVENTS);
        let errand = Errand {
            replica: self.replica.clone(),
            prices: model.prices,
            cloud: name.clone(),
            model: model.name.clone(),
            ask: ask.clone(),
        };
        errand.begin(spill, turn, sender).await?;
        tracing::info!(cloud = %name, request = %ask.request, model = %ask.model, "answered by a cloud");
        // Clouds know of stop strings themselves.
        let (enough, _) = pomona_api::enough();
        Ok(GenerationStream {
            maker: Maker::Cloud(name.clone()),
            events,
            enough,
        })
    }

    /// What is written down before anything goes out.
    fn spill(
        &self,
        name: &CloudName,
        cloud: &Cloud,
        model: &CloudModel,
        ask: &TextAsk,
    ) -> Result<Spill, String> {
        let (prompt, answer) = (ask.most_prompt_tokens(), u64::from(ask.max_tokens));
        let reserved = Reserved {
            cloud: name.clone(),
            key: ask.key,
            money: model.prices.cost(prompt, answer),
            tokens: prompt.saturating_add(answer),
            at_s: wall_s(),
        };
        let state = self.replica.known();
        let key = ask.key.and_then(|key| state.keys.keys.get(&key));
        let detail = json!({
            "request": ask.request, "model": ask.model, "there": model.name, "class": ask.class,
            "at_most": { "tokens": reserved.tokens, "money": reserved.money.to_string() },
        });
        Ok(Spill {
            id: SpillId {
                request: ask.request,
                choice: ask.choice,
                attempt: random().map_err(|error| error.to_string())? as u64,
            },
            deed: Deed {
                by: key.map_or_else(String::new, |record| record.name.clone()),
                action: "spill".to_owned(),
                subject: format!("{name} {}", cloud.address),
                detail: detail.to_string(),
                at_s: reserved.at_s,
            },
            reserved,
            address: cloud.address.clone(),
            model: ask.model.clone(),
            class: ask.class,
            pools: ask.pools.clone(),
        })
    }
}

/// A cloud that gave no answer, and why.
struct NotAnswered {
    why: String,
    /// Whether it was asked, and may want to be paid: nobody asks for the same again.
    was_asked: bool,
    /// When to ask again.
    retry_after: Option<Duration>,
}

impl NotAnswered {
    fn said(error: &UpstreamError) -> Self {
        Self {
            why: error.to_string(),
            was_asked: !error.made_nothing(),
            retry_after: error.retry_after(),
        }
    }

    fn not_asked(why: &str) -> Self {
        Self {
            why: why.to_owned(),
            was_asked: false,
            retry_after: None,
        }
    }

    fn asked(why: &str) -> Self {
        Self {
            why: why.to_owned(),
            was_asked: true,
            retry_after: None,
        }
    }
}

fn client(config: &CloudConfig) -> Result<Client, String> {
    let read =
        |path: &std::path::Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let key = match &config.key {
        CloudKey::None => None,
        CloudKey::Variable(name) => {
            Some(std::env::var(name).map_err(|_| format!("{name} is not set where the coordinator runs"))?)
        }
        CloudKey::File(path) => {
            let text = String::from_utf8(read(path)?);
            Some(text.map_err(|_| format!("{} is no text", path.display()))?)
        }
    };
    Client::new(Settings {
        address: config.address.clone(),
        key,
        parallel: config.parallel,
        rate: Rate::new(config.requests_per_minute, config.tokens_per_minute),
        first_text: config.first_text,
        left_alone: true,
        authorities: config.authorities.as_deref().map(read).transpose()?,
        max_tokens_field: config.max_tokens_field.clone(),
    })
}

/// One request on its way: reserved, asked, passed on and settled, whatever becomes of the client. One that leaves
/// ends the answer, and not its bill.
struct Errand {
    replica: Replica,
    prices: Prices,
    cloud: CloudName,
    /// The cloud's name for the model.
    model: String,
    ask: TextAsk,
}

impl Errand {
    /// Starts it; comes back when the first of the answer is there.
    async fn begin(
        self,
        spill: Spill,
        turn: Turn,
        sender: mpsc::Sender<GenerationEvent>,
    ) -> Result<(), NotAnswered> {
        let (tell, told) = oneshot::channel();
        #[expect(
            clippy::disallowed_methods,
            reason = "ends with either end of the answer, whose times are bounded, and a bounded number of settlements"
        )]
        tokio::spawn(async move {
            let id = spill.id;
            let took = match self.reserve(spill).await {
                Ok(()) => self.run(turn, tell, sender).await,
                Err(reserved) => {
                    let _ = tell.send(Err(NotAnswered::not_asked(&reserved.why)));
                    if !reserved.perhaps {
                        return;
                    }
                    // Nothing went out.
                    Some(NOTHING)
                }
            };
            match took {
                Some(took) => self.settle(id, took).await,
                None => tracing::warn!(
                    cloud = %self.cloud, request = %id.request,
                    "nobody has told what an answer took: it counts as all that was reserved for it"
                ),
            }
        });
        told.await
            .unwrap_or_else(|_| Err(NotAnswered::asked("it broke off")))
    }

    async fn reserve(&self, spill: Spill) -> Result<(), NotReserved> {
        match self.replica.write(Command::ReserveSpill(Box::new(spill))).await {
            Ok(Reply::Done | Reply::Unchanged) => Ok(()),
            Ok(Reply::Refused(why)) => Err(NotReserved { why, perhaps: false }),
            Err(error) => Err(NotReserved {
                why: format!(
                    "without a majority of the coordinators nothing goes out, and they have not agreed: {error}"
                ),
                perhaps: true,
            }),
        }
    }

    /// Asks, and passes the answer on until either end leaves. Says what it took; nothing when nobody knows.
    async fn run(
        &self,
        turn: Turn,
        tell: oneshot::Sender<Result<(), NotAnswered>>,
        sender: mpsc::Sender<GenerationEvent>,
    ) -> Option<Took> {
        if sender.is_closed() {
            // The client left while the others agreed: nothing went out.
            return Some(NOTHING);
        }
        let began = Instant::now();
        let first = async {
            let mut answer = turn.ask(&self.ask, &self.model).await?;
            let piece = answer.next().await?.ok_or(UpstreamError::BrokeOff)?;
            Ok::<_, UpstreamError>((answer, piece))
        };
        let first = tokio::select! {
            first = first => first,
            () = sender.closed() => return None,
        };
        match first {
            Ok((answer, piece)) => {
                let _ = tell.send(Ok(()));
                self.pass_on(answer, piece, &sender, began).await
            }
            Err(error) => {
                let took = error.made_nothing().then_some(NOTHING);
                let _ = tell.send(Err(NotAnswered::said(&error)));
                took
            }
        }
    }

    async fn pass_on(
        &self,
        mut answer: Answer,
        mut piece: Piece,
        sender: &mpsc::Sender<GenerationEvent>,
        began: Instant,
    ) -> Option<Took> {
        let first = began.elapsed();
        // What it reserved is not kept for longer, whatever its class may take.
        let limit = limits::wall_clock(self.ask.class).min(Duration::from_secs(LONGEST_S) - SETTLES);
        let mut tokens = 0u64;
        loop {
            let (event, took) = match piece {
                Piece::Text(_) | Piece::Thought if tokens >= u64::from(self.ask.max_tokens) => {
                    // It goes on beyond what was asked for, at our cost.
                    let accounting = self.accounting((None, tokens), (first, began.elapsed()));
                    let reason = FinishReason::Length;
                    (GenerationEvent::Finished { reason, accounting }, Some(None))
                }
                Piece::Text(text) => {
                    tokens += 1;
                    (GenerationEvent::Text(text), None)
                }
                Piece::Thought => {
                    tokens += 1;
                    // A chunk of nothing: what waits hears that something is going on.
                    (GenerationEvent::Text(String::new()), None)
                }
                Piece::End { reason, usage } => {
                    let usage = usage.and_then(|usage| self.ask.plausible(usage, tokens));
                    let accounting = self.accounting((usage, tokens), (first, began.elapsed()));
                    let took = usage.map(|usage| Took {
                        money: self.prices.cost(usage.prompt, usage.answer),
                        tokens: usage.sum(),
                    });
                    (GenerationEvent::Finished { reason, accounting }, Some(took))
                }
            };
            // Whoever reads slowly slows the cloud down, until they count as gone.
            let sent = tokio::time::timeout(limits::IDLE_WRITE_TIMEOUT, sender.send(event)).await;
            if let Some(took) = took {
                return took;
            }
            if !matches!(sent, Ok(Ok(()))) {
                return None;
            }
            let left = limit.saturating_sub(began.elapsed());
            let next = tokio::select! {
                () = tokio::time::sleep(left) => {
                    let limit_s = limit.as_secs();
                    let _ = sender.try_send(GenerationEvent::Failed(Failure::TimedOut { limit_s }));
                    return None;
                }
                next = answer.next() => next.and_then(|next| next.ok_or(UpstreamError::BrokeOff)),
                () = sender.closed() => return None,
            };
            piece = match next {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(cloud = %self.cloud, %error, "a cloud gave up half-way");
                    let failure = Failure::CloudLost {
                        cloud: self.cloud.clone(),
                        detail: error.to_string(),
                    };
                    let _ = sender.try_send(GenerationEvent::Failed(failure));
                    return None;
                }
            };
        }
    }

    /// A cloud's answer in our terms. No node and no engine of ours had a part in it.
    fn accounting(
        &self,
        (usage, tokens): (Option<Usage>, u64),
        (first, whole): (Duration, Duration),
    ) -> Accounting {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let count = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
        Accounting {
            prefill_ms: ms(first),
            decode_ms: ms(whole.saturating_sub(first)),
            prompt_tokens: usage.map_or(self.ask.prompt_tokens, |usage| count(usage.prompt)),
            completion_tokens: count(usage.map_or(tokens, |usage| usage.answer)),
            cached_tokens: usage.map_or(0, |usage| count(usage.cached)),
            build: format!("cloud:{}", self.cloud),
            ..Accounting::default()
        }
    }

    async fn settle(&self, id: SpillId, took: Took) {
        for _ in 0..SETTLEMENTS {
            match self.replica.write(Command::SettleSpill { id, took }).await {
                Ok(_) => return,
                Err(error) => tracing::debug!(%error, "not settled yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        tracing::warn!(request = %id.request, "an answer of a cloud counts as all that was reserved for it");
    }
}

/// A reservation that is not there, or not known to be.
struct NotReserved {
    why: String,
    /// Whether it may have been made all the same.
    perhaps: bool,
}

const NOTHING: Took = Took {
    money: Money(0),
    tokens: 0,
};
