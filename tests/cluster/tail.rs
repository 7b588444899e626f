//! The tail gate on a real engine: long prompts make a person's short ones late now and then, beside batch work. Batch is
//! made small first; as that does not help the gate trips, batch stands still and nobody gets more of it, and when
//! answers are punctual again it goes on. Nothing of it is lost.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pomona_tests::{Machine, Stops, eventually, greedy, stream_from};
use serde_json::{Value, json};

use crate::former::{SOON, lead, start_engine};
use crate::gates::{has_tripped, refuses_more};
use crate::offload::{ask_until, batch, by_rung, of_role, rung, watch};
use crate::{Outcome, Scale, keep, quantile};

const STREAMS: usize = 4;
const TOKENS: u32 = 150;
/// Words of the prompts that are in the way, and how long nobody asks between two.
const WORDS: usize = 900;
const BETWEEN: Duration = Duration::from_millis(1_500);
/// Answers of five minutes count: what is usual comes first.
const USUAL: Duration = Duration::from_secs(15);
/// Late answers make batch small after a minute, in two steps; the gate looks for half a minute from then on, of answers
/// that it has to hear first.
const TIGHTENS: Duration = Duration::from_secs(180);
const TRIPS: Duration = Duration::from_secs(120);
/// Two minutes, of answers that it has to hear first.
const CLEARS: Duration = Duration::from_secs(240);

pub(crate) fn run(scale: Scale) -> Outcome {
    if scale == Scale::Short {
        return Outcome::Skipped("the gate's own times take five minutes: the full run has them");
    }
    let (mut coordinator, mut node) = (Machine::empty(), Machine::empty());
    lead(&mut coordinator);
    node.set("OPENBLAS_NUM_THREADS", "1");
    start_engine(&coordinator, &mut node, "rack", 1);
    node.pin_engine(1);

    let (done, late) = (AtomicBool::new(false), AtomicBool::new(false));
    let made = AtomicUsize::new(0);
    let here = || of_role(&coordinator, "rack");
    let (asked, samples, times) = std::thread::scope(|scope| {
        let _stops = Stops(&done);
        for i in 0..STREAMS {
            let (done, made, node) = (&done, &made, &node);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    stream_batch(node, i);
                    made.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| be_in_the_way(&node, &done, &late));
        let person = scope.spawn(|| ask_until(&node, 4, &done));
        let watcher = scope.spawn(|| watch(&coordinator, "rack", &done));
        eventually("batch runs", SOON, || batch(&here(), "running") > 0);
        std::thread::sleep(USUAL);
        assert_eq!(rung(&here()), "normal");
        let began = Instant::now();
        late.store(true, Ordering::Relaxed);
        eventually("batch is made small", TIGHTENS, || rung(&here()) == "tighten");
        let tightened_s = began.elapsed().as_secs_f64();
        assert!(!has_tripped(&coordinator, "tail"), "batch is made small first");
        eventually("the gate trips", TRIPS, || has_tripped(&coordinator, "tail"));
        let tripped_s = began.elapsed().as_secs_f64();
        refuses_more(&coordinator, "tail");
        let gates = coordinator.json(&["gates", "show"]);
        let evidence = gates["transitions"][0]["samples"].as_array().map_or(0, Vec::len);
        assert!(evidence > 3, "{gates}");
        eventually("batch stands still", SOON, || {
            let before = batch(&here(), "tokens");
            std::thread::sleep(Duration::from_secs(3));
            batch(&here(), "tokens") == before
        });
        late.store(false, Ordering::Relaxed);
        let began = Instant::now();
        eventually("it clears", CLEARS, || !has_tripped(&coordinator, "tail"));
        let cleared_s = began.elapsed().as_secs_f64();
        let before = made.load(Ordering::Relaxed);
        eventually("batch goes on", Duration::from_secs(120), || {
            made.load(Ordering::Relaxed) >= before + STREAMS
        });
        done.store(true, Ordering::Relaxed);
        let asked = person.join().expect("a person");
        (
            asked,
            watcher.join().expect("a watcher"),
            (tightened_s, tripped_s, cleared_s),
        )
    });
    let (tightened_s, tripped_s, cleared_s) = times;
    let rungs: Vec<Value> = by_rung(&samples)
        .into_iter()
        .map(|(rung, from, seconds, tokens)| {
            let until = from + Duration::from_secs_f64(seconds);
            let of_rung = asked.iter().filter(|(at, _)| (from..until).contains(at));
            let firsts: Vec<f64> = of_rung.map(|(_, first)| *first).collect();
            json!({
                "rung": rung, "seconds": seconds, "batch_tok_s": tokens as f64 / seconds.max(1e-9),
                "ttft_p50_s": quantile(&firsts, 0.5), "ttft_p95_s": quantile(&firsts, 0.95),
            })
        })
        .collect();
    let figures = json!({
        "streams": STREAMS, "batch_answers": made.load(Ordering::Relaxed),
        "tightened_s": tightened_s, "tripped_s": tripped_s, "cleared_s": cleared_s, "rungs": rungs,
    });
    keep(
        "tail",
        &json!({ "figures": figures, "asked": asked.iter().map(|(_, first)| first).collect::<Vec<_>>() }),
    );
    let of_rung = |wanted: &str| rungs_made(&samples, wanted);
    assert!(of_rung("tighten") * 2.0 < of_rung("normal"), "{figures}");
    assert!(of_rung("pause") < 0.1, "{figures}");
    // The gate's own times, and what it takes to be told.
    assert!(
        tightened_s > 55.0 && tripped_s > tightened_s + 25.0 && cleared_s > 115.0,
        "{figures}"
    );
    Outcome::Figures(figures)
}

/// Batch tokens a second while it was at a rung.
fn rungs_made(samples: &[(Instant, String, u64)], wanted: &str) -> f64 {
    let of_rung = by_rung(samples).into_iter().filter(|(rung, ..)| rung == wanted);
    let (seconds, tokens) = of_rung.fold((0.0, 0), |(seconds, all), (_, _, more, tokens)| {
        (seconds + more, all + tokens)
    });
    tokens as f64 / f64::max(seconds, 1e-9)
}

fn stream_batch(node: &Machine, i: usize) {
    let mut body = greedy(&format!("Chapter {i} of the night's work"), TOKENS);
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    body["service_tier"] = "flex".into();
    body["stream_options"] = json!({ "include_usage": true });
    let answer = stream_from(node.node, &body);
    assert!(answer.done && answer.error.is_none(), "{:?}", answer.error);
    assert_eq!(answer.usage["completion_tokens"], TOKENS);
}

/// Long prompts that differ, one after the other, while somebody wants them.
fn be_in_the_way(node: &Machine, done: &AtomicBool, wanted: &AtomicBool) {
    let mut count = 0;
    while !done.load(Ordering::Relaxed) {
        if wanted.load(Ordering::Relaxed) {
            count += 1;
            let words = (0..WORDS).map(|i| format!("{} ", (i * 7 + count * 31) % 97));
            let mut body = greedy(&format!("Case {count}: {}", words.collect::<String>()), 1);
            body["stream"] = true.into();
            stream_from(node.node, &body);
        }
        std::thread::sleep(BETWEEN);
    }
}
