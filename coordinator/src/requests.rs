//! What a node asks of the cluster for its own endpoint: answers that are made elsewhere, and
//! the text side of models that it does not have. A node is believed no more than a client.

use std::sync::Arc;
use std::time::Duration;

use pomona_api::Backend;
use pomona_common::control::StreamRequest;
use pomona_common::failure::InvalidCode;
use pomona_common::{Class, Failure, Generation, NodeId, Sampling, TextAsk, TextPrompt, limits};
use pomona_link::{FrameReceiver, FrameSender, LinkError};
use tokio::sync::Semaphore;

use crate::backend::CoordinatorBackend;

/// A node sends its request within this time after it has opened the stream.
const REQUEST: Duration = Duration::from_secs(5);
/// Answers of one node's endpoint and one class at once: what its own queue would take.
const ANSWERS: usize = limits::QUEUE.capacity;
/// Tokenizers that one node fetches at once: they are megabytes, and kept there.
const TEXTS: usize = 2;

/// The class by whose limits a request of a node is served.
fn class_of(request: &StreamRequest) -> Class {
    match request {
        StreamRequest::Generate(generation)
        | StreamRequest::GenerateIn(generation, _)
        | StreamRequest::GenerateText(generation, ..)
        | StreamRequest::GenerateBetter(generation, ..) => generation.class,
        StreamRequest::Spill(ask) => ask.class,
        StreamRequest::FetchText(_) => Class::Interactive,
    }
}

/// The streams of one node.
pub(crate) struct Requests {
    node: NodeId,
    backend: Arc<CoordinatorBackend>,
    /// By class: batch, which waits for long, keeps nobody else out.
    answers: [Semaphore; 3],
    texts: Semaphore,
}

impl Requests {
    pub(crate) fn new(node: NodeId, backend: Arc<CoordinatorBackend>) -> Self {
        Self {
            node,
            backend,
            answers: Class::ALL.map(|_| Semaphore::new(ANSWERS)),
            texts: Semaphore::new(TEXTS),
        }
    }

