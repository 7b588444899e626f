//! `cargo xtask`: everything a newcomer types. Each command does the set-up it needs, and says
//! at its end what ran and what was skipped, and why.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is a tool for the terminal"
)]

mod bench;
mod commands;
mod darwin;
mod figures;
mod fuzz;
mod load;
mod mlx;
mod model;
mod planted;
mod python;
mod report;
mod servers;
mod sim;
mod test;
mod up;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Report;

/// Set-up, run, test, benchmark and checks of Pomona.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set everything up, build, fetch the default model, and start a cluster on this machine.
    Up,
    /// Set everything up and run the tests: `full` adds the long ones, `cluster` runs faults of a
    /// whole cluster alone, in full, `offload` the relief of a hot laptop, `servers` those of other programs
    /// (mlx-lm, vllm-mlx and llama-server as engines; LiteLLM in front and behind).
    Test {
        /// `full`, `cluster`, `offload` or `servers`.
        kind: Option<String>,
    },
    /// Check format, lints, dependencies, documentation and tidiness; writes nothing.
    Verify,
    /// Type-check and lint for macOS on Apple silicon.
    CheckDarwin,
    /// Format the sources.
    Fix,
    /// Measure: engine (against mlx_lm.server), gateway, telemetry, planner,
    /// weights or idle.
    Bench {
        /// Which.
        kind: bench::Kind,
        /// Rounds, each of both sides.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Let libFuzzer look for input that breaks what reads bytes of others.
    Fuzz {
        /// One of the targets, the folders of `fuzz/corpus`; all by default.
        target: Option<String>,
        /// Seconds, for each.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Run simulated clusters: `sim day`, a working day of a team against other ways to route; `sim faults`, hours
    /// of trouble; `sim planted [DIR]`, bugs that are planted as patches have to be noticed. `sim --help` lists the
    /// options of the first two.
    #[command(disable_help_flag = true)]
    Sim {
        /// For the simulator.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Only prepare MLX, so that plain `cargo build` works.
    Setup,
}

fn main() -> ExitCode {
    let mut report = Report::default();
    let result = match Arguments::parse().command {
        Command::Up => up::up(),
        Command::Test { kind } => test::test(kind.as_deref(), &mut report),
        Command::Verify => mlx::ensure().and_then(|()| verify::verify(&mut report)),
        Command::CheckDarwin => mlx::ensure().and_then(|()| darwin::check(&mut report)),
        Command::Fix => commands::run("fmt", commands::cargo().arg("fmt")),
        Command::Bench { kind, rounds } => bench::bench(kind, rounds),
        Command::Fuzz { target, seconds } => fuzz::fuzz(target.as_deref(), seconds),
        Command::Sim { arguments } => sim::sim(&arguments),
        Command::Setup => mlx::ensure(),
    };
    report.print();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's folder.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}

/// Where generated and downloaded things go.
fn target() -> PathBuf {
    root().join("target")
}
