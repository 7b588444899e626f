//! A node behind a NAT and a long, lossy line: it opens no port, answers come whole, a NAT that
//! forgets its mapping goes unnoticed, and a line that is cut in one direction is noticed: after
//! 2.5 s on a short line, after ten on a long one.

use std::time::{Duration, Instant};

use pomona_tests::lan::Lan;
use pomona_tests::udp_relay::UdpRelay;
use pomona_tests::{MODEL, Machine, eventually};
use serde_json::{Value, json};

use crate::former::{SOON, holders, join, lead, status};
use crate::{Outcome, Scale, keep, quantile};

const COORDINATOR: &str = "10.77.0.10:7712";
const NAT: &str = "10.77.0.11:7799";

pub(crate) fn run(scale: Scale) -> Outcome {
    let Some(mut lan) = Lan::new() else {
        return Outcome::Skipped("network namespaces need root");
    };
    let hosts = ["10.77.0.10", "10.77.0.11", "10.77.0.12"].map(|address| lan.host(address));
    let (mut coordinator, mut node) = (Machine::on_lan(&hosts[0]), Machine::on_lan(&hosts[2]));
    // They reach each other by the NAT only.
    lan.isolate(0);
    lan.isolate(2);
    let mut relay = UdpRelay::start(&hosts[1], NAT, COORDINATOR);
    lead(&mut coordinator);
    node.pull_model();
    join(&coordinator, &node, "rented", Some(NAT));
    node.start_node("echo:20");
    eventually("it answers", SOON, || chat(&coordinator, 4).is_ok());

    let cuts = ["up", "down"].map(|direction| cut(&mut relay, &coordinator, direction));
    let before = lost(&coordinator);
    relay.tell("delay 40");
    relay.tell("loss 3");
    eventually("the line is known to be long", SOON, || {
        status(&coordinator)["nodes"][0]["line"] == "wan"
    });
    let answers = scale.pick(5, 40);
    let took: Vec<f64> = (0..answers)
        .map(|_| {
            chat(&coordinator, 64)
                .expect("an answer over a long, lossy line")
                .as_secs_f64()
        })
        .collect();
    relay.tell("loss 0");

    // The NAT forgets its mapping in the middle of an answer: the far end sees another address.
    let rebinds = scale.pick(1, 10);
    for _ in 0..rebinds {
        std::thread::scope(|scope| {
            let answer = scope.spawn(|| chat(&coordinator, 100));
            std::thread::sleep(Duration::from_secs(1));
            relay.tell("rebind");
            answer.join().expect("a client").expect("an answer that goes on");
        });
    }
    assert_eq!(lost(&coordinator), before, "{}", coordinator.log());

    // More patience on a long line, and as much in both directions.
    let long = ["up", "down"].map(|direction| cut(&mut relay, &coordinator, direction));
    let missed = |cut: &Value| cut["missed_s"].as_f64().expect("seconds");
    assert!(cuts.iter().all(|cut| missed(cut) <= 3.5), "{cuts:?}");
    assert!(
        long.iter().all(|cut| (9.0..=12.0).contains(&missed(cut))),
        "{long:?}"
    );
    let figures = json!({
        "answers_over_40_ms_and_3_percent": answers, "answer_median_s": quantile(&took, 0.5),
        "answer_max_s": quantile(&took, 1.0), "rebinds": rebinds, "sessions_lost": 0,
        "one_way_cuts": cuts, "one_way_cut_of_a_long_line": long,
    });
    keep("rough_links", &json!({ "figures": figures, "answers_s": took }));
    Outcome::Figures(figures)
}

/// Datagrams in one direction are lost until the node is missed.
fn cut(relay: &mut UdpRelay, coordinator: &Machine, direction: &str) -> Value {
    eventually("it reports", SOON, || holders(coordinator, MODEL) == 1);
    let began = Instant::now();
    relay.tell(&format!("cut {direction}"));
    eventually("the node is missed", SOON, || holders(coordinator, MODEL) == 0);
    let missed_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    relay.tell("cut none");
    eventually("it answers again", SOON, || chat(coordinator, 4).is_ok());
    json!({ "direction": direction, "missed_s": missed_s, "answers_again_s": began.elapsed().as_secs_f64() })
}

/// Asks the coordinator: how long the answer took.
fn chat(coordinator: &Machine, tokens: u32) -> Result<Duration, String> {
    let began = Instant::now();
    let (ok, text, errors) =
        coordinator.pomona(&["chat", "--max-tokens", &tokens.to_string(), "Hello there"]);
    if ok && !text.trim().is_empty() {
        Ok(began.elapsed())
    } else {
        Err(errors)
    }
}

/// How often a session with the node ended.
fn lost(coordinator: &Machine) -> usize {
    let log = coordinator.log();
    log.matches("node lost").count() + log.matches("node left").count()
}