    /// Serves one stream that the node opened, for no longer than a request of its class may take.
    pub(crate) async fn serve(self: Arc<Self>, send: FrameSender, mut receive: FrameReceiver) {
        let request = match receive.expect::<StreamRequest>(REQUEST).await {
            Ok(request) => request.whole(),
            Err(error) => return tracing::debug!(%error, "a node opened a stream and asked for nothing"),
        };
        let limit = limits::wall_clock(class_of(&request));
        match tokio::time::timeout(limit, self.answer(request, (send, receive))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "stream of a node ended"),
            Err(_) => tracing::info!("an answer for a node took too long"),
        }
    }

    async fn answer(
        &self,
        request: StreamRequest,
        (send, receive): (FrameSender, FrameReceiver),
    ) -> Result<(), LinkError> {
        let answers = &self.answers[class_of(&request).index()];
        match request {
            StreamRequest::Generate(generation)
            | StreamRequest::GenerateIn(generation, _)
            | StreamRequest::GenerateText(generation, ..)
            | StreamRequest::GenerateBetter(generation, ..) => {
                let permit = answers.try_acquire();
                let answer = match self.check(&generation) {
                    Err(failure) => Err(failure),
                    Ok(()) if permit.is_err() => Err(Failure::Overloaded {
                        detail: format!("this node's endpoint has {ANSWERS} requests elsewhere"),
                        retry_after_s: 5,
                    }),
                    Ok(()) => tokio::select! {
                        answer = self.backend.generate_for_node(self.node, *generation) => answer,
                        // It asked elsewhere, or its client left.
                        () = send.given_up() => return Ok(()),
                    },
                };
                pomona_dispatch::serve(answer, (send, receive)).await
            }
            StreamRequest::Spill(ask) => {
                let permit = answers.try_acquire();
                let answer = match self.check_text(&ask) {
                    Err(failure) => Err(failure),
                    Ok(()) if permit.is_err() => Err(Failure::NoCloud {
                        detail: format!("this node's endpoint has {ANSWERS} requests elsewhere"),
                        asked: false,
                    }),
                    Ok(()) => tokio::select! {
                        answer = self.backend.spill_for_node(&ask) => answer,
                        // Its client left.
                        () = send.given_up() => return Ok(()),
                    },
                };
                pomona_dispatch::serve(answer, (send, receive)).await
            }
            StreamRequest::FetchText(model) => {
                let Some(record) = self.backend.model(model.as_str()) else {
                    return Err(LinkError::Closed(format!("no model `{model}` in the catalogue")));
                };
                let _permit = self.texts.acquire().await;
                match self.backend.fetch_text(&record).await {
                    Ok(bundle) => pomona_dispatch::send_last(send, &bundle).await,
                    // The reset of the stream tells the node.
                    Err(failure) => Err(LinkError::Closed(failure.to_string())),
                }
            }
        }
    }

    /// As [`check`](Self::check) for a model that takes text: what travels beside the text is what it says.
    fn check_adopted(&self, generation: &Generation) -> Result<(), Failure> {
        let agrees = |text: &TextAsk| {
            text.digests.is_adopted()
                && (&text.model, &text.digests) == (&generation.model, &generation.digests)
                && (text.class, text.max_tokens) == (generation.class, generation.max_tokens)
                && generation.prompt.is_empty()
                && generation.resume.is_empty()
        };
        match generation.text.as_deref().filter(|text| agrees(text)) {
            Some(text) => self.check_text(text),
            None => {
                let why = "this is no request for a model that takes text";
                Err(Failure::invalid("", InvalidCode::InvalidValue, why))
            }
        }
    }

    /// As [`check`](Self::check) for one that stayed text. Whether it may go out, the log says.
    fn check_text(&self, ask: &TextAsk) -> Result<(), Failure> {
        let model = self.backend.model(ask.model.as_str());
        let Some(record) = model.filter(|record| record.digests == ask.digests) else {
            return Err(Failure::unknown_model(ask.model.as_str()));
        };
        let parts = match &ask.prompt {
            TextPrompt::Chat(messages) => messages.len(),
            TextPrompt::Text(_) => 1,
        };
        let is_stop = |stop: &String| (1..=limits::STOP_STRING_BYTES).contains(&stop.len());
        let sampling = Sampling {
            temperature: ask.temperature,
            top_p: ask.top_p,
            presence_penalty: ask.presence_penalty,
            frequency_penalty: ask.frequency_penalty,
            ..Sampling::default()
        };
        // Of a model that takes text, nobody here can count the prompt.
        let prompt = if record.digests.is_adopted() {
            0
        } else {
            u64::from(ask.prompt_tokens)
        };
        let length = prompt + u64::from(ask.max_tokens);
        let is_sound = (1..=limits::MESSAGES).contains(&parts)
            && ask.stops.len() <= limits::STOP_STRINGS
            && ask.stops.iter().all(is_stop)
            && sampling.validate().is_ok()
            && length <= u64::from(record.context);
        if is_sound {
            Ok(())
        } else {
            let why = "this is no request that an endpoint lets through";
            Err(Failure::invalid("", InvalidCode::InvalidValue, why))
        }
    }

    /// What the API checks of a client's request, as far as it has not become token ids.
    fn check(&self, generation: &Generation) -> Result<(), Failure> {
        let model = self.backend.model(generation.model.as_str());
        let Some(record) = model.filter(|record| record.digests == generation.digests) else {
            return Err(Failure::unknown_model(generation.model.as_str()));
        };
        if generation.text.is_some() || record.digests.is_adopted() {
            return self.check_adopted(generation);
        }
        let invalid = |code, why: String| Err(Failure::invalid("", code, why));
        if let Err(error) = generation.sampling.validate() {
            return invalid(InvalidCode::InvalidValue, error.to_string());
        }
        let resumed = generation.resume.len() as u64;
        let length = generation.prompt.len() as u64 + u64::from(generation.max_tokens);
        if length > u64::from(record.context) || resumed > u64::from(generation.max_tokens) {
            let why = format!("{length} tokens exceed the context of {}", record.context);
            return invalid(InvalidCode::ContextLengthExceeded, why);
        }
        Ok(())
    }
}
