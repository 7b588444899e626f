//! `pomona`: wiring and subcommands.
#![forbid(unsafe_code)]

mod admin;
mod agreed;
mod arguments;
mod audit;
mod chat;
mod clouds;
mod coordinators;
mod doctor;
mod engines;
mod fallback;
mod gates;
mod import;
mod keys;
mod knobs;
mod leases;
mod membership;
mod models;
mod node_commands;
mod nodes;
mod plan;
mod progress;
mod run;
mod service;
mod slo;
mod tables;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use pomona_cluster_config::{Config, ConfigError};

use arguments::{Arguments, Command, ModelCommand};
use progress::Progress;

/// What is logged unless POMONA_LOG says otherwise. openraft warns of every call to a coordinator
/// that is not in reach, ten times a second; that it is lost is said once, by us.
const LOG: &str = "info,openraft=error,openraft::replication=off";
/// The configuration is wrong (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let progress = Progress::default();
    let log = progress.clone();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("POMONA_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(LOG)),
        )
        .with_writer(move || log.log())
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if let Command::EchoEngine { step_ms } = arguments.command {
        return finish(pomona_node::echo::run(std::time::Duration::from_millis(step_ms)).map_err(Into::into));
    }
    if let Command::AdoptedEngine = arguments.command {
        return finish(run::adopted_engine());
    }
    let config = match load_config(&arguments) {
        Ok(config) => config,
        Err(error) => {
            tables::complain(&error);
            return ExitCode::from(USAGE);
        }
    };
    if let Some(script) = &config.clock_script {
        tracing::warn!(script = %script.display(), "the clocks of this process follow a script");
        pomona_clocks::follow_script(script.clone());
    }
    finish(dispatch(&config, arguments, &progress))
}

fn dispatch(config: &Config, arguments: Arguments, progress: &Progress) -> anyhow::Result<()> {
    let json = arguments.json;
    let file = arguments.config.as_deref();
    match arguments.command {
        Command::Up => run::run(config, run::Parts::Both, progress),
        Command::Init => run::init(config, json),
        Command::Coordinator { command: None } => run::run(config, run::Parts::Coordinator, progress),
        Command::Coordinator {
            command: Some(command),
        } => coordinators::run(config, file, &command, json),
        Command::Node { command: None } => run::run(config, run::Parts::Node, progress),
        Command::Node {
            command: Some(command),
        } => node_commands::run(config, file, &command),
        Command::Token { command } => membership::token(config, &command, json),
        Command::Audit { last, noted } => audit::run(config, &audit::CHANGES, last, noted.as_deref(), json),
        Command::Engine { command } => engines::run(config, &command, json),
        Command::Import { command } => import::run(&command, json),
        Command::Cloud { command } => clouds::run(config, &command, json),
        Command::Key { command } => keys::run(config, &command, json),
        Command::Join {
            token,
            coordinator,
            name,
        } => membership::join(config, &token, coordinator.as_deref(), name.as_deref(), json),
        Command::Doctor => doctor::run(config, json),
        Command::Status => tables::status(config, json),
        Command::Nodes { watch: false } => nodes::list_once(config, json),
        Command::Nodes { watch: true } => nodes::watch(config, json),
        Command::Models => tables::models(config, json),
        Command::Fallback { command } => fallback::run(config, &command, json),
        Command::Knobs { command } => knobs::run(config, &command, json),
        Command::Slo { command } => slo::run(config, &command, json),
        Command::Gates { command } => gates::run(config, command.as_ref(), json),
        Command::Plan { command } => plan::run(config, &command, json),
        Command::Model { command } => match command {
            ModelCommand::Pull { source, name } => {
                models::pull(config, &source, name.as_deref(), json, progress)
            }
            ModelCommand::List => models::list(config, json),
            ModelCommand::Place(place) => plan::place(config, &place),
            ModelCommand::Remove { name } => models::remove(config, &name),
        },
        Command::Chat(chat) => chat::chat(config, &chat),
        Command::EchoEngine { .. } | Command::AdoptedEngine => Ok(()),
    }
}

fn load_config(arguments: &Arguments) -> Result<Config, anyhow::Error> {
    let text = match &arguments.config {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| anyhow::anyhow!("cannot read {}: {error}", path.display()))?,
        None => String::new(),
    };
    Config::load(&text, &Process).map_err(|error: ConfigError| error.into())
}

/// The environment of this process.
struct Process;

impl pomona_cluster_config::Environment for Process {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tables::complain(&error);
            ExitCode::FAILURE
        }
    }
}
