//! A machine of its own: a state folder, ports, clocks, and what is started there.

use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::Value;

use crate::lan::command_on;
use crate::memory_group::MemoryGroup;
use crate::{MODEL, admin_at, children, end, free_ports, gguf, programs};

/// Another machine: a state folder and ports of its own, and what is started there.
pub struct Machine {
    /// Its state.
    pub state: tempfile::TempDir,
    running: Option<Child>,
    /// Node's HTTP port.
    pub node: u16,
    /// Coordinator's HTTP port.
    pub coordinator: u16,
    quic: u16,
    /// The network namespace that it is in; this machine's own loopback otherwise.
    namespace: Option<String>,
    /// Whether its clocks follow a script.
    scripted: bool,
    /// Of whatever is started there.
    variables: Vec<(&'static str, String)>,
}

impl Machine {
    /// A machine without anything on it.
    pub fn empty() -> Self {
        Self::new(free_ports(), None)
    }

    /// A machine on a LAN of the test's own, with the ports that everybody has.
    pub fn on_lan(namespace: &str) -> Self {
        Self::new([7710, 7711, 7712], Some(namespace.to_owned()))
    }

    fn new([node, coordinator, quic]: [u16; 3], namespace: Option<String>) -> Self {
        let state = tempfile::tempdir().expect("a temporary folder");
        Self {
            state,
            running: None,
            node,
            coordinator,
            quic,
            namespace,
            scripted: false,
            variables: Vec::new(),
        }
    }

    /// Sets an environment variable for what is started from now on.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.push((name, value.into()));
    }

