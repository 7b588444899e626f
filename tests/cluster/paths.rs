//! A node with two lines to its coordinator: a fast one, and a slow one through a relay. It falls back
//! to the slow one when the fast one is cut, says so, and takes the fast one again when it is back.
//! Then its address changes, and nobody notices.

use std::time::{Duration, Instant};

use pomona_tests::lan::Lan;
use pomona_tests::udp_relay::UdpRelay;
use pomona_tests::{Machine, eventually};
use serde_json::json;

use crate::former::{SOON, join, lead, status};
use crate::{Outcome, Scale, keep};

const COORDINATOR: &str = "10.77.0.10";
const RELAY: &str = "10.77.0.11";
const NODE: &str = "10.77.0.12";
/// A line that was lost again and again is tried again within this time.
const CHANGED: Duration = Duration::from_secs(130);
/// One way, in milliseconds.
const DELAY: u32 = 6;

pub(crate) fn run(scale: Scale) -> Outcome {
    let Some(mut lan) = Lan::new() else {
        return Outcome::Skipped("network namespaces need root");
    };
    let hosts = [COORDINATOR, RELAY, NODE].map(|address| lan.host(address));
    let (mut coordinator, mut node) = (Machine::on_lan(&hosts[0]), Machine::on_lan(&hosts[2]));
    let slow = format!("{RELAY}:7799");
    let mut relay = UdpRelay::start(&hosts[1], &slow, &format!("{COORDINATOR}:7712"));
    relay.tell(&format!("delay {DELAY}"));
    lead(&mut coordinator);
    node.pull_model();
    lan.cut(&hosts[2], COORDINATOR, true);
    join(&coordinator, &node, "rack", Some(&slow));
    node.start_node("echo:10");
    eventually("it comes over the slow line", SOON, || {
        seen_at(&coordinator) == RELAY
    });

    let rounds = scale.pick(1, 5);
    let (mut fallen_back, mut back) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let began = Instant::now();
        lan.cut(&hosts[2], COORDINATOR, false);
        eventually("the fast line is taken", CHANGED, || {
            seen_at(&coordinator) == NODE
        });
        back.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        lan.cut(&hosts[2], COORDINATOR, true);
        eventually("the slow line is taken", SOON, || seen_at(&coordinator) == RELAY);
        fallen_back.push(began.elapsed().as_secs_f64());
    }
    // The coordinator's word is on its way when it sees the node.
    eventually("it says that it fell back", SOON, || {
        node.log().contains("on a slower line than before")
    });
    lan.cut(&hosts[2], COORDINATOR, false);
    eventually("the fast line is taken", CHANGED, || {
        seen_at(&coordinator) == NODE
    });

    // Another address, as from DHCP, in the middle of an answer.
    let sessions = sessions(&node);
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| coordinator.pomona(&["chat", "--max-tokens", "200", "Hello there"]));
        std::thread::sleep(Duration::from_millis(700));
        lan.address(&hosts[2], "10.77.0.99");
        let (ok, text, errors) = answer.join().expect("a client");
        assert!(ok && !text.trim().is_empty(), "{errors}");
    });
    eventually("it is seen at its new address", SOON, || {
        seen_at(&coordinator) == "10.77.0.99"
    });
    let anew = self::sessions(&node) - sessions;
    assert_eq!(anew, 0, "the session goes on: {}", node.log());
    let figures = json!({
        "rounds": rounds, "fast_line_taken_s": back, "fell_back_s": fallen_back,
        "new_sessions_after_a_new_address": anew,
    });
    keep("paths", &json!({ "figures": figures }));
    Outcome::Figures(figures)
}

/// Where the coordinator sees its node, without the port; empty while it does not.
fn seen_at(coordinator: &Machine) -> String {
    let status = status(coordinator);
    let address = status["nodes"][0]["address"].as_str().unwrap_or_default();
    address.rsplit_once(':').map_or("", |(ip, _)| ip).to_owned()
}

/// Sessions that the node has had.
fn sessions(node: &Machine) -> usize {
    node.log().matches("session with coordinator").count()
}
