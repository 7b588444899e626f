//! Several coordinators: they take each other in, go on without each other, and issue
//! certificates without the one that founded the cluster.

use std::time::Duration;

use pomona_tests::{MODEL, Machine, eventually, greedy, post_to};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);

/// A coordinator that has founded a cluster.
fn founder() -> Machine {
    let mut machine = Machine::empty();
    machine.start_coordinator();
    eventually("the founder leads", SOON, || leads(&machine));
    machine
}

fn leads(machine: &Machine) -> bool {
    let (ok, out, _) = machine.pomona(&["--json", "status"]);
    let status: Value = serde_json::from_str(&out).unwrap_or_default();
    ok && status["raft"]["leads"] == true
}

fn add_coordinator(at: &Machine) -> Machine {
    let mut machine = Machine::empty();
    machine.join(at, &["coordinator", "add"]);
    machine.start_coordinator();
    machine
}

/// Numbers of the coordinators that vote, as this one sees it.
fn voters(at: &Machine) -> Vec<u64> {
    let (_, out, _) = at.pomona(&["--json", "coordinator", "list"]);
    let listed: Value = serde_json::from_str(&out).unwrap_or_default();
    let records = listed.as_array().cloned().unwrap_or_default();
    let voting = records.iter().filter(|record| record["votes"] == true);
    voting.filter_map(|record| record["number"].as_u64()).collect()
}

fn three() -> [Machine; 3] {
    let first = founder();
    let second = add_coordinator(&first);
    let third = add_coordinator(&first);
    for machine in [&first, &second, &third] {
        eventually("all three vote", SOON, || voters(machine) == [1, 2, 3]);
    }
    [first, second, third]
}

fn answers(machine: &Machine) -> bool {
    post_to(machine.coordinator, "/v1/chat/completions", &greedy("Hi", 3)).0 == 200
}

#[test]
fn three_coordinators_go_on_without_the_one_that_founded_the_cluster() {
    let _one = crate::engine_lock();
    let [mut first, mut second, mut third] = three();
    let mut node = Machine::empty();
    node.pull_model();
    node.join(&second, &["token", "create", "--name", "mini"]);
    node.start_node("echo");
    for machine in [&first, &second, &third] {
        eventually("every coordinator answers", SOON, || answers(machine));
    }

    first.kill();
    assert!(
        answers(&second) && answers(&third),
        "answers stop with the leader"
    );
    let renamed = second.pomona(&["node", "rename", "mini", "mini-1"]);
    assert!(renamed.0, "{}", renamed.2);
    assert!(third.pomona(&["node", "rename", "mini-1", "mini-2"]).0);
    let mut late = Machine::empty();
    late.join(&third, &["token", "create", "--name", "late"]);
    late.start_node("none");
    eventually("who joined without the founder serves", SOON, || {
        let nodes = second.json(&["nodes"]);
        let late = nodes
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["name"] == "late")
            .cloned();
        late.is_some_and(|late| late["connected"] == true)
    });

    // For good: it is removed, and does not come back.
    assert!(second.pomona(&["coordinator", "remove", "1"]).0);
    eventually("the dead one votes no more", SOON, || voters(&third) == [2, 3]);
    first.start_coordinator();
    // It was dead when that was decided, and finds nobody who follows it.
    eventually("the removed one can change nothing", SOON, || {
        let (ok, _, errors) = first.pomona(&["token", "create"]);
        assert!(!ok, "a removed coordinator made a token");
        errors.contains("no majority") || errors.contains("not known")
    });
    first.stop();
    assert!(answers(&second) && answers(&third));

    // Without a majority there are answers, and no changes.
    third.kill();
    let refused = second.pomona(&["node", "rename", "mini-2", "mini-3"]);
    assert!(!refused.0);
    assert!(refused.2.contains("no majority"), "{}", refused.2);
    assert!(answers(&second), "a coordinator without quorum stops answering");
    third.start_coordinator();
    eventually("changes are possible again", SOON, || {
        second.pomona(&["node", "rename", "mini-2", "mini-3"]).0
    });
    nothing_goes_to_a_cloud_without_a_majority(&mut second, &mut third);
}

