//! A node that lacks a model is given it, brings the weights from the node that has them, and answers.

use std::time::Duration;

use pomona_tests::{MODEL, Machine, eventually, greedy, post_to};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_replica_more_brings_its_weights_from_the_first() {
    let _lock = super::engine_lock();
    let mut coordinator = Machine::empty();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let mut nodes = [(); 2].map(|()| Machine::empty());
    nodes[0].pull_model();
    for (node, name) in nodes.iter_mut().zip(["first", "second"]) {
        let token = coordinator.json(&["token", "create", "--role", "rack", "--name", name]);
        node.json(&[
            "join",
            token["token"].as_str().unwrap(),
            "--coordinator",
            &coordinator.quic(),
        ]);
        node.start_node("echo");
    }
    let loaded = || {
        let plan = coordinator.json(&["plan", "show"]);
        let holders = plan["models"][0]["holders"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        holders.iter().filter(|holder| holder["loaded"] == true).count()
    };
    eventually("the first one answers", SOON, || loaded() == 1);
    assert_eq!(
        nodes[1].json(&["model", "list"]).as_array().map(Vec::len),
        Some(0)
    );

    let placed = coordinator.pomona(&["model", "place", MODEL, "--replicas", "2"]);
    assert!(placed.0, "{}", placed.2);
    eventually("both answer", SOON, || loaded() == 2);
    let (first, second) = (
        nodes[0].json(&["model", "list"]),
        nodes[1].json(&["model", "list"]),
    );
    assert_eq!(first[0]["digests"], second[0]["digests"]);
    nodes[0].kill();
    let (status, answer) = post_to(nodes[1].node, "/v1/chat/completions", &greedy("Hi", 4));
    assert_eq!(status, 200, "{answer}");
}
