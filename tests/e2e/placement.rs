//! Placement, end to end: policies, a lost holder, a drained one, a model that comes with a request.

use std::time::{Duration, Instant};

use pomona_tests::{MODEL, Machine, Streamed, eventually, greedy, stream_from};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
/// A node is lost within three seconds; two more for the next plan, and the rest for a busy machine:
/// the figure is printed.
const REPLACED: Duration = Duration::from_secs(10);

pub(crate) fn holders(at: &Machine) -> Vec<(String, bool)> {
    let plan = at.json(&["plan", "show"]);
    let holders = plan["models"][0]["holders"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    holders
        .iter()
        .map(|holder| {
            (
                holder["name"].as_str().unwrap().to_owned(),
                holder["loaded"] == true,
            )
        })
        .collect()
}

fn loaded(at: &Machine) -> Vec<String> {
    let mut names: Vec<String> = holders(at)
        .into_iter()
        .filter(|(_, loaded)| *loaded)
        .map(|(name, _)| name)
        .collect();
    names.sort();
    names
}

fn node(at: &Machine, role: &str, name: &str) -> Machine {
    let mut node = Machine::empty();
    node.pull_model();
    node.join(at, &["token", "create", "--role", role, "--name", name]);
    node.start_node("echo:10");
    node
}

fn body(tokens: u32) -> Value {
    let mut body = greedy("Tell me a story.", tokens);
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    body
}

fn ok(streamed: &Streamed) {
    assert!(streamed.done && streamed.error.is_none(), "{:?}", streamed.error);
}

#[test]
fn models_go_where_policy_and_machines_allow() {
    let _lock = super::engine_lock();
    let mut coordinator = Machine::empty();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let _laptop = node(&coordinator, "laptop", "laptop");
    let mut racks = [
        node(&coordinator, "rack", "rack-1"),
        node(&coordinator, "rack", "rack-2"),
    ];
    eventually("everybody holds it", SOON, || {
        loaded(&coordinator) == ["laptop", "rack-1", "rack-2"]
    });

    let (ok_, _, errors) = coordinator.pomona(&["model", "place", MODEL, "--pool", "rak"]);
    assert!(!ok_ && errors.contains("rak"), "{errors}");
    let (ok_, _, errors) =
        coordinator.pomona(&["model", "place", MODEL, "--replicas", "1", "--pool", "rack"]);
    assert!(ok_, "{errors}");
    eventually("one rack holds it", SOON, || {
        let holders = holders(&coordinator);
        holders.len() == 1 && holders[0].0.starts_with("rack")
    });
    let explained = coordinator.json(&["plan", "explain", MODEL]);
    let why = explained["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["name"] == "laptop")
        .unwrap();
    assert_eq!(why["why"], "cannot: the policy is not for laptop machines");

    // The holder dies.
    let first: usize = if loaded(&coordinator) == ["rack-1"] { 0 } else { 1 };
    let second = format!("rack-{}", 2 - first);
    racks[first].kill();
    let began = Instant::now();
    eventually("the other rack has it", REPLACED, || {
        loaded(&coordinator).contains(&second)
    });
    println!("a lost holder was replaced after {:?}", began.elapsed());
    ok(&stream_from(coordinator.coordinator, &body(8)));
    let diff = coordinator.json(&["plan", "diff"]);
    let last = diff["history"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["moves"][0]["do"], &last["moves"][0]["name"]),
        (&"load".into(), &second.as_str().into())
    );

    // It comes back, and one of the two goes again.
    racks[first].start_node("echo:10");
    eventually("one holds it", SOON, || {
        holders(&coordinator).len() == 1 && loaded(&coordinator).len() == 1
    });

    // A drained node: the answer that runs there ends well, elsewhere if need be.
    let holder = loaded(&coordinator)[0].clone();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| stream_from(coordinator.coordinator, &body(600)));
        std::thread::sleep(Duration::from_millis(500));
        let (drained, _, errors) = coordinator.pomona(&["node", "drain", &holder, "--within", "2", "--wait"]);
        assert!(drained, "{errors}");
        let running = running.join().unwrap();
        ok(&running);
        assert_eq!(running.finish.as_deref(), Some("length"));
    });
    assert!(
        !loaded(&coordinator).contains(&holder),
        "{:?}",
        holders(&coordinator)
    );
    ok(&stream_from(coordinator.coordinator, &body(8)));
    let (uncordoned, _, errors) = coordinator.pomona(&["node", "uncordon", &holder]);
    assert!(uncordoned, "{errors}");

    // Nobody asks for it: it goes, and comes back with a request.
    assert!(coordinator.pomona(&["model", "place", MODEL, "--keep", "3"]).0);
    eventually("it is unloaded", SOON, || holders(&coordinator).is_empty());
    ok(&stream_from(coordinator.coordinator, &body(8)));
    assert_eq!(holders(&coordinator).len(), 1);
    for (bad, expected) in [
        (
            &["model", "place", MODEL, "--pin", "nobody"][..],
            "no node `nobody`",
        ),
        (&["model", "place", MODEL, "--replicas", "many"], "whole number"),
        (&["plan", "explain", "nothing"], "not in the catalogue"),
        (&["model", "place", MODEL], "say what is to change"),
    ] {
        let (ok_, _, errors) = coordinator.pomona(bad);
        assert!(!ok_ && errors.contains(expected), "{bad:?}: {errors}");
    }
}
