//! Requests through the endpoints of nodes while coordinators are killed one after another: none
//! fails, neither at the node that has the model nor at one that has nothing. At a coordinator's
//! own port only what ended in the killed process fails.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pomona_tests::{MODEL, Machine, Stops, agent, eventually, greedy, try_stream};
use serde_json::{Value, json};

use crate::former::{SOON, found, is_whole, join};
use crate::{Outcome, Scale, keep, quantile};

/// Clients of each endpoint.
const CLIENTS: usize = 3;
/// Between a kill and the next start, and between that and the next kill.
const PAUSE: Duration = Duration::from_secs(4);

/// What became of one request.
struct Sample {
    endpoint: String,
    began: Instant,
    ended: Instant,
    failure: Option<String>,
    silence: Duration,
}

pub(crate) fn run(scale: Scale) -> Outcome {
    let mut coordinators = [(); 3].map(|()| Machine::empty());
    found(&mut coordinators, |first| {
        vec!["--coordinator".into(), first.quic()]
    });
    let mut with_model = Machine::empty();
    with_model.pull_model();
    let address = coordinators[0].quic();
    join(&coordinators[0], &with_model, "rack", Some(&address));
    with_model.start_node("echo:10");
    let mut without = Machine::empty();
    join(&coordinators[0], &without, "rack", Some(&address));
    without.start_node("none");
    for node in [&with_model, &without] {
        eventually("both endpoints answer", SOON, || {
            try_stream(node.node, &body(0)).is_ok()
        });
    }
    let ports: Vec<(String, u16)> = [("node", &with_model), ("node_without", &without)]
        .into_iter()
        .map(|(name, node)| (name.to_owned(), node.node))
        .chain(
            (1..)
                .zip(&coordinators)
                .map(|(n, c)| (format!("coordinator_{n}"), c.coordinator)),
        )
        .collect();

    let (stop, samples) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let mut down: Vec<(String, Instant, Instant)> = Vec::new();
    std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        for (name, port) in &ports {
            for client in 0..CLIENTS {
                let (stop, samples) = (&stop, &samples);
                scope.spawn(move || ask_on(name, *port, client, stop, samples));
            }
        }
        for round in 0..scale.pick(3, 15) {
            std::thread::sleep(PAUSE / 2);
            let at = round % 3;
            let began = Instant::now();
            coordinators[at].kill();
            std::thread::sleep(PAUSE);
            coordinators[at].start_coordinator();
            eventually("it is back", SOON, || is_whole(&coordinators[at], 3));
            down.push((format!("coordinator_{}", at + 1), began, Instant::now()));
        }
        std::thread::sleep(PAUSE / 2);
    });
    let samples = samples.into_inner().expect("no client panicked");
    keep("entry", &json!({ "samples": raw(&samples) }));
    let figures = judge(&samples, &down);

    for coordinator in &mut coordinators {
        coordinator.kill();
    }
    alone(&with_model, &without);
    Outcome::Figures(figures)
}

fn body(i: usize) -> Value {
    let mut body = greedy(&format!("Question {i}"), 48);
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    body
}

/// One client: a request after the other, until the end.
fn ask_on(name: &str, port: u16, client: usize, stop: &AtomicBool, samples: &Mutex<Vec<Sample>>) {
    let count = AtomicUsize::new(0);
    while !stop.load(Ordering::Relaxed) {
        let i = count.fetch_add(1, Ordering::Relaxed) * CLIENTS + client;
        let began = Instant::now();
        let outcome = try_stream(port, &body(i));
        let (failure, silence) = match outcome {
            Ok(got) if got.done && got.error.is_none() && got.finish.as_deref() == Some("length") => {
                (None, got.longest_silence)
            }
            Ok(got) => (
                Some(format!("{:?} {:?}", got.finish, got.error)),
                got.longest_silence,
            ),
            Err(error) => (Some(error), Duration::ZERO),
        };
        if failure.is_some() {
            std::thread::sleep(Duration::from_millis(100));
        }
        samples.lock().expect("no client panicked").push(Sample {
            endpoint: name.to_owned(),
            began,
            ended: Instant::now(),
            failure,
            silence,
        });
    }
}

fn judge(samples: &[Sample], down: &[(String, Instant, Instant)]) -> Value {
    let of = |prefix: &str| -> Vec<&Sample> {
        samples
            .iter()
            .filter(|sample| sample.endpoint.starts_with(prefix))
            .collect()
    };
    let (nodes, ports) = (of("node"), of("coordinator"));
    let failed: Vec<&String> = nodes
        .iter()
        .filter_map(|sample| sample.failure.as_ref())
        .collect();
    let (mut ended_with_it, mut nobody_listened, mut others) = (0, 0, Vec::new());
    for sample in &ports {
        let Some(failure) = &sample.failure else {
            continue;
        };
        let during = |(name, from, to): &&(String, Instant, Instant)| {
            *name == sample.endpoint && sample.began <= *to && sample.ended >= *from
        };
        match down.iter().find(during) {
            Some((_, killed, _)) if sample.began <= *killed => ended_with_it += 1,
            Some(_) if !failure.starts_with(|c: char| c.is_ascii_digit()) => nobody_listened += 1,
            _ => others.push(format!("{}: {failure}", sample.endpoint)),
        }
    }
    let silence: Vec<f64> = nodes.iter().map(|sample| sample.silence.as_secs_f64()).collect();
    let figures = json!({
        "kills": down.len(), "requests_at_nodes": nodes.len(), "failed_at_nodes": failed.len(),
        "longest_silence_at_nodes_s": quantile(&silence, 1.0),
        "requests_at_coordinators": ports.len(), "ended_with_their_coordinator": ended_with_it,
        "not_connected_while_it_was_down": nobody_listened,
        "failed_otherwise": others.len(),
    });
    assert!(failed.is_empty(), "{figures}\nfirst: {}", failed[0]);
    assert!(others.is_empty(), "{figures}\nfirst: {}", others[0]);
    assert!(nodes.len() > 20 && ended_with_it > 0, "{figures}");
    assert!(quantile(&silence, 1.0) <= 15.0, "{figures}");
    figures
}

fn raw(samples: &[Sample]) -> Vec<Value> {
    let first = samples.iter().map(|sample| sample.began).min();
    let since = |at: Instant| first.map_or(0.0, |first| (at - first).as_secs_f64());
    samples
        .iter()
        .map(|sample| {
            json!({
                "endpoint": sample.endpoint, "began_s": since(sample.began), "ended_s": since(sample.ended),
                "failure": sample.failure, "silence_s": sample.silence.as_secs_f64(),
            })
        })
        .collect()
}

/// Without any coordinator a node serves what it has, and says what it lacks.
fn alone(with_model: &Machine, without: &Machine) {
    for i in 0..5 {
        let got = try_stream(with_model.node, &body(i)).expect("an answer");
        assert!(got.done && got.error.is_none(), "{got:?}");
    }
    eventually("the node has noticed", SOON, || {
        let url = format!("http://127.0.0.1:{}/v1/models", without.node);
        let listed = agent()
            .get(url)
            .call()
            .expect("an answer")
            .body_mut()
            .read_to_string();
        !listed.expect("a body").contains(MODEL)
    });
    let refused = try_stream(without.node, &body(0)).expect_err("no model is there");
    assert!(
        refused.contains("does not exist") && refused.contains("404"),
        "{refused}"
    );
}
