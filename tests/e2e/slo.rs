//! Service levels: what a cluster agrees on reaches every queue, and what is missed is counted.

use std::time::Duration;

use pomona_tests::{Cluster, eventually, greedy, post_to};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// A counter at the coordinator, for interactive requests and the time to the first token.
fn counter(home: &Cluster, name: &str) -> u64 {
    let (_, metrics) = home.get("/metrics");
    let labels = format!("{name}{{class=\"interactive\",budget=\"ttft\"}} ");
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(&labels));
    value.map_or(0, |value| value.parse().unwrap())
}

#[test]
fn service_levels_reach_every_queue_and_what_is_missed_is_counted() {
    let _one = crate::engine_lock();
    let home = Cluster::start("echo:20");
    for (bad, why) in [
        ("batch.queue=0", "batch: queue must be 1 to 256"),
        ("interactive.wait_s=900", "a request takes no longer"),
        ("interactive.ttft_ms=-5", "no whole number from 0 on"),
        ("interactive.ttft=5", "there are queue, wait_s, ttft_ms"),
        ("batch.ttft_us_per_token=5", "says that there is no budget"),
    ] {
        let (ok, _, errors) = home.pomona(&["slo", "set", bad]);
        assert!(!ok && errors.contains(why), "{bad}: {errors}");
    }
    let ask = || assert_eq!(home.post("/v1/chat/completions", &greedy("Hi", 3)).0, 200);
    assert!(home.pomona(&["slo", "set", "interactive.ttft_ms=60000"]).0);
    ask();
    let judged = || counter(&home, "pomona_slo_judged_total");
    let missed = || counter(&home, "pomona_slo_missed_total");
    assert_eq!((judged(), missed()), (1, 0));
    // Its steps take twenty milliseconds.
    let promised = [
        "slo",
        "set",
        "interactive.ttft_ms=10",
        "interactive.ttft_us_per_token=1",
    ];
    assert!(home.pomona(&promised).0);
    ask();
    assert_eq!((judged(), missed()), (2, 1));
    assert!(home.pomona(&["slo", "rollback", "1"]).0);
    ask();
    assert_eq!((judged(), missed()), (3, 1));

    // A server with one slot for batch and one that waits for it.
    let server = Cluster::start("echo:5");
    let url = format!("http://127.0.0.1:{}/v1", server.coordinator);
    let adopt = ["engine", "adopt", &url, "--name", "served", "--slots", "1"];
    assert!(home.pomona(&adopt).0);
    let mut batch = greedy("Hi", 1);
    batch["model"] = "served:batch".into();
    eventually("it answers", SOON, || {
        home.post("/v1/chat/completions", &batch).0 == 200
    });
    let set = ["slo", "set", "batch.queue=1", "batch.wait_s=2"];
    assert!(home.pomona(&set).0);
    let is_known = || home.log().contains("slo of the cluster version=4");
    eventually("the node knows", SOON, is_known);
    // Who finds no place is told at once.
    let nowhere_else = ["fallback", "set", "batch=laptop,rack,rented,local"];
    assert!(home.pomona(&nowhere_else).0);
    batch["max_tokens"] = 1000.into();
    let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| post_to(home.coordinator, "/v1/chat/completions", &batch)))
            .collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let refused = |why: &str| {
        answers
            .iter()
            .filter(|(_, answer)| answer.to_string().contains(why))
            .count()
    };
    let answered = answers.iter().filter(|(status, _)| *status == 200).count();
    assert_eq!(
        (
            answered,
            refused("queue for the server is full"),
            refused("came free in time")
        ),
        (1, 2, 1),
        "{answers:?}"
    );
    let (ok, out, _) = home.pomona(&["slo", "show"]);
    assert!(
        ok && out.contains("Version 4") && out.contains("ttft_us_per_token"),
        "{out}"
    );
}
