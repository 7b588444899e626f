//! Configuration: a TOML file and the environment into validated types, with every problem
//! named at once and before anything is opened.
//!
//! Precedence, the strongest first: environment, file, default. Where a knob has two names in
//! the environment, the one with the `MLX_BATCH_` or `POMONA_` prefix wins.
#![forbid(unsafe_code)]

mod cloud;
mod environment;
mod file;
pub mod litellm;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use pomona_common::{CloudName, EngineKnobs, SloSet};

pub use cloud::{CloudConfig, CloudKey, CloudModel, server_address};
pub use environment::{Environment, VARIABLES};

/// Everything a process needs to know, valid as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Folder of all state.
    pub state: PathBuf,
    /// Coordinator's HTTP.
    pub coordinator_http: SocketAddr,
    /// Coordinator's QUIC.
    pub quic: SocketAddr,
    /// Node's HTTP.
    pub node_http: SocketAddr,
    /// Where a node gives weights to other nodes.
    pub node_quic: SocketAddr,
    /// Coordinators that a node dials, in order.
    pub coordinators: Vec<SocketAddr>,
    /// Whether coordinators are looked for, and announced, over mDNS.
    pub mdns: bool,
    /// Whether an operator approves every node that joins, besides its token.
    pub approve_manually: bool,
    /// Whether endpoints ask for API keys on loopback as well: other machines reach it through a proxy.
    pub require_keys: bool,
    /// Whether the swap gate counts all swap in use, whenever it came.
    pub literal_swap: bool,
    /// Services outside the cluster that answer when no machine does, once they are approved.
    pub clouds: BTreeMap<CloudName, CloudConfig>,
    /// What people call this node.
    pub node_name: String,
    /// Which engine the node runs.
    pub engine: EngineKind,
    /// The engine's program; `None` looks beside this program and in `PATH`.
    pub engine_program: Option<PathBuf>,
    /// Initial knobs of the engine.
    pub knobs: EngineKnobs,
    /// Initial bounds of the engine's queues; budgets are the cluster's affair.
    pub slos: SloSet,
    /// Power and memory are sampled this often.
    pub probe_interval: Duration,
    /// Whether power sensors are read at all: polling them was blamed for GPU aborts.
    pub probe_power: bool,
    /// Readings from this file instead of the machine; they say that they are scripted.
    pub probe_script: Option<PathBuf>,
    /// Moves the clocks of the process as if the machine had slept, for tests.
    pub clock_script: Option<PathBuf>,
}

/// Which engine a node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineKind {
    /// `pomona-engine`.
    Mlx,
    /// The deterministic stand-in, for benchmarks and fault tests.
    Echo {
        /// Milliseconds per step.
        step_ms: u64,
    },
    /// None: the node only reports.
    None,
}

/// All problems of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} in the configuration:\n{}", count(.problems), list(.problems))]
pub struct ConfigError {
    /// One line each, with the name of the setting as the user wrote it.
    pub problems: Vec<String>,
}

fn count(problems: &[String]) -> String {
    match problems.len() {
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    }
}

fn list(problems: &[String]) -> String {
    let lines: Vec<String> = problems.iter().map(|problem| format!("  - {problem}")).collect();
    lines.join("\n")
}

impl Config {
    /// Builds the configuration from the text of a file (empty when there is none) and the
    /// environment. Opens nothing.
    ///
    /// # Errors
    /// Every problem found.
    pub fn load(file: &str, environment: &dyn Environment) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let file = file::parse(file, &mut problems);
        let config = environment::apply(file, environment, &mut problems);
        problems.extend(
            config
                .knobs
                .problems()
                .into_iter()
                .chain(config.slos.problems())
                .map(|problem| format!("engine: {problem}")),
        );
        if config.coordinator_http == config.node_http && config.node_http.port() != 0 {
            problems.push(format!(
                "http.coordinator and http.node are both {}",
                config.node_http
            ));
        }
        if config.probe_interval < Duration::from_millis(100)
            || config.probe_interval > Duration::from_secs(60)
        {
            problems.push("probe.interval_ms: must be 100 to 60000".to_owned());
        }
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError { problems })
        }
    }

    /// Where the coordinator of this machine is dialled.
    pub fn own_coordinator(&self) -> SocketAddr {
        from_here(self.quic)
    }

    /// Whether an endpoint that listens on this address lets nobody in without an API key.
    pub fn needs_keys(&self, listens: SocketAddr) -> bool {
        self.require_keys || !listens.ip().is_loopback()
    }

    /// Where the cluster's `/v1` of this machine is asked.
    pub fn own_http(&self) -> SocketAddr {
        from_here(self.coordinator_http)
    }
}

/// Where something that listens on an address is reached from this machine.
fn from_here(listens: SocketAddr) -> SocketAddr {
    let loopback: IpAddr = match listens {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let ip = listens.ip();
    SocketAddr::new(if ip.is_unspecified() { loopback } else { ip }, listens.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment: BTreeMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Config::load(file, &environment)
    }

    #[test]
    fn defaults_are_valid() -> Result<(), ConfigError> {
        let config = load("", &[])?;
        assert_eq!(config.node_http.port(), 7710);
        assert_eq!(config.knobs.batch.window_ms, 50);
        Ok(())
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_long_name_over_the_short() -> Result<(), ConfigError> {
        let file = "[engine.batch]\nwindow_ms = 70\nmax_slots = 3\n";
        assert_eq!(load(file, &[])?.knobs.batch.window_ms, 70);
        assert_eq!(
            load(file, &[("BATCH_WINDOW_MS", "80")])?.knobs.batch.window_ms,
            80
        );
        let both = [
            ("BATCH_WINDOW_MS", "80"),
            ("MLX_BATCH_BATCH_WINDOW_MS", "90"),
            ("MAX_BATCH_SIZE", "12"),
        ];
        let config = load(file, &both)?;
        assert_eq!(
            (config.knobs.batch.window_ms, config.knobs.batch.max_slots),
            (90, 12)
        );
        Ok(())
    }

    #[test]
    fn a_part_of_a_class_keeps_the_rest_of_its_defaults() -> Result<(), ConfigError> {
        let config = load("[engine.interactive]\nmax_slots = 5\n", &[])?;
        assert_eq!(config.knobs.interactive.window_ms, 0);
        assert_eq!(config.knobs.interactive.prefill_chunk, 256);
        Ok(())
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let file = "colour = 1\n[http]\nnode = \"here\"\ncoordinator = \"nowhere\"\n[engine.batch]\nwindow_ms = -1\n";
        let result = load(
            file,
            &[("MLX_BATCH_MAX_BATCH_SIZE", "many"), ("POMONA_ENGINE", "abacus")],
        );
        let problems = result.map_or_else(|error| error.problems, |_| Vec::new());
        for word in [
            "colour",
            "http.node",
            "http.coordinator",
            "window_ms",
            "MLX_BATCH_MAX_BATCH_SIZE",
            "POMONA_ENGINE",
        ] {
            assert!(
                problems.iter().any(|problem| problem.contains(word)),
                "{word}: {problems:#?}"
            );
        }
    }
}
