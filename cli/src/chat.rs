//! A conversation in the terminal.
#![expect(clippy::print_stdout, reason = "this is the program's output")]

use std::io::{BufRead, BufReader, IsTerminal, Write};

use anyhow::{Context, bail};
use pomona_cluster_config::Config;
use serde_json::{Value, json};

use crate::arguments::Chat;

pub(crate) fn chat(config: &Config, chat: &Chat) -> anyhow::Result<()> {
    let base = format!("http://{}/v1", config.coordinator_http);
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into();
    let model = match &chat.model {
        Some(model) => model.clone(),
        None => first_model(&agent, &base)?,
    };
    let mut messages = Vec::new();
    if let Some(system) = &chat.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    if !chat.message.is_empty() {
        messages.push(json!({ "role": "user", "content": chat.message.join(" ") }));
        answer(&agent, &base, &model, chat, &messages)?;
        return Ok(());
    }
    let prompt = std::io::stdin().is_terminal();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        messages.push(json!({ "role": "user", "content": line }));
        let text = answer(&agent, &base, &model, chat, &messages)?;
        messages.push(json!({ "role": "assistant", "content": text }));
        if prompt {
            println!();
        }
    }
    Ok(())
}

fn first_model(agent: &ureq::Agent, base: &str) -> anyhow::Result<String> {
    let mut response = agent
        .get(format!("{base}/models"))
        .call()
        .with_context(|| format!("nothing answers at {base}; start it with `pomona up`"))?;
    let body: Value = response.body_mut().read_json()?;
    let first = body["data"][0]["id"].as_str();
    Ok(first
        .context("no model is stored; `pomona model pull` brings one")?
        .to_owned())
}

/// Streams an answer and gives its text.
fn answer(
    agent: &ureq::Agent,
    base: &str,
    model: &str,
    chat: &Chat,
    messages: &[Value],
) -> anyhow::Result<String> {
    let body = json!({
        "model": model,
        "messages": messages,
        "stream": true,
        "temperature": chat.temperature,
        "max_tokens": chat.max_tokens,
    });
    let mut response = agent
        .post(format!("{base}/chat/completions"))
        .send_json(&body)
        .with_context(|| format!("nothing answers at {base}; start it with `pomona up`"))?;
    if !response.status().is_success() {
        let body: Value = response.body_mut().read_json()?;
        bail!(
            "{}",
            body["error"]["message"]
                .as_str()
                .unwrap_or("the request was refused")
        );
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
