//! A conversation in the terminal.
#![expect(clippy::print_stdout, reason = "this is the program's output")]

use std::io::{BufRead, BufReader, IsTerminal, Write};

use anyhow::{Context, bail};
use pomona_cluster_config::Config;
use serde_json::{Value, json};

use crate::arguments::Chat;

/// In the environment and not among the settings, which services are installed with.
const KEY: &str = "POMONA_API_KEY";

pub(crate) fn chat(config: &Config, chat: &Chat) -> anyhow::Result<()> {
    let endpoint = Endpoint::new(config);
    let model = match &chat.model {
        Some(model) => model.clone(),
        None => endpoint.first_model()?,
    };
    let mut messages = Vec::new();
    if let Some(system) = &chat.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    if !chat.message.is_empty() {
        messages.push(json!({ "role": "user", "content": chat.message.join(" ") }));
        endpoint.answer(&model, chat, &messages)?;
        return Ok(());
    }
    let prompt = std::io::stdin().is_terminal();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        messages.push(json!({ "role": "user", "content": line }));
        let text = endpoint.answer(&model, chat, &messages)?;
        messages.push(json!({ "role": "assistant", "content": text }));
        if prompt {
            println!();
        }
    }
    Ok(())
}

/// The cluster's `/v1` on this machine, asked with the key of the environment where there is one.
struct Endpoint {
    agent: ureq::Agent,
    base: String,
    authorization: Option<String>,
}

impl Endpoint {
    fn new(config: &Config) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        Self {
            agent,
            base: format!("http://{}/v1", config.own_http()),
            authorization: std::env::var(KEY).ok().map(|key| format!("Bearer {key}")),
        }
    }

    fn first_model(&self) -> anyhow::Result<String> {
        let mut request = self.agent.get(format!("{}/models", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = request.call().with_context(|| self.silence())?;
        let body: Value = response.body_mut().read_json()?;
        refuse(response.status(), &body)?;
        let first = body["data"][0]["id"].as_str();
        Ok(first
            .context("no model is stored; `pomona model pull` brings one")?
            .to_owned())
    }

    /// Streams an answer and gives its text.
    fn answer(&self, model: &str, chat: &Chat, messages: &[Value]) -> anyhow::Result<String> {
        let body = json!({
            "model": model,
            "messages": messages,
            "stream": true,
            "temperature": chat.temperature,
            "max_tokens": chat.max_tokens,
        });
        let mut request = self.agent.post(format!("{}/chat/completions", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = request.send_json(&body).with_context(|| self.silence())?;
        if !response.status().is_success() {
            let body: Value = response.body_mut().read_json()?;
            refuse(response.status(), &body)?;
        }
        let mut text = String::new();
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line?;
            let Some(data) = line.strip_prefix("data: ") else {
                continue;
            };
            if data == "[DONE]" {
                break;
            }
            let event: Value = serde_json::from_str(data)?;
            if let Some(message) = event["error"]["message"].as_str() {
                println!();
                bail!("{message}");
            }
            if let Some(piece) = event["choices"][0]["delta"]["content"].as_str() {
                print!("{piece}");
                std::io::stdout().flush()?;
                text.push_str(piece);
            }
        }
        println!();
        Ok(text)
    }

    fn silence(&self) -> String {
        format!("nothing answers at {}; start it with `pomona up`", self.base)
    }
}

fn refuse(status: ureq::http::StatusCode, body: &Value) -> anyhow::Result<()> {
    if status == ureq::http::StatusCode::UNAUTHORIZED {
        bail!(
            "{} ({KEY} in the environment is sent)",
            body["error"]["message"].as_str().unwrap_or("a key is needed")
        );
    }
    if !status.is_success() {
        let message = body["error"]["message"].as_str();
        bail!("{}", message.unwrap_or("the request was refused"));
    }
    Ok(())
}
