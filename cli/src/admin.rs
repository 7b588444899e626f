//! Asks the coordinator of this machine over its admin socket.

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
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

fn send(config: &Config, method: &Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
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
                .body(Full::new(body))?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
            if !status.is_success() {
                bail!(
                    "the coordinator refuses: {}",
                    body["error"].as_str().unwrap_or("no reason given")
                );
            }
            Ok(body)
        };
        tokio::select! {
            answer = exchange => answer,
            _ = connection => bail!("the coordinator closed the connection"),
        }
    })
}