    /// The process id of what runs there.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("something runs").id()
    }

    /// The process id of the engine of what runs there.
    pub fn engine_pid(&self) -> u32 {
        *children(self.pid()).first().expect("an engine")
    }

    /// Lets the engine that runs there use this core only.
    pub fn pin_engine(&self, core: usize) {
        for pid in children(self.pid()) {
            let pinned = Command::new("taskset")
                .args(["-acp", &core.to_string(), &pid.to_string()])
                .output();
            assert!(pinned.expect("taskset").status.success());
        }
    }

    /// A machine whose clocks [`Machine::sleep`] moves.
    pub fn with_clocks() -> Self {
        let mut machine = Self::empty();
        machine.scripted = true;
        machine
    }

    /// Another machine with a copy of its disk.
    pub fn copy(&self) -> Self {
        let copy = Self::empty();
        let from = self.state.path().join("node");
        // What runs there may replace a file meanwhile, and `cp` misses the one that it has listed.
        let copied = (0..5).any(|_| {
            let status = Command::new("cp")
                .arg("-r")
                .arg(&from)
                .arg(copy.state.path())
                .status();
            status.expect("cp").success()
        });
        assert!(copied, "no copy");
        copy
    }

    /// Gives it a configuration file, read by what is started from now on.
    pub fn configure(&self, file: &str) {
        std::fs::write(self.configuration(), file).expect("a configuration");
    }

    fn configuration(&self) -> PathBuf {
        self.state.path().join("pomona.toml")
    }

    /// From now on its clocks say that it has slept for so many seconds since the test began.
    pub fn sleep(&self, seconds: u64) {
        assert!(self.scripted, "its clocks follow no script");
        std::fs::write(self.clock(), seconds.to_string()).expect("a clock");
    }

    fn clock(&self) -> PathBuf {
        self.state.path().join("slept")
    }

    /// Sends a signal to what runs there, and to what that has started: the whole machine stands
    /// still with `STOP` and goes on with `CONT`.
    pub fn signal(&self, signal: &str) {
        for pid in children(self.pid()) {
            send(signal, pid);
        }
        self.signal_alone(signal);
    }

    /// Sends a signal to what runs there, and not to what that has started.
    pub fn signal_alone(&self, signal: &str) {
        send(signal, self.pid());
    }

    /// Resident memory of what runs there, in KiB.
    pub fn rss_kib(&self) -> u64 {
        let pid = self.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.expect("its memory")
    }

    /// Whether what ran there has ended by itself, and well.
    pub fn has_ended_well(&mut self) -> bool {
        let running = self.running.as_mut().expect("something runs");
        let ended = running.try_wait().expect("a process");
        ended.is_some_and(|status| status.success())
    }

    /// Brings the default model to its store.
    pub fn pull_model(&self) {
        self.pull_model_as(MODEL);
    }

    /// Brings the default model to its store under another name.
    pub fn pull_model_as(&self, name: &str) {
        let file = gguf();
        let file = file.to_str().expect("a path");
        let (ok, _, errors) = self.pomona(&["model", "pull", "--name", name, file]);
        assert!(ok, "{errors}");
    }

    /// Joins with a token that `at` makes with this command, and gives what was printed.
    pub fn join(&self, at: &Machine, make: &[&str]) -> Value {
        let token = at.json(make)["token"].as_str().expect("a token").to_owned();
        self.json(&["join", &token, "--coordinator", &at.quic()])
    }

    /// Runs the `pomona` command there: whether it succeeded, its output, its errors.
    pub fn pomona(&self, arguments: &[&str]) -> (bool, String, String) {
        let output = self.command(arguments).output().expect("pomona is built");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    /// Runs a `pomona` command that must succeed, and reads the JSON it prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let (ok, out, errors) = self.pomona(&[&["--json"], arguments].concat());
        assert!(ok, "{arguments:?}: {errors}");
        serde_json::from_str(&out).unwrap_or(Value::Null)
    }

    /// Starts its node with this engine (`echo`, `echo:MS`, `mlx`).
    pub fn start_node(&mut self, engine: &str) {
        self.start(self.command(&["node"]), engine);
    }

    /// Starts its node in a control group, with its engine.
    pub fn start_node_in(&mut self, group: &MemoryGroup, engine: &str) {
        self.start(group.confine(&self.command(&["node"])), engine);
    }

    /// Starts its coordinator.
    pub fn start_coordinator(&mut self) {
        self.start(self.command(&["coordinator"]), "none");
    }

    fn start(&mut self, mut command: Command, engine: &str) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.state.path().join("log"))
            .expect("a log");
        let running = command.env("POMONA_ENGINE", engine).stderr(log).spawn();
        self.running = Some(running.expect("pomona is built"));
    }

    /// Ends what runs there without warning.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().expect("kill");
            running.wait().expect("wait");
        }
    }

    /// Ends what runs there.
    pub fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            end(&mut running);
        }
    }

    /// What is on its disk under this name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.path().join("log")).unwrap_or_default()
    }

    /// Where its coordinator is dialled.
    pub fn quic(&self) -> String {
        format!("127.0.0.1:{}", self.quic)
    }

    /// Sends a request to its coordinator's admin socket: status and answer.
    ///
    /// # Errors
    /// Nobody listens there, or the connection broke.
    pub fn admin(&self, method: &str, path: &str, body: &Value) -> std::io::Result<(u16, Value)> {
        admin_at(&self.admin_socket(), method, path, body)
    }

    /// Where its coordinator's admin API is.
    pub fn admin_socket(&self) -> PathBuf {
        self.state.path().join("admin.sock")
    }

    /// Another program, in the machine's network.
    pub fn program(&self, program: &str) -> Command {
        match &self.namespace {
            None => Command::new(program),
            Some(namespace) => command_on(namespace, program),
        }
    }

    /// The `pomona` command there, with the settings of the machine.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.program(&programs().join("pomona").to_string_lossy());
        let listens = if self.namespace.is_some() {
            "0.0.0.0"
        } else {
            "127.0.0.1"
        };
        if self.configuration().exists() {
            command.arg("--config").arg(self.configuration());
        }
        command
            .args(arguments)
            .env("POMONA_STATE", self.state.path())
            .env("POMONA_MDNS", self.namespace.is_some().to_string())
            .env("POMONA_NODE_HTTP", format!("127.0.0.1:{}", self.node))
            .env(
                "POMONA_COORDINATOR_HTTP",
                format!("127.0.0.1:{}", self.coordinator),
            )
            .env("POMONA_QUIC", format!("{listens}:{}", self.quic))
            .env("POMONA_NODE_QUIC", format!("{listens}:0"))
            .env("NO_COLOR", "1")
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        if self.scripted {
            command.env("POMONA_CLOCK_SCRIPT", self.clock());
        }
        command
    }
}

/// Sends a signal to a process that the test has started.
pub fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .status();
    assert!(sent.expect("kill").success());
}

/// Lines that a machine tells when its test fails.
const LAST_LINES: usize = 60;

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.get(lines.len().saturating_sub(LAST_LINES)..);
            println!("{}\n", last.unwrap_or_default().join("\n"));
        }
    }
}
