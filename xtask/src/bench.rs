//! `cargo xtask bench`: ratios against a named peer in one run. Raw samples are kept beside the
//! table in `docs/benchmarks/`; the last line is one JSON object with every figure.

mod gateway;
mod idle;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::commands::{cargo, output, run};
use crate::load::{self, Server, closed_loop, mixed};
use crate::{figures, mlx, model, python, up};

/// Which benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Throughput and TTFT of the engine against mlx_lm.server on the same weights.
    Engine,
    /// What the way through coordinator and QUIC adds, with the echo engine, and how many requests a
    /// second one core of a coordinator carries.
    Gateway,
    /// Memory of full histories of 256 nodes, and the share of a core that 5,000 reports a second take.
    Telemetry,
    /// Milliseconds of a plan for 64 nodes × 50 models and 1,000 × 200.
    Planner,
    /// A gigabyte from node to node on loopback, against one plain stream of the same QUIC.
    Weights,
    /// Memory and processor time of an idle cluster, and of a node of its own, without engine.
    Idle,
}

/// Threads of OpenBLAS on both sides.
const THREADS: &str = "2";
/// Seconds of mixed load a round.
const MIXED_SECONDS: u64 = 20;
/// Tokens a request of the closed loop asks for.
const LOOP_TOKENS: u32 = 64;

/// Runs a benchmark.
pub(crate) fn bench(kind: Kind, rounds: usize) -> anyhow::Result<()> {
    let programs = crate::target().join("release");
    match kind {
        Kind::Engine => {
            mlx::ensure()?;
            up::build()?;
        }
        // Without MLX.
        Kind::Gateway | Kind::Idle => run("build", cargo().args(["build", "--release", "--locked"]))?,
        Kind::Telemetry | Kind::Planner | Kind::Weights => {}
    }
    let (name, result, raw) = match kind {
        Kind::Engine => {
            let (figures, raw) = engine(&programs, rounds.max(1))?;
            ("engine", figures, raw)
        }
        Kind::Gateway => {
            let (figures, raw) = gateway::gateway(&programs)?;
            ("gateway", figures, raw)
        }
        Kind::Telemetry => of_crate("pomona-decide", "telemetry")?,
        Kind::Planner => of_crate("pomona-decide", "planner")?,
        Kind::Weights => of_crate("pomona-node", "weights")?,
        Kind::Idle => {
            let figures = idle::idle(&programs)?;
            ("idle", figures.clone(), figures)
        }
    };
    figures::keep(name, &result, &raw)?;
    println!("{}", json!({ "figures": result, "ran": [name], "skipped": [] }));
    Ok(())
}

/// A benchmark of one crate; its last line is a JSON object.
fn of_crate(package: &str, name: &'static str) -> anyhow::Result<(&'static str, Value, Value)> {
    let mut bench = cargo();
    bench.args(["bench", "--locked", "-p", package, "--bench", name]);
    let text = output(name, &mut bench)?;
    let last = text.lines().last().context("the benchmark said nothing")?;
    let result: Value = serde_json::from_str(last)?;
    Ok((name, result["figures"].clone(), result["raw"].clone()))
}

/// A process that is ended with the benchmark.
struct Running(Child);

