//! Asks the coordinator of this machine over its admin socket.

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use pomona_cluster_config::Config;
use serde_json::Value;

/// One request, one answer.
pub(crate) fn ask(config: &Config, method: &Method, path: &str) -> anyhow::Result<Value> {
    send(config, method, path, Bytes::new())
}

/// One request with a body, one answer.
pub(crate) fn tell(config: &Config, method: &Method, path: &str, body: &Value) -> anyhow::Result<Value> {
    send(config, method, path, body.to_string().into())
}

/// A part of a path, whatever characters it has.
pub(crate) fn encoded(part: &str) -> String {
    part.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Gives each server-sent event of a path to `each`, until the coordinator ends.
pub(crate) fn follow(config: &Config, path: &str, each: impl FnMut(&Value)) -> anyhow::Result<()> {
    let mut events = Events {
        each,
        rest: Vec::new(),
    };
    exchange(config, &Method::GET, path, Bytes::new(), async |response| {
        if !response.status().is_success() {
            answer(response).await?;
            bail!("the coordinator refuses, with no reason given");
        }
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                events.take(&data)?;
            }
        }
        bail!("the coordinator ended")
    })
}

/// Events that come in pieces.
struct Events<F> {
    each: F,
    rest: Vec<u8>,
}

impl<F: FnMut(&Value)> Events<F> {
    fn take(&mut self, data: &[u8]) -> anyhow::Result<()> {
        self.rest.extend_from_slice(data);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            if let Some(data) = line.strip_prefix(b"data: ") {
                (self.each)(&serde_json::from_slice(data)?);
            }
        }
        Ok(())
    }
}

fn send(config: &Config, method: &Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
    exchange(config, method, path, body, async |response| {
        answer(response).await
    })
}

/// The body of an answer, or why there is none.
async fn answer(response: Response<Incoming>) -> anyhow::Result<Value> {
    let status = response.status();
    let body: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
    if !status.is_success() {
        bail!(
            "the coordinator refuses: {}",
            body["error"].as_str().unwrap_or("no reason given")
        );
    }
    Ok(body)
}

/// Who types this, also where an administrator does it in another's name.
fn user(config: &Config) -> String {
    let names = ["SUDO_USER", "USER", "LOGNAME"].into_iter();
    let mut names = names.filter_map(|name| std::env::var(name).ok());
    let name = names.find(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic()));
    name.unwrap_or_else(|| {
        let owner = std::fs::metadata(&config.state).map(|state| std::os::unix::fs::MetadataExt::uid(&state));
        owner.map_or_else(|_| "unknown".to_owned(), |uid| format!("uid:{uid}"))
    })
}

fn exchange<T>(
    config: &Config,
    method: &Method,
    path: &str,
    body: Bytes,
    read: impl AsyncFnOnce(Response<Incoming>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let socket = config.state.join("admin.sock");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(&socket).await.with_context(|| {
            format!(
                "no coordinator answers at {}; start one with `pomona up`",
                socket.display()
            )
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "localhost")
                .header("x-pomona-user", user(config))
                .body(Full::new(body))?;
            read(sender.send_request(request).await?).await
        };
        tokio::select! {
            answer = exchange => answer,
            _ = connection => bail!("the coordinator closed the connection"),
        }
    })
}
