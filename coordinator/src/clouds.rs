//! Answers of clouds: asked for when no machine answers, after the log has let the request out and written it down.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use pomona_api::GenerationStream;
use pomona_clocks::wall_s;
use pomona_cluster_config::{CloudConfig, CloudKey, CloudModel};
use pomona_common::generation::GenerationEvent;
use pomona_common::{
    Accounting, CloudName, Failure, Fallback, Maker, ModelName, Money, Prices, TextAsk, limits,
};
use pomona_decide::{Command, Deed, Reply, Reserved, Spill, SpillId, Took};
use pomona_dispatch::SPILL;
use pomona_raft::Replica;
use pomona_upstream::{Answer, Client, Piece, Rate, Settings, Turn, UpstreamError};
use serde_json::json;
use tokio::sync::mpsc;

use crate::random;

/// What an answer took is told so often; after that it is taken to have taken all that was reserved.
const SETTLEMENTS: u32 = 4;
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
    /// [`Failure::NoCloud`], with what each of them said.
    pub(crate) async fn answer(&self, list: &Fallback, ask: &TextAsk) -> Result<GenerationStream, Failure> {
        let (deadline, mut said) = (Instant::now() + SPILL, Vec::new());
        for name in list.clouds() {
            let left = deadline.saturating_duration_since(Instant::now());
            let asked = tokio::time::timeout(left, self.ask(name, ask)).await;
            match asked.unwrap_or_else(|_| Err("there was no time left for it".to_owned())) {
                Ok(stream) => return Ok(stream),
                Err(why) => {
                    tracing::info!(cloud = %name, request = %ask.request, why, "not asked, or no answer");
                    said.push(format!("cloud:{name}: {why}"));
                }
            }
        }
        Err(Failure::NoCloud {
            detail: said.join("; "),
        })
    }

    async fn ask(&self, name: &CloudName, ask: &TextAsk) -> Result<GenerationStream, String> {
        let cloud = self.known.get(name);
        let cloud = cloud.ok_or("this coordinator is not configured for it")?;
        let client = cloud.client.as_ref().map_err(Clone::clone)?;
        let model = cloud.models.get(&ask.model);
        let model = model.ok_or_else(|| format!("it is not configured for `{}`", ask.model))?;
        let spill = self.spill(name, cloud, model, ask)?;
        // Most refusals cost no entry of the log.
        if let Some(why) = self.replica.known().refuses_spill(&spill) {
            return Err(why);
        }
        let turn = client.turn(spill.reserved.tokens);
        let turn = turn.map_err(|error| error.to_string())?;
        let account = Account {
            replica: self.replica.clone(),
            id: spill.id,
            prices: model.prices,
            prompt_tokens: u64::from(ask.prompt_tokens),
        };
        self.reserve(spill).await?;
        let (sender, events) = mpsc::channel(limits::STREAM_EVENTS);
        let began = begin(turn, ask, &model.name, account, name.clone(), sender).await;
        began.map_err(|error| error.to_string())?;
        tracing::info!(cloud = %name, request = %ask.request, model = %ask.model, "answered by a cloud");
        Ok(GenerationStream {
            maker: Maker::Cloud(name.clone()),
            events,
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
        let (prompt, answer) = (u64::from(ask.prompt_tokens), u64::from(ask.max_tokens));
        let reserved = Reserved {
            cloud: name.clone(),
            key: ask.key,
            money: model.prices.cost(prompt, answer),
            tokens: prompt + answer,
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

    async fn reserve(&self, spill: Spill) -> Result<(), String> {
        match self.replica.write(Command::ReserveSpill(Box::new(spill))).await {
            Ok(Reply::Done | Reply::Unchanged) => Ok(()),
            Ok(Reply::Refused(why)) => Err(why),
            Err(error) => Err(format!(
                "the other coordinators have not agreed, and without a majority nothing goes out: {error}"
            )),
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
        authorities: config.authorities.as_deref().map(read).transpose()?,
        max_tokens_field: config.max_tokens_field.clone(),
    })
}

/// What was reserved for one answer, until it is known what it took.
struct Account {
    replica: Replica,
    id: SpillId,
    prices: Prices,
    prompt_tokens: u64,
}

impl Account {
    fn took(&self, prompt: u64, answer: u64) -> Took {
        Took {
            money: self.prices.cost(prompt, answer),
            tokens: prompt + answer,
        }
    }

    /// Nothing reached the cloud, as far as it says itself.
    const NOTHING: Took = Took {
        money: Money(0),
        tokens: 0,
    };

    async fn settle(self, took: Took) {
        for _ in 0..SETTLEMENTS {
            match self
                .replica
                .write(Command::SettleSpill { id: self.id, took })
                .await
            {
                Ok(_) => return,
                Err(error) => tracing::debug!(%error, "not settled yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        tracing::warn!(request = %self.id.request, "an answer of a cloud counts as all that was reserved for it");
    }
}

/// Asks, in a task that settles the account whatever becomes of the client: one that leaves ends the answer, and
/// not its bill. Comes back when the answer has begun.
async fn begin(
    turn: Turn,
    ask: &TextAsk,
    model: &str,
    account: Account,
    cloud: CloudName,
    sender: mpsc::Sender<GenerationEvent>,
) -> Result<(), UpstreamError> {
    let (ask, model) = (ask.clone(), model.to_owned());
    let (tell, told) = tokio::sync::oneshot::channel();
    #[expect(
        clippy::disallowed_methods,
        reason = "ends with either end of the answer, whose times are bounded, and a bounded number of settlements"
    )]
    tokio::spawn(async move {
        let answer = tokio::select! {
            answer = turn.ask(&ask, &model) => answer,
            () = sender.closed() => {
                // It may have read the prompt.
                let took = account.took(account.prompt_tokens, 0);
                return account.settle(took).await;
            }
        };
        match answer {
            Ok(answer) => {
                let _ = tell.send(Ok(()));
                let took = pass_on(answer, &account, &cloud, &sender).await;
                drop(sender);
                account.settle(took).await;
            }
            Err(error) => {
                let read_it =
                    matches!(error, UpstreamError::Silent(phase) if phase != pomona_upstream::Phase::Connect);
                let took = if read_it {
                    account.took(account.prompt_tokens, 0)
                } else {
                    Account::NOTHING
                };
                let _ = tell.send(Err(error));
                account.settle(took).await;
            }
        }
    });
    told.await.unwrap_or(Err(UpstreamError::BrokeOff))
}

/// Passes an answer on until either end leaves; says what it took.
async fn pass_on(
    mut answer: Answer,
    account: &Account,
    cloud: &CloudName,
    sender: &mpsc::Sender<GenerationEvent>,
) -> Took {
    let began = Instant::now();
    let (mut first, mut texts) = (None, 0u64);
    loop {
        let piece = tokio::select! {
            piece = answer.next() => piece,
            () = sender.closed() => return account.took(account.prompt_tokens, texts),
        };
        let failed = |error: &dyn std::fmt::Display| {
            GenerationEvent::Failed(Failure::CloudLost {
                cloud: cloud.clone(),
                detail: error.to_string(),
            })
        };
        let event = match piece {
            Ok(Some(Piece::Text(text))) => {
                first.get_or_insert_with(|| began.elapsed());
                texts += 1;
                // A reader that is that far behind is gone for all purposes.
                if sender.try_send(GenerationEvent::Text(text)).is_err() {
                    return account.took(account.prompt_tokens, texts);
                }
                continue;
            }
            Ok(Some(Piece::End { reason, usage })) => {
                let (prompt, tokens) = usage.unwrap_or((account.prompt_tokens, texts));
                let first = first.unwrap_or_else(|| began.elapsed());
                let accounting = accounting(cloud, (prompt, tokens), (first, began.elapsed()));
                let _ = sender.try_send(GenerationEvent::Finished { reason, accounting });
                return account.took(prompt, tokens);
            }
            Ok(None) => failed(&UpstreamError::BrokeOff),
            Err(error) => {
                tracing::warn!(%cloud, %error, "a cloud gave up half-way");
                failed(&error)
            }
        };
        let _ = sender.try_send(event);
        return account.took(account.prompt_tokens, texts);
    }
}

/// A cloud's answer in our terms. No node and no engine of ours had a part in it.
fn accounting(
    cloud: &CloudName,
    (prompt, answer): (u64, u64),
    (first, whole): (Duration, Duration),
) -> Accounting {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let count = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
    Accounting {
        prefill_ms: ms(first),
        decode_ms: ms(whole.saturating_sub(first)),
        prompt_tokens: count(prompt),
        completion_tokens: count(answer),
        build: format!("cloud:{cloud}"),
        ..Accounting::default()
    }
}
