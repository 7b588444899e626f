//! A laptop gets hot under batch work while a person uses it: the batch answers go on at a machine in the
//! rack, token for token, and the person notices nothing. Real engines, each on a core of its own; the
//! laptop's watts are scripted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pomona_tests::{MODEL, Machine, Stops, Streamed, eventually, greedy, stream_from};
use serde_json::{Value, json};

use crate::former::{SOON, holders, pin_pair, status};
use crate::{Outcome, Scale, keep, quantile};

const STREAMS: usize = 6;
/// Of which so many run on the laptop; the others wait there.
const SLOTS: u64 = 4;
/// Long enough to run until the last rung.
const TOKENS: u64 = 500;
/// A person asks this often.
const EVERY: Duration = Duration::from_millis(400);
/// How long a person asks while nothing else runs, and before the laptop gets hot.
const UNLOADED: Duration = Duration::from_secs(20);
const LOADED: Duration = Duration::from_secs(12);
/// Watts pass the limit after nine seconds and stay for a minute; what runs stands for as long before it is moved.
const RELIEVED: Duration = Duration::from_secs(240);

pub(crate) fn run(scale: Scale) -> Outcome {
    if scale == Scale::Short {
        return Outcome::Skipped("minutes of real engines: `cargo xtask test offload`; e2e has it with echo");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("readings.json");
    let power = |watts: u32| std::fs::write(&script, json!({ "power_watts": watts }).to_string());
    power(12).expect("a script");
    let (mut coordinator, mut laptop, mut rack) = (Machine::empty(), Machine::empty(), Machine::empty());
    laptop.set("MLX_BATCH_MAX_BATCH_SIZE", SLOTS.to_string());
    pin_pair(&mut coordinator, (&mut laptop, &mut rack), &script);
    // The same answers without a disturbance, and a person without company.
    let undisturbed = batch_at(&rack, || ());
    let unloaded = ask_for(&laptop, UNLOADED);
    // As long as the rack is there, batch work goes there by itself.
    rack.stop();
    eventually("the rack is gone", SOON, || holders(&coordinator, MODEL) == 1);

    let done = AtomicBool::new(false);
    let (streams, (asked, samples)) = std::thread::scope(|scope| {
        let _stops = Stops(&done);
        let person = scope.spawn(|| ask_until(&laptop, 8, &done));
        let watcher = scope.spawn(|| watch(&coordinator, "laptop", &done));
        let streams = batch_at(&laptop, || {
            std::thread::sleep(LOADED);
            rack.start_node("mlx");
            eventually("the rack is back", SOON, || holders(&coordinator, MODEL) == 2);
            rack.pin_engine(1);
            let at = |role| {
                let node = of_role(&coordinator, role);
                (rung(&node), batch(&node, "running"), batch(&node, "waiting"))
            };
            let is_at =
                |role, wanted: &str, running, waiting| at(role) == (wanted.to_owned(), running, waiting);
            let rest = STREAMS as u64 - SLOTS;
            eventually("some wait at the laptop", SOON, || {
                is_at("laptop", "normal", SLOTS, rest)
            });
            power(70).expect("a script");
            eventually("what waited has gone first", RELIEVED, || {
                is_at("laptop", "move_queued", SLOTS, 0) && is_at("rack", "normal", rest, 0)
            });
            eventually("the laptop has handed over", RELIEVED, || {
                is_at("laptop", "move_running", 0, 0)
            });
            done.store(true, Ordering::Relaxed);
        });
        let asked = person.join().expect("a person");
        (streams, (asked, watcher.join().expect("a watcher")))
    });
    figures(&undisturbed, &unloaded, &streams, &asked, &samples, &coordinator)
}

/// When a person asked, and how many seconds passed until the first content.
pub(crate) type Asked = Vec<(Instant, f64)>;

fn ask_for(laptop: &Machine, time: Duration) -> Asked {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let person = scope.spawn(|| ask_until(laptop, 8, &done));
        std::thread::sleep(time);
        done.store(true, Ordering::Relaxed);
        person.join().expect("a person")
    })
}

/// A person asks for answers of so many tokens until it is done.
pub(crate) fn ask_until(laptop: &Machine, tokens: u32, done: &AtomicBool) -> Asked {
    let mut asked = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        let mut body = greedy(&format!("Complete line {}", asked.len()), tokens);
        body["stream"] = true.into();
        let answer = stream_from(laptop.node, &body);
        let first = answer.first.expect("content").as_secs_f64();
        asked.push((began, first));
        std::thread::sleep(EVERY.saturating_sub(began.elapsed()));
    }
    asked
}

/// The batch answers at a machine's own endpoint; `meanwhile` runs when they are on their way.
fn batch_at(machine: &Machine, meanwhile: impl FnOnce()) -> Vec<Streamed> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..STREAMS)
            .map(|i| {
                let mut body = greedy(&format!("Chapter {i} of the night's work"), TOKENS as u32);
                body["stream"] = true.into();
                body["ignore_eos"] = true.into();
                body["service_tier"] = "flex".into();
                body["stream_options"] = json!({ "include_usage": true });
                if i % 2 == 1 {
                    body["temperature"] = 1.into();
                    body["seed"] = i.into();
                }
                scope.spawn(move || stream_from(machine.node, &body))
            })
            .collect();
        meanwhile();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .collect()
    })
}

