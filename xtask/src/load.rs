//! The load generator: the two workloads of the benchmarks, against any OpenAI-compatible
//! server. Every prompt starts with a nonce, so that nothing but a template's own prefix can be
//! reused; tokens are the server's `usage`, never counted events.

use std::io::{BufRead, BufReader};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// A server and the model to ask there.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) base: String,
    pub(crate) model: String,
    pub(crate) interactive: Value,
    pub(crate) batch: Value,
    /// Model of the interactive requests, when it is another one.
    pub(crate) interactive_model: Option<String>,
}

/// What a closed loop measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loop {
    pub(crate) tok_s: f64,
    pub(crate) ttft_s: Vec<f64>,
}

/// What the mixed load measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mixed {
    pub(crate) unloaded_s: Vec<f64>,
    pub(crate) loaded_s: Vec<f64>,
    pub(crate) aggregate_tok_s: f64,
}

/// One streamed chat: seconds to the first content, and tokens by `usage`.
fn one(
    agent: &ureq::Agent,
    server: &Server,
    model: &str,
    prompt: &str,
    max_tokens: u32,
    extra: &Value,
) -> anyhow::Result<(f64, u64)> {
    let mut body = json!({
        "model": model, "stream": true, "max_tokens": max_tokens, "temperature": 0,
        "stream_options": { "include_usage": true },
        "messages": [{ "role": "user", "content": format!("{:016x} {prompt}", nonce()) }],
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    let began = Instant::now();
    let mut response = agent
        .post(format!("{}/chat/completions", server.base))
        .send_json(&body)?;
    if !response.status().is_success() {
        bail!(
            "status {}: {}",
            response.status(),
            response.body_mut().read_to_string()?
        );
    }
    let (mut first, mut tokens, mut done) = (None, None, false);
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let event: Value = serde_json::from_str(data)?;
        tokens = event["usage"]["completion_tokens"].as_u64().or(tokens);
        let content = event["choices"][0]["delta"]["content"].as_str();
        if first.is_none() && content.is_some_and(|text| !text.is_empty()) {
            first = Some(began.elapsed().as_secs_f64());
        }
    }
    let tokens = tokens
        .filter(|_| done)
        .context("the stream ended without usage or [DONE]")?;
    Ok((first.context("no content")?, tokens))
}

/// `streams` clients that send one request after the other, `requests` in all.
pub(crate) fn closed_loop(
    server: &Server,
    streams: usize,
    requests: usize,
    max_tokens: u32,
) -> anyhow::Result<Loop> {
    let agent = agent();
    let prompt = |i: usize| format!("{i}. {}", "Tell me a long story about a mac mini. ".repeat(6));
    one(&agent, server, &server.model, &prompt(0), max_tokens, &json!({}))?;
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let began = Instant::now();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let client = || -> anyhow::Result<()> {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= requests {
                    return Ok(());
                }
                let sample = one(&agent, server, &server.model, &prompt(i), max_tokens, &json!({}))?;
                results
                    .lock()
                    .map_err(|_| anyhow::anyhow!("a client panicked"))?
                    .push(sample);
            }
        };
        let clients: Vec<_> = (0..streams).map(|_| scope.spawn(client)).collect();
        for client in clients {
            client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(())
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let results = results
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a client panicked"))?;
    Ok(Loop {
        tok_s: results.iter().map(|(_, tokens)| *tokens as f64).sum::<f64>() / seconds,
        ttft_s: results.iter().map(|(first, _)| *first).collect(),
    })
}

/// Short interactive requests, alone and then while `streams` batch clients keep the server busy.
pub(crate) fn mixed(server: &Server, streams: usize, seconds: u64) -> anyhow::Result<Mixed> {
    let agent = agent();
    let editor = server.interactive_model.as_deref().unwrap_or(&server.model);
    let interactive = |prompt: &str| one(&agent, server, editor, prompt, 8, &server.interactive);
    interactive("warm up")?;
    one(&agent, server, &server.model, "warm up", 4, &server.batch)?;
    let mut mixed = Mixed::default();
    for i in 0..6 {
        mixed
            .unloaded_s
            .push(interactive(&format!("def add_{i}(a, b):"))?.0);
    }
    let began = Instant::now();
    let end = began + Duration::from_secs(seconds);
    let total = AtomicUsize::new(0);
    mixed.loaded_s = std::thread::scope(|scope| -> anyhow::Result<Vec<f64>> {
        let batch = |stream: usize| -> anyhow::Result<()> {
            let mut i = 0;
            while Instant::now() < end {
                let log = "Summarise the maintenance log of rack seven. ".repeat(40);
                let prompt = format!("[{stream}.{i}] {log}");
                let (_, tokens) = one(&agent, server, &server.model, &prompt, 48, &server.batch)?;
                total.fetch_add(tokens as usize, Ordering::Relaxed);
                i += 1;
            }
            Ok(())
        };
        let clients: Vec<_> = (0..streams)
            .map(|stream| scope.spawn(move || batch(stream)))
            .collect();
        std::thread::sleep(Duration::from_secs(3));
        let mut samples = Vec::new();
        while Instant::now() + Duration::from_secs(2) < end {
            samples.push(interactive(&format!("def mul_{}(a, b):", samples.len()))?.0);
            std::thread::sleep(Duration::from_secs(1));
        }
        for client in clients {
            client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(samples)
    })?;
    mixed.aggregate_tok_s = total.into_inner() as f64 / began.elapsed().as_secs_f64();
    Ok(mixed)
}

/// An agent that waits long enough for a loaded server.
pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(900)))
        .proxy(None)
        .build()
        .into()
}

fn nonce() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Every RandomState is keyed afresh.
    RandomState::new().hash_one(std::process::id())
}
