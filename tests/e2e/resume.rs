//! Answers go on when the node or the engine that made them is gone.

use std::time::Duration;

use pomona_tests::{Cluster, MODEL, Machine, Streamed, eventually, greedy, send};
use serde_json::{Value, json};

use crate::join::token;

const TOKENS: u32 = 256;

fn body(i: usize) -> Value {
    let mut body = greedy(&format!("Story number {i}"), TOKENS);
    body["stream"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    if i % 2 == 1 {
        body["temperature"] = 1.into();
        body["seed"] = i.into();
    }
    body
}

/// All of them at once; `disturb` runs when every one is on its way.
fn stream_all(cluster: &Cluster, streams: usize, disturb: impl FnOnce()) -> Vec<Streamed> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..streams)
            .map(|i| scope.spawn(move || cluster.stream(&body(i))))
            .collect();
        std::thread::sleep(Duration::from_millis(1000));
        disturb();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

fn check(got: &[Streamed], undisturbed: &[Streamed]) {
    for (i, (got, undisturbed)) in got.iter().zip(undisturbed).enumerate() {
        assert!(got.error.is_none() && got.done, "stream {i}: {:?}", got.error);
        assert_eq!(got.text, undisturbed.text, "stream {i}");
        assert_eq!(got.usage["completion_tokens"], TOKENS, "stream {i}");
    }
}

#[test]
fn streams_survive_the_death_of_their_node_and_of_their_engine() {
    let _one = crate::engine_lock();
    let streams = 16;
    let cluster = Cluster::start("echo:10");
    let mut machine = Machine::empty();
    machine.pull_model();
    let text = token(&cluster, &[]);
    let (ok, _, errors) = machine.pomona(&["join", &text, "--coordinator", &cluster.quic()]);
    assert!(ok, "{errors}");
    machine.start_node("echo:10");
    eventually("the second replica comes", Duration::from_secs(15), || {
        replicas(&cluster) == 2
    });

    let undisturbed = stream_all(&cluster, streams, || ());
    check(&undisturbed, &undisturbed);
    let moves = || cluster.log().matches("answer goes on elsewhere").count();
    assert_eq!(moves(), 0);
    let after_the_node = stream_all(&cluster, streams, || machine.kill());
    check(&after_the_node, &undisturbed);
    let moved = moves();
    assert!(moved > 0, "no stream was on the node that died");

    // Nobody else is left: the same node goes on once its engine is back.
    let engine = cluster.engine_pid();
    let after_the_engine = stream_all(&cluster, streams, || send("KILL", engine));
    check(&after_the_engine, &undisturbed);
    assert_eq!(moves() - moved, streams);
}

/// Connected nodes that have the model loaded.
fn replicas(cluster: &Cluster) -> usize {
    let (_, out, _) = cluster.pomona(&["--json", "nodes"]);
    let nodes: Value = serde_json::from_str(&out).unwrap_or_default();
    let nodes = nodes.as_array().into_iter().flatten();
    nodes
        .filter(|node| !node["report"]["engine"]["models"][MODEL].is_null())
        .count()
}