impl Running {
    fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = std::fs::File::create(log)?;
        let child = command
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn();
        Ok(Self(child.context("cannot start a server")?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGTERM first, so that it ends its own children.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cluster of one on ports of its own.
fn cluster(programs: &Path, state: &Path, engine: &str, ports: [u16; 3]) -> Command {
    let mut command = pomona(programs, state, engine, ports);
    command.arg("up");
    command
}

/// The program on a machine of its own: a state folder and ports of node, coordinator and QUIC.
fn pomona(programs: &Path, state: &Path, engine: &str, ports: [u16; 3]) -> Command {
    let mut command = Command::new(programs.join("pomona"));
    command
        .env("POMONA_STATE", state)
        .env("POMONA_ENGINE", engine)
        .env("POMONA_NODE_HTTP", format!("127.0.0.1:{}", ports[0]))
        .env("POMONA_COORDINATOR_HTTP", format!("127.0.0.1:{}", ports[1]))
        .env("POMONA_QUIC", format!("127.0.0.1:{}", ports[2]))
        .env("POMONA_MDNS", "false")
        .env("POMONA_LOG", "warn")
        .env("OPENBLAS_NUM_THREADS", THREADS);
    command
}

fn wait_for(url: &str) -> anyhow::Result<()> {
    let agent = load::agent();
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        if agent
            .get(url)
            .call()
            .is_ok_and(|response| response.status().is_success())
        {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!("{url} does not become ready")
}

fn work_folder(name: &str) -> anyhow::Result<PathBuf> {
    let folder = crate::target().join("bench").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn engine(programs: &Path, rounds: usize) -> anyhow::Result<(Value, Value)> {
    let oracle = python::oracle()?;
    let work = work_folder("engine")?;
    let pomona = programs.join("pomona");
    let state = work.join("state");
    let name = model::ensure(&state, &pomona)?;
    let weights = work.join("f32");
    let script = crate::root().join("xtask/mlx/dequantize.py");
    let stored = state.join("node/models").join(name);
    run(
        "dequantize",
        python::python(&oracle).arg(script).args([&stored, &weights]),
    )?;
    std::fs::remove_dir_all(&stored)?;
    for name in ["f32", "f32-editor"] {
        let mut pull = Command::new(&pomona);
        run(
            "model pull",
            pull.env("POMONA_STATE", &state)
                .args(["model", "pull", "--name", name])
                .arg(&weights),
        )?;
    }
    let mut peer = python::python(&oracle);
    peer.args([
        "-m",
        "mlx_lm",
        "server",
        "--port",
        "18080",
        "--decode-concurrency",
        "16",
        "--prompt-concurrency",
        "8",
    ])
    .arg("--model")
    .arg(&weights)
    .env("OPENBLAS_NUM_THREADS", THREADS);
    let _peer = Running::start(&mut peer, &work.join("mlx_lm.log"))?;
    let _ours = Running::start(
        &mut cluster(programs, &state, "mlx", [17710, 17711, 17712]),
        &work.join("pomona.log"),
    )?;
    wait_for("http://127.0.0.1:18080/v1/models")?;
    wait_for("http://127.0.0.1:17711/v1/ready")?;
    let ours = Server {
        base: "http://127.0.0.1:17711/v1".into(),
        model: "f32".into(),
        interactive: json!({ "service_tier": "priority" }),
        batch: json!({ "service_tier": "flex" }),
        interactive_model: None,
    };
    let two_models = Server {
        interactive_model: Some("f32-editor".into()),
        ..ours.clone()
    };
    let theirs = Server {
        base: "http://127.0.0.1:18080/v1".into(),
        model: weights.display().to_string(),
        interactive: json!({}),
        batch: json!({}),
        interactive_model: None,
    };
    let mut raw = Vec::new();
    for round in 0..rounds {
        for (side, server) in [
            ("pomona", &ours),
            ("mlx_lm", &theirs),
            ("pomona, two models", &two_models),
        ] {
            let mut entry = json!({ "round": round, "side": side });
            if side != "pomona, two models" {
                for streams in [1, 4, 8] {
                    let figures = closed_loop(server, streams, streams * 2, LOOP_TOKENS)?;
                    entry[format!("loop_{streams}")] =
                        json!({ "tok_s": figures.tok_s, "ttft_s": figures.ttft_s });
                }
            }
            let figures = mixed(server, 6, MIXED_SECONDS)?;
            entry["mixed"] = json!({
                "unloaded_s": figures.unloaded_s, "loaded_s": figures.loaded_s, "aggregate_tok_s": figures.aggregate_tok_s,
            });
            println!("{entry}");
            raw.push(entry);
        }
    }
    Ok((engine_figures(&raw), json!({ "threads": THREADS, "rounds": raw })))
}

fn engine_figures(raw: &[Value]) -> Value {
    let of = |side: &str, pointer: &str| -> Vec<f64> {
        let rounds = raw.iter().filter(|entry| entry["side"] == side);
        rounds
            .filter_map(|entry| entry.pointer(pointer)?.as_f64())
            .collect()
    };
    let samples = |side: &str, field: &str| -> Vec<f64> {
        let rounds = raw.iter().filter(|entry| entry["side"] == side);
        let lists = rounds.filter_map(|entry| entry["mixed"][field].as_array());
        lists.flatten().filter_map(Value::as_f64).collect()
    };
    let mut figures = json!({});
    for streams in [1, 4, 8] {
        let pointer = format!("/loop_{streams}/tok_s");
        let (ours, theirs) = (of("pomona", &pointer), of("mlx_lm", &pointer));
        figures[format!("throughput_{streams}")] = json!({
            "pomona_tok_s": quantile(&ours, 0.5), "mlx_lm_tok_s": quantile(&theirs, 0.5),
            "pomona_spread": [quantile(&ours, 0.0), quantile(&ours, 1.0)],
            "mlx_lm_spread": [quantile(&theirs, 0.0), quantile(&theirs, 1.0)],
            "ratio": quantile(&ours, 0.5) / quantile(&theirs, 0.5),
        });
    }
    for side in ["pomona", "pomona, two models", "mlx_lm"] {
        let unloaded = quantile(&samples(side, "unloaded_s"), 0.5);
        let loaded = samples(side, "loaded_s");
        let aggregate = quantile(&of(side, "/mixed/aggregate_tok_s"), 0.5);
        figures[format!("mixed: {side}")] = json!({
            "unloaded_p50_s": unloaded, "loaded_p50_s": quantile(&loaded, 0.5), "loaded_p95_s": quantile(&loaded, 0.95),
            "p95_over_unloaded": quantile(&loaded, 0.95) / unloaded, "aggregate_tok_s": aggregate,
            "aggregate_ratio": aggregate / quantile(&of("mlx_lm", "/mixed/aggregate_tok_s"), 0.5),
        });
    }
    figures
}

/// The value at a share of the sorted samples; not a number when there are none.
fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted
        .get(((sorted.len() as f64 * q) as usize).min(last))
        .copied()
        .unwrap_or(f64::NAN)
}

/// Resident memory of a process.
fn resident_mb(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = |line: &str| {
        line.strip_prefix("VmRSS:")?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    let kib: f64 = status.lines().find_map(value).context("no VmRSS")?;
    Ok(kib / 1024.0)
}

/// User and system time of a process; it has no children here.
fn processor_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit(')').next().context("bad stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: f64 = fields.get(11).context("bad stat")?.parse::<f64>()?
        + fields.get(12).context("bad stat")?.parse::<f64>()?;
    // USER_HZ is 100 on every Linux that matters.
    Ok(ticks / 100.0)
}