/// However it was approved before: one that nobody reaches is not even tried then.
fn nothing_goes_to_a_cloud_without_a_majority(one: &mut Machine, other: &mut Machine) {
    one.kill();
    one.configure(&format!(
        "[cloud.away]\nurl = \"http://127.0.0.1:1/v1\"\nmodels.{MODEL} = {{ name = \"a\", input = 0, output = 0 }}\n"
    ));
    one.start_coordinator();
    let approve = [
        "cloud", "approve", "away", "--days", "1", "--money", "1", "--tokens", "1M",
    ];
    eventually("it is approved", SOON, || one.pomona(&approve).0);
    assert!(one.pomona(&["fallback", "set", "batch=rack,cloud:away"]).0);
    let mut batch = greedy("Hi", 3);
    batch["model"] = format!("{MODEL}:batch").into();
    let says = |what: &str| {
        let (status, body) = post_to(one.coordinator, "/v1/chat/completions", &batch);
        status == 503 && body.to_string().contains(what)
    };
    eventually("it is tried", SOON, || says("cloud:away: it is not reached"));
    other.kill();
    assert!(says("without a majority of the coordinators nothing goes out"));
}

#[test]
fn a_cluster_moves_off_the_machine_it_was_born_on() {
    let _one = crate::engine_lock();
    let mut first = founder();
    let alone = first.pomona(&["coordinator", "move"]);
    assert!(!alone.0 && alone.2.contains("coordinator add"), "{}", alone.2);
    // A log longer than the commands that are remembered.
    for _ in 0..150 {
        let (_, made) = first.admin("POST", "/admin/v1/tokens", &json!({})).unwrap();
        let path = format!("/admin/v1/tokens/{}", made["id"].as_str().unwrap());
        assert_eq!(first.admin("DELETE", &path, &Value::Null).unwrap().0, 200);
    }
    let second = add_coordinator(&first);
    eventually("the second one has everything", SOON, || {
        let listed = first.json(&["coordinator", "list"]);
        listed[1]["behind"] == 0 && listed[1]["votes"] == false
    });
    let moved = first.pomona(&["coordinator", "move"]);
    assert!(moved.0, "{}", moved.2);
    first.stop();
    eventually("the second one leads", SOON, || leads(&second));
    assert_eq!(voters(&second), [2]);
    assert!(second.pomona(&["token", "create"]).0);
}

#[test]
fn everything_off_and_on_again_forms_the_same_cluster() {
    let _one = crate::engine_lock();
    let mut machines = three();
    let cluster = machines[0].json(&["status"])["cluster"].clone();
    assert!(machines[1].pomona(&["token", "create", "--name", "kept"]).0);
    for machine in &mut machines {
        machine.kill();
    }
    for machine in &mut machines {
        machine.start_coordinator();
    }
    eventually("somebody leads", SOON, || machines.iter().any(leads));
    for machine in &machines {
        assert_eq!(machine.json(&["status"])["cluster"], cluster);
        assert_eq!(machine.json(&["token", "list"])[0]["name"], "kept");
    }
}

#[test]
fn a_node_token_makes_no_coordinator_and_a_coordinator_token_works_once() {
    let _one = crate::engine_lock();
    let first = founder();
    let token = first.json(&["coordinator", "add"])["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let (second, third) = (Machine::empty(), Machine::empty());
    let joined = second.json(&["join", &token, "--coordinator", &first.quic()]);
    assert_eq!(joined["number"], 2);
    let again = third.pomona(&["join", &token, "--coordinator", &first.quic()]);
    assert!(!again.0 && again.2.contains("used"), "{}", again.2);
    assert!(!third.state.path().join("cluster/ca.key").exists());
    let node = third.join(&first, &["token", "create"]);
    assert!(node["number"].is_null() && node["node"].is_string());
    assert!(!third.state.path().join("cluster/ca.key").exists());
    let key = std::fs::metadata(second.state.path().join("cluster/ca.key")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777,
        0o600
    );
}
