//! What the way through a coordinator costs: HTTP, QUIC, node, echo engine and back, one token an
//! answer. The coordinator is pinned to one core. Single requests find node, engine and client where
//! the system puts them; under a flood these keep off the coordinator's core, where there are more.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Running, processor_seconds, quantile, resident_mb, wait_for, work_folder};
use crate::commands::output;
use crate::model;

/// Requests on each side, one after the other.
const PAIRS: usize = 4000;
/// Connections that send as fast as answers come.
const CONNECTIONS: usize = 32;
const SECONDS: u64 = 10;

const NODE: u16 = 17720;
const COORDINATOR: u16 = 17721;
const QUIC: u16 = 17722;

pub(super) fn gateway(programs: &Path) -> anyhow::Result<(Value, Value)> {
    let work = work_folder("gateway")?;
    let pomona = programs.join("pomona");
    let (at, node) = (work.join("coordinator"), work.join("node"));
    let name = model::ensure(&node, &pomona)?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (all, others) = match cores {
        1 => ("0".to_owned(), "0".to_owned()),
        _ => (format!("0-{}", cores - 1), format!("1-{}", cores - 1)),
    };

    let coordinator = Running::start(
        pinned("0", &pomona, &at).arg("coordinator"),
        &work.join("coordinator.log"),
    )?;
    wait_for(&format!("http://127.0.0.1:{COORDINATOR}/healthz"))?;
    let mut create = pinned(&all, &pomona, &at);
    let made = output(
        "token",
        create.args(["--json", "token", "create", "--role", "rack"]),
    )?;
    let made: Value = serde_json::from_str(&made)?;
    let token = made["token"].as_str().context("no token")?;
    let mut join = pinned(&all, &pomona, &node);
    output(
        "join",
        join.args(["join", token, "--coordinator", &format!("127.0.0.1:{QUIC}")]),
    )?;
    let mut serve = pinned(&all, &pomona, &node);
    let serving = Running::start(
        serve.arg("node").env("POMONA_ENGINE", "echo"),
        &work.join("node.log"),
    )?;
    wait_for(&format!("http://127.0.0.1:{COORDINATOR}/v1/ready"))?;

    let pairs = pairs(name)?;
    let added: Vec<f64> = pairs.iter().map(|(direct, through)| through - direct).collect();
    let direct: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
    for pid in children(serving.0.id())?
        .into_iter()
        .chain([serving.0.id(), std::process::id()])
    {
        let pid = pid.to_string();
        output(
            "taskset",
            Command::new("taskset").args(["-a", "-p", "-c", &others, &pid]),
        )?;
    }
    let straight = flood(NODE, name)?;
    let before = processor_seconds(coordinator.0.id())?;
    let through = flood(COORDINATOR, name)?;
    let used = processor_seconds(coordinator.0.id())? - before;
    let own = std::process::id().to_string();
    output(
        "taskset",
        Command::new("taskset").args(["-a", "-p", "-c", &all, &own]),
    )?;
    let requests = through * SECONDS as f64;
    let figures = json!({
        "cores": cores,
        "direct_p50_ms": quantile(&direct, 0.5),
        "added_p50_ms": quantile(&added, 0.5),
        "added_p95_ms": quantile(&added, 0.95),
        "straight_to_node_req_s": straight,
        "through_coordinator_req_s": through,
        "coordinator_core_share": used / SECONDS as f64,
        "coordinator_us_per_request": used * 1e6 / requests,
        "coordinator_alone_would_do_req_s": requests / used,
        "coordinator_rss_mb": resident_mb(coordinator.0.id())?,
    });
    Ok((figures, json!({ "pairs_ms": pairs })))
}

/// Processes that a process started: the engine of a node.
fn children(pid: u32) -> anyhow::Result<Vec<u32>> {
    let text = output(
        "ps",
        Command::new("ps").args(["-o", "pid=", "--ppid", &pid.to_string()]),
    )?;
    Ok(text
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect())
}

fn pinned(cores: &str, pomona: &Path, state: &Path) -> Command {
    let mut command = Command::new("taskset");
    command
        .args(["-c", cores])
        .arg(pomona)
        .env("POMONA_STATE", state)
        .env("POMONA_NODE_HTTP", format!("127.0.0.1:{NODE}"))
        .env("POMONA_COORDINATOR_HTTP", format!("127.0.0.1:{COORDINATOR}"))
        .env("POMONA_QUIC", format!("127.0.0.1:{QUIC}"))
        .env("POMONA_MDNS", "false")
        .env("POMONA_LOG", "warn");
    command
}

/// Milliseconds of requests straight to the node and through the coordinator. The order alternates,
/// so that neither side always follows the other.
fn pairs(model: &str) -> anyhow::Result<Vec<(f64, f64)>> {
    let mut node = Client::connect(NODE, model)?;
    let mut coordinator = Client::connect(COORDINATOR, model)?;
    for _ in 0..200 {
        node.ask()?;
        coordinator.ask()?;
    }
    let mut pairs = Vec::with_capacity(PAIRS);
    for i in 0..PAIRS {
        pairs.push(if i % 2 == 0 {
            let direct = node.ask()?;
            (direct, coordinator.ask()?)
        } else {
            let through = coordinator.ask()?;
            (node.ask()?, through)
        });
    }
    Ok(pairs)
}

/// Requests a second over all connections.
fn flood(port: u16, model: &str) -> anyhow::Result<f64> {
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> anyhow::Result<f64> {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    let mut client = Client::connect(port, model)?;
                    while !stop.load(Ordering::Relaxed) {
                        client.ask()?;
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(1));
        let (before, began) = (answers.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(Duration::from_secs(SECONDS));
        let done = answers.load(Ordering::Relaxed) - before;
        let rate = done as f64 / began.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(rate)
    })
}

/// A connection that stays open. Less than an HTTP library does, because it shares its cores with
/// what is measured.
struct Client {
    reader: BufReader<TcpStream>,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Client {
    fn connect(port: u16, model: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let body = json!({ "model": model, "prompt": "a", "max_tokens": 1, "temperature": 0 }).to_string();
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(Self {
            reader: BufReader::new(stream),
            request: request.into_bytes(),
            answer: Vec::new(),
        })
    }

    /// Milliseconds of one request.
    fn ask(&mut self) -> anyhow::Result<f64> {
        let began = Instant::now();
        self.reader.get_mut().write_all(&self.request)?;
        let (mut line, mut length, mut status) = (String::new(), 0, String::new());
        loop {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                bail!("the server closed the connection");
            }
            if status.is_empty() {
                status.clone_from(&line);
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        self.answer.resize(length, 0);
        self.reader.read_exact(&mut self.answer)?;
        if !status.contains(" 200 ") {
            bail!("{status}: {}", String::from_utf8_lossy(&self.answer));
        }
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }
}
