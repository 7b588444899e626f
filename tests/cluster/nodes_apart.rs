//! Nodes that do not reach each other, as on a network for guests, and both reach the coordinator:
//! weights come through it. Then one direction of a node's way is cut, as a broken switch does.

use std::time::Instant;

use pomona_tests::lan::Lan;
use pomona_tests::udp_relay::UdpRelay;
use pomona_tests::{MODEL, Machine, eventually};
use serde_json::{Value, json};

use crate::former::{SOON, holders, join, lead};
use crate::{Outcome, Scale, keep};

const OTHER: &str = "other";
const COORDINATOR: &str = "10.77.0.10";
const FIRST: &str = "10.77.0.11";

pub(crate) fn run(_: Scale) -> Outcome {
    let Some(lan) = Lan::new() else {
        return Outcome::Skipped("network namespaces need root");
    };
    let mut figures = apart(lan);
    let lan = Lan::new().expect("as a moment ago");
    figures["weights_between_neighbours_s"] = json!(neighbours(lan));
    keep("nodes_apart", &json!({ "figures": figures }));
    Outcome::Figures(figures)
}

fn apart(mut lan: Lan) -> Value {
    let hosts = [COORDINATOR, FIRST, "10.77.0.12"].map(|address| lan.host(address));
    let [mut coordinator, mut first, mut second] = hosts.each_ref().map(|host| Machine::on_lan(host));
    lan.isolate(1);
    lan.isolate(2);
    lead(&mut coordinator);
    // Each has what the other one lacks, so both want and give at once.
    first.pull_model();
    second.pull_model_as(OTHER);
    for node in [&mut first, &mut second] {
        join(&coordinator, node, "rack", None);
        node.start_node("echo");
    }
    eventually("each has its model", SOON, || {
        holders(&coordinator, MODEL) == 1 && holders(&coordinator, OTHER) == 1
    });
    let began = Instant::now();
    for model in [MODEL, OTHER] {
        let wanted = coordinator.pomona(&["model", "place", model, "--replicas", "2"]);
        assert!(wanted.0, "{}", wanted.2);
    }
    eventually("both have both", SOON, || {
        holders(&coordinator, MODEL) == 2 && holders(&coordinator, OTHER) == 2
    });
    let brought_s = began.elapsed().as_secs_f64();
    assert!(
        second.log().contains("weights come through a coordinator"),
        "{}",
        second.log()
    );
    let cuts = [
        ("from_the_node", hosts[1].as_str(), COORDINATOR),
        ("to_the_node", hosts[0].as_str(), FIRST),
    ]
    .map(|(which, at, to)| (which, cut(&lan, &coordinator, (at, to))));
    json!({ "weights_s": brought_s, "one_way_cuts": serde_json::Map::from_iter(
        cuts.map(|(which, figures)| (which.to_owned(), figures)),
    ) })
}

/// Two nodes behind the same NAT: the coordinator sees both at one address, where neither is reached.
/// They have seen each other on their LAN, and need nobody in between.
fn neighbours(mut lan: Lan) -> f64 {
    let hosts = [COORDINATOR, FIRST, "10.77.0.12", "10.77.0.13"].map(|address| lan.host(address));
    let [mut coordinator, mut first, mut second] = [0, 2, 3].map(|host: usize| Machine::on_lan(&hosts[host]));
    for node in &hosts[2..] {
        lan.cut(node, COORDINATOR, true);
    }
    let nat = format!("{FIRST}:7799");
    let _relay = UdpRelay::start(&hosts[1], &nat, &format!("{COORDINATOR}:7712"));
    lead(&mut coordinator);
    first.pull_model();
    for node in [&mut first, &mut second] {
        join(&coordinator, node, "rented", Some(&nat));
        node.start_node("echo");
    }
    let wanted = coordinator.pomona(&["model", "place", MODEL, "--replicas", "2"]);
    assert!(wanted.0, "{}", wanted.2);
    eventually("one replica is there", SOON, || holders(&coordinator, MODEL) >= 1);
    let began = Instant::now();
    eventually("both replicas are there", SOON, || {
        holders(&coordinator, MODEL) == 2
    });
    assert!(
        !second.log().contains("weights come through a coordinator"),
        "{}",
        second.log()
    );
    began.elapsed().as_secs_f64()
}

/// What one host sends to the other is lost for a while: the node is missed, and the other one answers.
fn cut(lan: &Lan, coordinator: &Machine, (at, to): (&str, &str)) -> Value {
    let began = Instant::now();
    lan.cut(at, to, true);
    eventually("the node is missed", SOON, || holders(coordinator, MODEL) == 1);
    let missed_s = began.elapsed().as_secs_f64();
    let answers = (0..5)
        .filter(|_| coordinator.pomona(&["chat", "Hello"]).0)
        .count();
    assert_eq!(answers, 5, "the other node answers");
    let began = Instant::now();
    lan.cut(at, to, false);
    eventually("the node is back", SOON, || holders(coordinator, MODEL) == 2);
    let back_s = began.elapsed().as_secs_f64();
    // Silence of 2.5 s ends a session; the rest is the test's own pace.
    assert!(missed_s <= 3.5, "{missed_s}");
    json!({ "missed_s": missed_s, "back_s": back_s })
}
