//! `pomona-engine`: the only binary that links MLX. Frames come in on standard input and go out
//! on standard output; the end of the input ends the process.

use std::io::{BufReader, BufWriter, Write};
use std::path::PathBuf;
use std::sync::mpsc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use pomona_common::engine::{EngineCommand, EngineEvent};
use pomona_engine::backend::Backend;
use pomona_engine::kv::KvSlabs;
use pomona_engine::loader;
use pomona_engine::pass::Feed;
use pomona_engine::worker::Worker;
use pomona_store::ModelFolder;

/// Commands that may wait for the engine's thread; the node keeps its own queue.
const COMMANDS: usize = 1024;
/// Events that may wait for the pipe. When it is full the engine waits: the node is stuck.
const EVENTS: usize = 8192;

/// Batch inference engine of Pomona; started by the node, speaks frames on its pipes.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print the back end, precision, threads and build, as JSON.
    Info,
    /// Print the greedy continuation of token ids, and the logits of the last prompt token.
    Greedy {
        /// A model folder.
        #[arg(long)]
        model: PathBuf,
        /// Prompt token ids, separated by commas.
        #[arg(long)]
        tokens: String,
        /// Tokens to generate.
        #[arg(long, default_value_t = 16)]
        count: u32,
        /// Tokens prefilled per step.
        #[arg(long, default_value_t = 64)]
        chunk: usize,
    },
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("POMONA_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    let backend = Backend::detect();
    match Args::parse().command {
        None => {
            serve(backend);
            Ok(())
        }
        Some(Command::Info) => write_line(&serde_json::to_string(&backend.build())?),
        Some(Command::Greedy {
            model,
            tokens,
            count,
            chunk,
        }) => {
            let tokens: Vec<u32> = tokens
                .split(',')
                .map(|token| token.trim().parse().context("token ids are numbers"))
                .collect::<anyhow::Result<_>>()?;
            write_line(&greedy(&backend, &model, tokens, count, chunk)?)
        }
    }
}

fn write_line(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn serve(backend: Backend) {
    let build = backend.build();
    tracing::info!(
        backend = build.backend,
        precision = build.precision,
        threads = build.threads,
        blas = build.blas,
        mlx = build.mlx_version,
        "engine starts"
    );
    let (command_sender, commands) = mpsc::sync_channel::<EngineCommand>(COMMANDS);
    let (event_sender, events) = mpsc::sync_channel::<EngineEvent>(EVENTS);
    // Ends with the node's end of the pipe; dropping the sender ends the worker.
    let reader = std::thread::spawn(move || {
        let mut input = BufReader::new(std::io::stdin());
        loop {
            match pomona_wire::read_from::<EngineCommand>(&mut input) {
                Ok(Some(command)) => {
                    if command_sender.send(command).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "command pipe failed");
                    return;
                }
            }
        }
    });
    // Ends when the worker drops its sender or the node its end of the pipe.
    let writer = std::thread::spawn(move || {
        let mut output = BufWriter::new(std::io::stdout());
        for event in events {
            if pomona_wire::write_to(&mut output, &event).is_err() {
                return;
            }
        }
    });
    Worker::new(backend, event_sender).run(&commands);
    drop(commands);
    let _ = writer.join();
    // The reader may still block on the pipe; it ends with the process.
    drop(reader);
}

/// One sequence, straight through the model: the engine's arithmetic without its scheduler, to
/// compare with a reference implementation.
fn greedy(
    backend: &Backend,
    folder: &std::path::Path,
    mut tokens: Vec<u32>,
    count: u32,
    chunk: usize,
) -> anyhow::Result<String> {
    let folder = ModelFolder::open(folder)?;
    let model = loader::load(&folder, backend)?;
    let mut kv = KvSlabs::new(&folder.config, backend.dtype);
    let capacity = pomona_sched::kv_pool::capacity_for(tokens.len() as u32 + count);
    kv.resize(capacity, 1)?;
    let mut first_logits = Vec::new();
    let mut fed = 0;
    let prompt = tokens.len();
    while tokens.len() < prompt + count as usize {
        let end = tokens.len().min(fed + chunk.max(1));
        let feed = Feed {
            capacity,
            row: 0,
            start: fed as u32,
            tokens: tokens[fed..end].to_vec(),
            wants_logits: end == tokens.len(),
        };
        fed = end;
        let Some(logits) = model.step(vec![feed], &mut kv)? else {
            continue;
        };
        logits.eval()?;
        let row = logits.as_slice::<f32>();
        if first_logits.is_empty() {
            first_logits = row.to_vec();
        }
        tokens.push(pomona_engine::sampler::likeliest(row));
    }
    Ok(serde_json::to_string(&serde_json::json!({
        "tokens": &tokens[prompt..],
        "logits": first_logits,
    }))?)
}