pub(crate) fn of_role(coordinator: &Machine, role: &str) -> Value {
    let status = status(coordinator);
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    nodes
        .into_iter()
        .find(|node| node["role"] == role)
        .unwrap_or_default()
}

pub(crate) fn rung(node: &Value) -> String {
    let rung = &node["relieved"]["relief"]["rung"];
    rung.as_str().unwrap_or("normal").to_owned()
}

pub(crate) fn batch(node: &Value, field: &str) -> u64 {
    node["report"]["engine"]["classes"]["batch"][field]
        .as_u64()
        .unwrap_or(0)
}

/// Four times a second: when, a machine's rung, and how many batch tokens it has made.
pub(crate) fn watch(coordinator: &Machine, role: &str, done: &AtomicBool) -> Vec<(Instant, String, u64)> {
    let mut samples = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let node = of_role(coordinator, role);
        if node["report"].is_object() {
            samples.push((Instant::now(), rung(&node), batch(&node, "tokens")));
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    samples
}

/// When a rung began, how many seconds it was until the next one, and the batch tokens that were made meanwhile: what it
/// does.
pub(crate) fn by_rung(samples: &[(Instant, String, u64)]) -> Vec<(String, Instant, f64, u64)> {
    let mut rungs: Vec<(String, Instant, Instant, u64, u64)> = Vec::new();
    for (at, rung, tokens) in samples {
        match rungs.last_mut() {
            Some(last) if last.0 == *rung => (last.2, last.4) = (*at, *tokens),
            _ => rungs.push((rung.clone(), *at, *at, *tokens, *tokens)),
        }
    }
    let seconds = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64();
    rungs
        .into_iter()
        .map(|(rung, from, to, before, after)| (rung, from, seconds(from, to), after.saturating_sub(before)))
        .collect()
}

fn figures(
    undisturbed: &[Streamed],
    unloaded: &Asked,
    streams: &[Streamed],
    asked: &Asked,
    samples: &[(Instant, String, u64)],
    coordinator: &Machine,
) -> Outcome {
    let (mut lost, mut different) = (0, 0);
    for (i, (got, expected)) in streams.iter().zip(undisturbed).enumerate() {
        assert!(got.done && got.error.is_none(), "stream {i}: {:?}", got.error);
        lost += TOKENS.abs_diff(got.usage["completion_tokens"].as_u64().unwrap_or(0));
        different += usize::from(got.text != expected.text);
    }
    let is_relieved = |at: &Instant| {
        let known = samples.iter().take_while(|(sampled, ..)| sampled <= at);
        known.last().is_some_and(|(_, rung, _)| rung != "normal")
    };
    let times = |wanted: bool| -> Vec<f64> {
        let asked = asked.iter().filter(|(at, _)| is_relieved(at) == wanted);
        asked.map(|(_, first)| *first).collect()
    };
    let alone: Vec<f64> = unloaded.iter().map(|(_, first)| *first).collect();
    let (loaded, relieved) = (times(false), times(true));
    let rungs: Vec<Value> = by_rung(samples)
        .into_iter()
        .map(|(rung, _, seconds, tokens)| {
            json!({ "rung": rung, "seconds": seconds, "batch_tok_s": tokens as f64 / seconds.max(1e-9) })
        })
        .collect();
    let ratio = quantile(&relieved, 0.95) / quantile(&alone, 0.95);
    let moved = coordinator.log().matches("answer goes on elsewhere").count();
    let figures = json!({
        "streams": STREAMS, "tokens_each": TOKENS, "moved": moved,
        "tokens_lost_or_repeated": lost, "different": different,
        "ttft_unloaded_p50_s": quantile(&alone, 0.5), "ttft_unloaded_p95_s": quantile(&alone, 0.95),
        "ttft_beside_batch_p95_s": quantile(&loaded, 0.95),
        "ttft_while_relieved_p50_s": quantile(&relieved, 0.5),
        "ttft_while_relieved_p95_s": quantile(&relieved, 0.95),
        "p95_while_relieved_over_unloaded": ratio, "rungs": rungs,
    });
    let raw =
        json!({ "figures": figures, "unloaded_s": alone, "beside_batch_s": loaded, "relieved_s": relieved });
    keep("offload", &raw);
    // What stands still makes nothing, and what the laptop cannot keep cool is not made there.
    for (rung, _, seconds, tokens) in by_rung(samples) {
        assert!(
            rung == "normal" || tokens as f64 <= seconds.max(5.0),
            "{rung}: {figures}"
        );
    }
    assert_eq!(moved, STREAMS, "{figures}");
    assert_eq!(lost, 0, "{figures}");
    // Ties: the rack prefills what the laptop had decoded.
    assert!(different <= 1, "{figures}");
    assert!(ratio <= 1.5, "{figures}");
    Outcome::Figures(figures)
}
