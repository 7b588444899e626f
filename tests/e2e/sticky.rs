//! The next turn of a conversation goes where its prefix is, although another machine would be next in turn.

use std::time::Duration;

use pomona_tests::{MODEL, Machine, agent, eventually, greedy};
use serde_json::{Value, json};

use crate::placement::holders;

const SOON: Duration = Duration::from_secs(20);

fn url(at: &Machine) -> String {
    format!("http://127.0.0.1:{}/v1/chat/completions", at.coordinator)
}

/// The node that answers at the cluster's endpoint.
fn answered_by(at: &Machine, body: &Value) -> String {
    let response = agent().post(url(at)).send_json(body).unwrap();
    assert_eq!(response.status(), 200);
    let node = response.headers().get("x-pomona-node").unwrap();
    node.to_str().unwrap().to_owned()
}

#[test]
fn a_conversation_goes_on_where_its_prefix_is() {
    let _one = crate::engine_lock();
    let mut coordinator = Machine::empty();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let nodes = ["one", "two"].map(|name| {
        let mut node = Machine::empty();
        node.pull_model();
        node.join(
            &coordinator,
            &["token", "create", "--role", "rack", "--name", name],
        );
        node.start_node("echo:20");
        node
    });
    assert!(
        coordinator
            .pomona(&["model", "place", MODEL, "--replicas", "2"])
            .0
    );
    eventually("both hold it", SOON, || {
        let holders = holders(&coordinator);
        holders.len() == nodes.len() && holders.iter().all(|(_, loaded)| *loaded)
    });

    // Idle machines are asked in one order: this is the first.
    let short = greedy("Hi", 2);
    let first = answered_by(&coordinator, &short);
    let mut long = greedy("Something else", 3000);
    long["stream"] = true.into();
    let held = agent().post(url(&coordinator)).send_json(&long).unwrap();
    assert_eq!(
        held.headers().get("x-pomona-node").unwrap().to_str().unwrap(),
        first
    );
    let question = "What do you think of the following orchard? ".repeat(20);
    let mut conversation = greedy(&question, 8);
    let home = answered_by(&coordinator, &conversation);
    assert_ne!(home, first, "the other one has nothing to do");
    drop(held);

    eventually("the first is idle again", SOON, || {
        answered_by(&coordinator, &short) == first
    });
    let messages = conversation["messages"].as_array_mut().unwrap();
    messages.push(json!({ "role": "assistant", "content": "It is old." }));
    messages.push(json!({ "role": "user", "content": "How old?" }));
    for _ in 0..3 {
        assert_eq!(answered_by(&coordinator, &conversation), home);
    }
}
