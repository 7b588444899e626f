//! Gates act: a model that kills the engine of a node again and again leaves it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use pomona_tests::{Cluster, MODEL, eventually, get_from, greedy, send};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

fn kills(cluster: &Cluster) -> usize {
    let kills = &cluster.json(&["gates", "show"])["kills"][0]["at_s"];
    kills.as_array().map_or(0, Vec::len)
}

#[test]
fn a_model_that_kills_the_engine_twice_leaves_until_it_is_forgiven() {
    let cluster = Cluster::start("echo");
    let mut watch = cluster.command(&["--json", "gates", "watch"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(watch.stdout.take().unwrap()).lines();
    let ask = || cluster.post("/v1/chat/completions", &greedy("Hi", 2));
    for times in 1..=2 {
        eventually("it answers", SOON, || ask().0 == 200);
        send("KILL", cluster.engine_pid());
        eventually("the kill is counted", SOON, || kills(&cluster) == times);
    }
    let event: Value = serde_json::from_str(&told.next().unwrap().unwrap()).unwrap();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(
        (&event["gate"], &event["to"]),
        (&"kills".into(), &"tripped".into()),
        "{event}"
    );
    assert_eq!(event["samples"].as_array().unwrap().len(), 2, "{event}");
    // What the system says of it; here the test has killed it.
    let reason = event["reason"].as_str().unwrap();
    assert!(reason.contains("within 7 days; the latest: "), "{event}");

    eventually("it is refused", SOON, || {
        let (code, answer) = ask();
        // The first refusals may say that it is being moved.
        code != 200
            && answer
                .to_string()
                .contains("was killed with it twice within 7 days")
    });
    let metrics = get_from(cluster.coordinator, "/metrics").1;
    let mut lines = metrics.lines();
    let stage = lines.find(|line| line.starts_with("pomona_node_gate_stage") && line.contains("kills"));
    assert!(stage.is_some_and(|line| line.ends_with(" 1")), "{metrics}");
    let (ok, shown, _) = cluster.pomona(&["gates"]);
    assert!(
        ok && shown.contains("Ticket 1: ") && shown.contains("kills ("),
        "{shown}"
    );

    let name = event["name"].as_str().unwrap();
    let (ok, _, errors) = cluster.pomona(&["gates", "forgive", name, MODEL]);
    assert!(ok, "{errors}");
    eventually("it answers again", SOON, || ask().0 == 200);
    let (ok, shown, _) = cluster.pomona(&["gates", "show"]);
    assert!(ok && shown.contains("All gates are clear."), "{shown}");
    let (ok, _, errors) = cluster.pomona(&["gates", "forgive", name, MODEL]);
    assert!(!ok && errors.contains("no kill of the engine"), "{errors}");
}
