//! Figures of simulated clusters, for `cargo xtask sim`.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for the terminal"
)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Parser, Subcommand};
use serde::Serialize;
use serde_json::json;

use pomona_sim::day::report::Report;
use pomona_sim::day::traces::Hour;
use pomona_sim::day::{self, Case};
use pomona_sim::faults::{self, Faults};
use pomona_sim::policy::{Policy, Tuning};
use pomona_sim::side_by_side::{AT_ONCE, side_by_side};

/// Figures of simulated clusters.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A working day of eight people, under Pomona and under other ways to route.
    Day(DayArguments),
    /// Clusters in which machines die, sleep and stall, cables break, engines crash, memory runs short and sensors
    /// lie: what breaks.
    Faults(FaultsArguments),
}

#[derive(clap::Args)]
struct FaultsArguments {
    /// Hours of simulated time, over as many seeds as that takes.
    #[arg(long, default_value_t = 200.0)]
    hours: f64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Only this one, with its whole history.
    #[arg(long)]
    seed: Option<u64>,
    /// Stops at the first seed that breaks a promise.
    #[arg(long)]
    until_broken: bool,
    /// Folder for what came of each seed, one JSON object a line.
    #[arg(long, env = "POMONA_SIM_RAW")]
    raw: Option<PathBuf>,
}

#[derive(clap::Args)]
struct DayArguments {
    /// Folder with the recorded traces; requests are drawn without it.
    #[arg(long)]
    traces: Option<PathBuf>,
    /// How many days are drawn.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Aggregate loads, percent of capacity.
    #[arg(long, value_delimiter = ',', default_values_t = [70, 110])]
    loads: Vec<u32>,
    /// Hours of the day that are run.
    #[arg(long, default_value_t = 8)]
    hours: u64,
    /// Only these, by their numbers: 0 is Pomona.
    #[arg(long, value_delimiter = ',')]
    policies: Option<Vec<usize>>,
    /// Slots for aggregate work on each machine of the others, to see what suits them best.
    #[arg(long)]
    slots: Option<u32>,
    /// How much slower than the best a machine may be under latency-based routing, likewise.
    #[arg(long)]
    buffer: Option<f64>,
    /// Folder for the figures of each run, one JSON object a line.
    #[arg(long, env = "POMONA_SIM_RAW")]
    raw: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Day(arguments) => run_days(&arguments),
        Command::Faults(arguments) => run_faults(&arguments),
    }
}

/// Ends with an error when a promise was broken.
fn run_faults(arguments: &FaultsArguments) -> anyhow::Result<()> {
    if let Some(seed) = arguments.seed {
        let (world, broken) = faults::run_one(seed);
        print!("{}", world.trace);
        println!("{}", json!({ "seed": seed, "broken": broken }));
        anyhow::ensure!(broken.is_empty(), "seed {seed} broke a promise");
        return Ok(());
    }
    let seeds = faults::seeds_of(arguments.hours, arguments.first);
    let seeds = arguments.first..arguments.first + seeds;
    let count = seeds.end - seeds.start;
    let began = Instant::now();
    let runs = faults::run(seeds, arguments.until_broken, |done| {
        eprint!("\r{done} of {count} seeds")
    })?;
    eprintln!();
    keep(arguments.raw.as_deref(), "faults.jsonl", &runs)?;
    let found = Faults::of_all(&runs);
    let speed = found.hours * 3600.0 / began.elapsed().as_secs_f64() / AT_ONCE as f64;
    for (seed, text) in &found.broken {
        println!("seed {seed}: {text}");
    }
    println!(
        "{}",
        json!({
            "faults": found, "times_real_time_a_core": speed.round(), "promised": faults::PROMISED,
            "ran": found.seeds, "skipped": [],
        })
    );
    match found.broken.first() {
        Some((seed, _)) => {
            anyhow::bail!("a promise was broken: `cargo xtask sim faults --seed {seed}` shows how")
        }
        None => Ok(()),
    }
}

fn run_days(arguments: &DayArguments) -> anyhow::Result<()> {
    let hour = match &arguments.traces {
        Some(folder) => Hour::read(folder)?,
        None => Hour::fitted(0),
    };
    println!("requests: {}", hour.source);
    let mut cases = Vec::new();
    for seed in arguments.first..arguments.first + arguments.seeds {
        for load in &arguments.loads {
            for (i, policy) in Policy::ALL.into_iter().enumerate() {
                if arguments.policies.as_ref().is_none_or(|only| only.contains(&i)) {
                    let mut tuning = Tuning::BEST;
                    tuning.slots = arguments.slots.unwrap_or(tuning.slots);
                    tuning.buffer = arguments.buffer.unwrap_or(tuning.buffer);
                    cases.push(Case {
                        policy,
                        tuning,
                        load: *load,
                        seed,
                        hours: arguments.hours,
                    });
                }
            }
        }
    }
    let all = cases.len();
    let mut runs = side_by_side(
        cases.into_iter(),
        |case| day::run(case, &hour),
        |done, _| {
            eprint!("\r{done} of {all} days");
            true
        },
    )?;
    eprintln!();
    runs.sort_by_key(|run| (run.load, run.policy, run.seed));
    keep(arguments.raw.as_deref(), "day.jsonl", &runs)?;
    let report = Report::of(&runs);
    print!("{}", report.table());
    let skipped = match arguments.traces {
        Some(_) => Vec::new(),
        None => vec!["recorded traces: give their folder with --traces"],
    };
    let figures =
        json!({ "day": report.json(), "requests": hour.source, "ran": runs.len(), "skipped": skipped });
    println!("{figures}");
    Ok(())
}

/// Writes the figures of single runs down, one a line.
fn keep(folder: Option<&Path>, name: &str, runs: &[impl Serialize]) -> anyhow::Result<()> {
    if let Some(folder) = folder {
        let lines: Result<Vec<String>, _> = runs.iter().map(serde_json::to_string).collect();
        std::fs::write(folder.join(name), lines?.join("\n") + "\n")?;
    }
    Ok(())
}
