//! Rented machines: they leave before their lease ends, with nothing of the cluster on them.

use std::time::Duration;

use pomona_tests::{Machine, eventually, greedy, stream_from};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

fn names(at: &Machine) -> Vec<String> {
    let nodes = at.json(&["nodes"]);
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    let name = |node: &Value| node["name"].as_str().unwrap_or_default().to_owned();
    nodes.iter().map(name).collect()
}

fn holds(at: &Machine, name: &str) -> bool {
    let nodes = at.json(&["nodes"]);
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    let found = nodes.iter().find(|node| node["name"] == name);
    let models = found.and_then(|node| node["report"]["engine"]["models"].as_object());
    models.is_some_and(|models| !models.is_empty())
}

/// A rented machine that holds the model and then gets this lease, if any; its token had a long one.
fn rented(at: &Machine, name: &str, lease: &Value) -> Machine {
    let wanted = json!({ "role": "rented", "name": name, "lease": { "ends_in_s": 36_000 } });
    let (status, made) = at.admin("POST", "/admin/v1/tokens", &wanted).unwrap();
    assert_eq!(status, 200, "{made}");
    let mut machine = Machine::with_clocks();
    machine.pull_model();
    machine.json(&[
        "join",
        made["token"].as_str().unwrap(),
        "--coordinator",
        &at.quic(),
    ]);
    machine.start_node("echo:10");
    eventually("it holds the model", SOON, || holds(at, name));
    let path = format!("/admin/v1/nodes/{name}/lease");
    let method = if lease.is_null() { "DELETE" } else { "PUT" };
    let (status, answer) = at.admin(method, &path, lease).unwrap();
    assert_eq!(status, 200, "{answer}");
    machine
}

/// Every file below the node's folder.
fn left(machine: &Machine) -> Vec<std::path::PathBuf> {
    let node = machine.state.path().join("node");
    std::fs::read_dir(node)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

#[test]
fn a_rented_machine_leaves_before_its_lease_ends_and_leaves_nothing() {
    let _lock = super::engine_lock();
    let mut coordinator = Machine::empty();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let (status, refused) = coordinator
        .admin(
            "POST",
            "/admin/v1/tokens",
            &json!({ "role": "rack", "lease": { "ends_in_s": 60 } }),
        )
        .unwrap();
    assert_eq!(status, 409, "{refused}");
    assert!(refused["error"].as_str().unwrap().contains("rented"), "{refused}");

    // Drained from the tenth second on, evicted in the eighteenth.
    let lease = json!({ "ends_in_s": 20, "drain_s": 10 });
    let mut leaving = rented(&coordinator, "leaving", &lease);
    let copy = leaving.copy();
    let mut rack = Machine::empty();
    rack.pull_model();
    rack.join(
        &coordinator,
        &["token", "create", "--role", "rack", "--name", "stays"],
    );
    let mut body = greedy("Tell me a story.", 2200);
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    let port = coordinator.coordinator;
    let streamed = std::thread::scope(|scope| {
        let streamed = scope.spawn(|| stream_from(port, &body));
        std::thread::sleep(Duration::from_secs(1));
        rack.start_node("echo:10");
        eventually("it has left", Duration::from_secs(30), || {
            leaving.has_ended_well()
        });
        streamed.join().unwrap()
    });
    assert!(streamed.done && streamed.error.is_none(), "{:?}", streamed.error);
    assert_eq!(
        streamed.usage["completion_tokens"], 2200,
        "its answer went on elsewhere"
    );
    assert_eq!(left(&leaving), Vec::<std::path::PathBuf>::new());
    eventually("it is shut out", SOON, || names(&coordinator) == ["stays"]);

    // Whoever kept a copy of its disk gets nowhere with it.
    let mut copy = copy;
    copy.start_node("echo");
    eventually("a copy is refused", SOON, || {
        copy.log().contains("this node was revoked")
    });

    // One that reaches nobody leaves by its own clock; one that is evicted leaves at once.
    let mut alone = rented(&coordinator, "alone", &json!({ "ends_in_s": 3600 }));
    let mut evicted = rented(&coordinator, "evicted", &Value::Null);
    let (ok, _, errors) = coordinator.pomona(&["node", "evict", "evicted", "--yes"]);
    assert!(ok, "{errors}");
    eventually("it has left", SOON, || evicted.has_ended_well());
    assert!(left(&evicted).is_empty());
    eventually("it is shut out", SOON, || {
        !names(&coordinator).contains(&"evicted".to_owned())
    });
    // One that was off when it was shut out hears of it when it comes back.
    let mut absent = rented(&coordinator, "absent", &json!({ "ends_in_s": 36_000 }));
    absent.kill();
    let (ok, _, errors) = coordinator.pomona(&["node", "revoke", "absent"]);
    assert!(ok, "{errors}");
    absent.start_node("echo");
    eventually("it has left", SOON, || absent.has_ended_well());
    assert!(left(&absent).is_empty());
    coordinator.kill();
    alone.sleep(3600);
    // It gives coordinators twenty seconds to say something else.
    eventually("it has left by itself", 2 * SOON, || alone.has_ended_well());
    assert!(left(&alone).is_empty());
}
