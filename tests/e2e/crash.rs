//! Kills: of the engine, and of everything.

use std::time::{Duration, Instant};

use pomona_tests::{Cluster, MODEL, eventually, greedy, send, stream_from};

#[test]
fn a_killed_engine_comes_back_and_loses_nothing() {
    let _lock = super::engine_lock();
    let cluster = Cluster::start("mlx");
    // The first chunks of the streams are out when the engine dies; the long prompt has not
    // answered. The coordinator asks the node to go on; the node's own endpoint asks its engine,
    // or the coordinator.
    let mut streaming = greedy("Tell me a very long story.", 150);
    streaming["stream"] = true.into();
    let undisturbed = cluster.stream(&streaming);
    let waiting = greedy(&"Summarise this: apples, pears. ".repeat(60), 8);
    let (resumed, streamed, (code, answer)) = std::thread::scope(|scope| {
        let resumed = scope.spawn(|| cluster.stream(&streaming));
        let streamed = scope.spawn(|| stream_from(cluster.node, &streaming));
        std::thread::sleep(Duration::from_millis(1500));
        let answered = scope.spawn(|| cluster.post("/v1/chat/completions", &waiting));
        std::thread::sleep(Duration::from_millis(150));
        send("KILL", cluster.engine_pid());
        (
            resumed.join().unwrap(),
            streamed.join().unwrap(),
            answered.join().unwrap(),
        )
    });
    assert!(resumed.error.is_none() && resumed.done, "{:?}", resumed.error);
    assert_eq!(resumed.text, undisturbed.text, "the coordinator's stream goes on");
    assert!(streamed.error.is_none() && streamed.done, "{:?}", streamed.error);
    assert_eq!(streamed.text, undisturbed.text, "the node's stream goes on");
    assert_eq!(code, 200, "{answer}");

    // A second kill within a week would end the model's stay there.
    let node = cluster.json(&["status"])["nodes"][0]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    eventually("the kill is forgiven", Duration::from_secs(10), || {
        cluster.pomona(&["gates", "forgive", &node, MODEL]).0
    });
    let began = Instant::now();
    send("KILL", cluster.engine_pid());
    let (code, _) = cluster.post("/v1/chat/completions", &greedy("Hi", 2));
    assert_eq!(code, 200, "a request during the restart waits for it");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    std::thread::sleep(Duration::from_millis(1500));
    let status = cluster.json(&["status"]);
    assert_eq!(
        status["nodes"][0]["kills_s"].as_array().unwrap().len(),
        2,
        "{status}"
    );
}

/// It neither answers nor ends: only its silence tells.
#[test]
fn an_engine_that_hangs_is_found_and_started_anew() {
    let cluster = Cluster::start("echo:10");
    let mut request = greedy("Tell me a very long story.", 400);
    request["stream"] = true.into();
    let undisturbed = cluster.stream(&request);
    let hung = cluster.engine_pid();
    let (streamed, began) = std::thread::scope(|scope| {
        let streamed = scope.spawn(|| cluster.stream(&request));
        std::thread::sleep(Duration::from_millis(1500));
        send("STOP", hung);
        let began = Instant::now();
        (streamed.join().unwrap(), began)
    });
    assert!(streamed.error.is_none() && streamed.done, "{:?}", streamed.error);
    assert_eq!(streamed.text, undisturbed.text, "the stream goes on");
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    assert_ne!(cluster.engine_pid(), hung);
}

#[test]
fn a_killed_cluster_comes_back_as_the_same_one() {
    let mut cluster = Cluster::start("echo");
    let before = cluster.json(&["status"]);
    for _ in 0..3 {
        cluster.kill_and_restart();
    }
    let after = cluster.json(&["status"]);
    assert_eq!(before["cluster"], after["cluster"]);
    assert_eq!(before["nodes"][0]["id"], after["nodes"][0]["id"]);
    assert_eq!(before["models"], after["models"]);
    assert_eq!(cluster.post("/v1/chat/completions", &greedy("Hi", 2)).0, 200);
}
