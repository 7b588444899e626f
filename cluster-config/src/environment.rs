//! The environment over the file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::Config;
use crate::file::engine_kind;

/// Where variables come from: the process, or a map in tests.
pub trait Environment {
    /// The value of a variable.
    fn get(&self, name: &str) -> Option<String>;
}

impl Environment for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        BTreeMap::get(self, name).cloned()
    }
}

/// Every variable that is read, with its meaning, for `--help` and the README.
pub const VARIABLES: &[(&str, &str)] = &[
    ("POMONA_STATE", "folder of all state (default ~/.pomona)"),
    (
        "POMONA_COORDINATOR_HTTP",
        "coordinator's HTTP address (127.0.0.1:7711)",
    ),
    ("POMONA_NODE_HTTP", "node's HTTP address (127.0.0.1:7710)"),
    ("POMONA_QUIC", "coordinator's QUIC address (127.0.0.1:7712)"),
    (
        "POMONA_NODE_QUIC",
        "where the node gives weights to others (127.0.0.1, any port)",
    ),
    (
        "POMONA_MDNS",
        "true or false: find coordinators on the LAN, and be found (true)",
    ),
    (
        "POMONA_REQUIRE_KEYS",
        "true or false: ask for API keys on loopback as well (false)",
    ),
    ("POMONA_NODE_NAME", "what people call this node (host name)"),
    ("POMONA_ENGINE", "mlx, echo, echo:MILLISECONDS or none (mlx)"),
    ("POMONA_ENGINE_PROGRAM", "path of pomona-engine"),
    ("POMONA_KV_BUDGET_MIB", "memory for KV caches (2048)"),
    ("POMONA_TOTAL_SLOTS", "sequences that run at once (24)"),
    ("POMONA_PROBE_INTERVAL_MS", "how often sensors are read (1000)"),
    ("POMONA_PROBE_POWER", "true or false: read power sensors (true)"),
    (
        "POMONA_PROBE_SCRIPT",
        "JSON file of readings, reported as scripted",
    ),
    (
        "POMONA_CLOCK_SCRIPT",
        "file with the seconds that the machine is to have slept, for tests",
    ),
    (
        "MLX_BATCH_BATCH_WINDOW_MS",
        "batch window, also BATCH_WINDOW_MS (50)",
    ),
    (
        "MLX_BATCH_MAX_BATCH_SIZE",
        "batch slots, also MAX_BATCH_SIZE (10)",
    ),
    (
        "MLX_BATCH_BATCH_PREFILL_STEP_SIZE",
        "prompt tokens of the batch class in one step (128)",
    ),
];

/// Applies the variables; problems are added to `problems`.
pub(crate) fn apply(mut config: Config, environment: &dyn Environment, problems: &mut Vec<String>) -> Config {
    let mut reader = Reader {
        environment,
        problems,
    };
    if let Some(state) = reader.text("POMONA_STATE") {
        config.state = PathBuf::from(state);
    }
    if config.state.as_os_str().is_empty() {
        match environment.get("HOME") {
            Some(home) => config.state = PathBuf::from(home).join(".pomona"),
            None => config.state = PathBuf::from(".pomona"),
        }
    }
    let address = "an address and port like 127.0.0.1:7710";
    reader.parse("POMONA_COORDINATOR_HTTP", address, &mut config.coordinator_http);
    reader.parse("POMONA_NODE_HTTP", address, &mut config.node_http);
    reader.parse("POMONA_QUIC", address, &mut config.quic);
    reader.parse("POMONA_NODE_QUIC", address, &mut config.node_quic);
    reader.parse("POMONA_MDNS", "true or false", &mut config.mdns);
    reader.parse("POMONA_REQUIRE_KEYS", "true or false", &mut config.require_keys);
    reader.parse("POMONA_NODE_NAME", "a name", &mut config.node_name);
    if let Some(kind) = reader.text("POMONA_ENGINE") {
        match engine_kind(&kind) {
            Ok(kind) => config.engine = kind,
            Err(problem) => reader.problems.push(format!("POMONA_ENGINE: {problem}")),
        }
    }
    if let Some(program) = reader.text("POMONA_ENGINE_PROGRAM") {
        config.engine_program = Some(program.into());
    }
    let number = "a whole number, not negative";
    let mut mib = config.knobs.kv_budget_bytes / (1024 * 1024);
    reader.parse("POMONA_KV_BUDGET_MIB", number, &mut mib);
    config.knobs.kv_budget_bytes = mib.saturating_mul(1024 * 1024);
    reader.parse("POMONA_TOTAL_SLOTS", number, &mut config.knobs.total_slots);
    let batch = &mut config.knobs.batch;
    reader.parse("BATCH_WINDOW_MS", number, &mut batch.window_ms);
    reader.parse("MLX_BATCH_BATCH_WINDOW_MS", number, &mut batch.window_ms);
    reader.parse("MAX_BATCH_SIZE", number, &mut batch.max_slots);
    reader.parse("MLX_BATCH_MAX_BATCH_SIZE", number, &mut batch.max_slots);
    reader.parse(
        "MLX_BATCH_BATCH_PREFILL_STEP_SIZE",
        number,
        &mut batch.prefill_chunk,
    );
    let mut interval_ms = config.probe_interval.as_millis() as u64;
    reader.parse("POMONA_PROBE_INTERVAL_MS", number, &mut interval_ms);
    config.probe_interval = std::time::Duration::from_millis(interval_ms);
    reader.parse("POMONA_PROBE_POWER", "true or false", &mut config.probe_power);
    if let Some(script) = reader.text("POMONA_PROBE_SCRIPT") {
        config.probe_script = Some(script.into());
    }
    if let Some(script) = reader.text("POMONA_CLOCK_SCRIPT") {
        config.clock_script = Some(script.into());
    }
    config
}

struct Reader<'a> {
    environment: &'a dyn Environment,
    problems: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn text(&self, name: &str) -> Option<String> {
        self.environment.get(name).filter(|value| !value.is_empty())
    }

    fn parse<T: std::str::FromStr>(&mut self, name: &str, expected: &str, target: &mut T) {
        let Some(value) = self.text(name) else {
            return;
        };
        match value.trim().parse() {
            Ok(value) => *target = value,
            Err(_) => self.problems.push(format!("{name}: `{value}` is not {expected}")),
        }
    }
}
