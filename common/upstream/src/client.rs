//! One server: who may ask it now, and asking.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::http::request::Builder;
use hyper::{Method, Request, Response};

use hyper_util::rt::TokioIo;
use pomona_common::cloud::SPILLED;
use pomona_common::{ServerAddress, TextAsk};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use serde_json::Value;

use crate::answer::{Answer, document};
use crate::body::body;
use crate::breaker::Breaker;
use crate::connect::{connect, connector};
use crate::error::{Phase, UpstreamError};
use crate::rate::Rate;

/// How a server is asked.
pub struct Settings {
    /// Where it is.
    pub address: ServerAddress,
    /// Its API key, if it wants one.
    pub key: Option<String>,
    /// Answers under way at once.
    pub parallel: usize,
    /// Requests, and tokens of prompts and answers, in a minute.
    pub rate: Rate,
    /// From the request to the first text, which some models think about for minutes.
    pub first_text: Duration,
    /// Whether it is left alone for a while when it fails.
    pub left_alone: bool,
    /// Certificates (PEM) of authorities beside those that browsers trust.
    pub authorities: Option<Vec<u8>>,
    /// What it calls the longest answer: `max_tokens`, or `max_completion_tokens`.
    pub max_tokens_field: String,
}

/// A response that has begun, and the connection that brings the rest.
pub(crate) type Sent = (Response<Incoming>, JoinSet<()>);

/// A server. Clones share it.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    address: ServerAddress,
    authorization: Option<HeaderValue>,
    parallel: usize,
    slots: Arc<Semaphore>,
    tls: Option<TlsConnector>,
    max_tokens_field: String,
    first_text: Duration,
    left_alone: bool,
    breaker: Mutex<Breaker>,
    rate: Mutex<Rate>,
    began: Instant,
}

impl Client {
    /// Opens nothing yet.
    ///
    /// # Errors
    /// A key or certificate that cannot be one.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let authorization = match settings.key {
            None => None,
            Some(key) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", key.trim()))
                    .map_err(|_| "its API key has characters that no header may have".to_owned())?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let tls = match settings.address.tls {
            true => Some(connector(settings.authorities.as_deref())?),
            false => None,
        };
        Ok(Self(Arc::new(Shared {
            address: settings.address,
            authorization,
            parallel: settings.parallel,
            slots: Arc::new(Semaphore::new(settings.parallel)),
            tls,
            max_tokens_field: settings.max_tokens_field,
            first_text: settings.first_text,
            left_alone: settings.left_alone,
            breaker: Mutex::default(),
            rate: Mutex::new(settings.rate),
            began: Instant::now(),
        })))
    }

    /// Where it is.
    pub fn address(&self) -> &ServerAddress {
        &self.0.address
    }

    /// Answers under way.
    pub fn under_way(&self) -> usize {
        self.0.parallel - self.0.slots.available_permits()
    }

    /// For how long it is left alone yet, if it failed lately.
    pub fn left_alone(&self) -> Option<Duration> {
        self.0.breaker().left_alone(self.0.began.elapsed())
    }

    /// Asks for a document below its base.
    ///
    /// # Errors
    /// It is not reached, refuses, or sends something else.
    pub async fn get(&self, path: &str) -> Result<Value, UpstreamError> {
        self.get_at(&format!("{}{path}", self.0.address.base)).await
    }

    /// Asks for a document at this path, wherever its base is.
    ///
    /// # Errors
    /// As above.
    pub async fn get_at(&self, path: &str) -> Result<Value, UpstreamError> {
        let request = self
            .0
            .request(Method::GET, path)
            .header(ACCEPT, "application/json");
        let request = request.body(Full::default());
        let (response, _connection) = self.0.send(request).await?;
        document(response).await
    }

    /// A place among those that may ask it now, for a request that takes so many tokens at most.
    ///
    /// # Errors
    /// It is left alone, or has enough to do.
    pub fn turn(&self, tokens: u64) -> Result<Turn, UpstreamError> {
        let busy = || UpstreamError::Busy(self.0.parallel);
        let slot = self.0.slots.clone().try_acquire_owned().map_err(|_| busy())?;
        let now = self.0.began.elapsed();
        let mut breaker = self.0.breaker();
        let asked = breaker.asked_for_it();
        let is_trial = breaker.admit(now).map_err(|left| match asked {
            true => UpstreamError::NoRoom(left),
            false => UpstreamError::LeftAlone(left),
        })?;
        drop(breaker);
        let mut turn = Turn {
            client: self.clone(),
            told: false,
            is_trial,
            number: 0,
            _slot: slot,
        };
        // Refused, it gives back what the breaker let through.
        turn.number = self
            .0
            .rate()
            .admit(now, tokens)
            .map_err(UpstreamError::MinuteFull)?;
        Ok(turn)
    }
}

impl Shared {
    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rate(&self) -> MutexGuard<'_, Rate> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request for this path with what all have.
    fn request(&self, method: Method, path: &str) -> Builder {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.authority())
            .header(USER_AGENT, concat!("pomona/", env!("CARGO_PKG_VERSION")))
            .header(SPILLED, "1");
        match &self.authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization.clone()),
            None => request,
        }
    }

    async fn send(&self, request: hyper::http::Result<Request<Full<Bytes>>>) -> Result<Sent, UpstreamError> {
        let unreachable = |error: &dyn std::fmt::Display| UpstreamError::Unreachable(error.to_string());
        let request = request.map_err(|error| unreachable(&error))?;
        let wire = connect(&self.address, self.tls.as_ref()).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(wire))
            .await
            .map_err(|error| unreachable(&error))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // What goes wrong with it, the response tells.
            let _ = connection.await;
        });
        let limit = Phase::Status.limit(self.first_text);
        match timeout(limit, sender.send_request(request)).await {
            Ok(Ok(response)) => Ok((response, tasks)),
            Ok(Err(error)) if error.is_parse() => Err(UpstreamError::Garbage("what is no HTTP".to_owned())),
            Ok(Err(_)) => Err(UpstreamError::BrokeOff),
            Err(_) => Err(UpstreamError::Silent(Phase::Status)),
        }
    }
}

/// Leave to ask a server once. Dropping it says nothing about the server.
pub struct Turn {
    client: Client,
    /// Whether its server was judged.
    told: bool,
    /// Whether it tries for all whether the server is well again.
    is_trial: bool,
    /// Among the requests of its minute.
    number: u64,
    _slot: OwnedSemaphorePermit,
}

impl Turn {
    /// Asks. The answer has begun when this comes back.
    ///
    /// # Errors
    /// It is not reached, refuses, or sends something else.
    pub async fn ask(mut self, ask: &TextAsk, model: &str) -> Result<Answer, UpstreamError> {
        match self.response(ask, model).await {
            Ok((response, connection)) => match Answer::of(response, self, connection).await {
                Ok(answer) => Ok(answer),
                Err((mut turn, error)) => {
                    turn.failed(&error);
                    Err(error)
                }
            },
            Err(error) => {
                self.failed(&error);
                Err(error)
            }
        }
    }

    async fn response(&self, ask: &TextAsk, model: &str) -> Result<Sent, UpstreamError> {
        let server = &self.client.0;
        let (path, body) = body(ask, model, &server.max_tokens_field);
        let request = server
            .request(Method::POST, &format!("{}{path}", server.address.base))
            .header(ACCEPT, "text/event-stream")
            .header(CONTENT_TYPE, "application/json");
        server
            .send(request.body(Full::new(Bytes::from(body.to_string()))))
            .await
    }

    /// What the answer took, by the server's own count.
    pub(crate) fn took(&self, tokens: u64) {
        self.client.0.rate().took(self.number, tokens);
    }

    /// See [`Settings::first_text`].
    pub(crate) fn first_text(&self) -> Duration {
        self.client.0.first_text
    }

    pub(crate) fn began(&mut self) {
        self.client.0.breaker().began(std::mem::take(&mut self.is_trial));
    }

    pub(crate) fn succeeded(&mut self) {
        self.told = true;
        self.client.0.breaker().succeeded();
    }

    pub(crate) fn failed(&mut self, error: &UpstreamError) {
        if error.is_ill() && self.client.0.left_alone {
            self.told = true;
            let now = self.client.0.began.elapsed();
            let mut breaker = self.client.0.breaker();
            breaker.failed(self.is_trial, now, error.retry_after());
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.told {
            self.client.0.breaker().gave_up(self.is_trial);
        }
    }
}
