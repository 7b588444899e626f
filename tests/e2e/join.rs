//! A second machine joins with a token, serves the cluster, and is shut out again.

use std::time::{Duration, Instant};

use pomona_tests::{Cluster, Machine, agent, eventually};
use serde_json::{Value, json};

/// A model that only the second machine has.
const OTHER: &str = "other-model";

pub(crate) fn token(cluster: &Cluster, more: &[&str]) -> String {
    let made = cluster.json(&[&["token", "create"], more].concat());
    assert_eq!(made["coordinator"], cluster.quic());
    made["token"].as_str().unwrap().to_owned()
}

/// Status and node of an answer by the second machine's model.
fn ask(cluster: &Cluster) -> (u16, String) {
    let body = json!({ "model": OTHER, "max_tokens": 3, "messages": [{ "role": "user", "content": "Hi" }] });
    let response = agent()
        .post(format!("{}/chat/completions", cluster.base()))
        .send_json(&body)
        .unwrap();
    let node = response
        .headers()
        .get("x-pomona-node")
        .map_or("", |node| node.to_str().unwrap());
    (response.status().as_u16(), node.to_owned())
}

#[test]
fn a_machine_joins_serves_survives_a_restart_and_is_revoked() {
    let mut cluster = Cluster::start("echo");
    let mut machine = Machine::empty();
    machine.pull_model_as(OTHER);
    let text = token(&cluster, &["--role", "rack", "--name", "mini-7"]);
    let joined = machine.pomona(&["--json", "join", &text, "--coordinator", &cluster.quic()]);
    assert!(joined.0, "{}", joined.2);
    let id: Value = serde_json::from_str(&joined.1).unwrap();
    let id = id["node"].as_str().unwrap().to_owned();
    let certificate = machine.state.path().join("node/membership/node.crt");
    let issued = std::fs::read(&certificate).unwrap();
    machine.start_node("echo");
    eventually("the joined node answers", Duration::from_secs(10), || {
        ask(&cluster) == (200, id.clone())
    });
    let nodes = cluster.json(&["nodes"]);
    let record = nodes
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["id"] == *id)
        .unwrap();
    assert_eq!(
        (&record["name"], &record["role"]),
        (&json!("mini-7"), &json!("rack"))
    );

    eventually(
        "its certificate is renewed over the session",
        Duration::from_secs(5),
        || std::fs::read(&certificate).unwrap() != issued,
    );

    // A machine whose answer was lost asks again with the same token, another machine in vain.
    let again = machine.pomona(&["join", &text, "--coordinator", &cluster.quic()]);
    assert!(again.0, "{}", again.2);
    let (ok, _, errors) = Machine::empty().pomona(&["join", &text, "--coordinator", &cluster.quic()]);
    assert!(!ok && errors.contains("another machine"), "{errors}");

    cluster.kill_and_restart();
    eventually("the node comes back by itself", Duration::from_secs(15), || {
        ask(&cluster).0 == 200
    });

    let (ok, _, errors) = cluster.pomona(&["node", "rename", "mini-7", "mini 8"]);
    assert!(ok, "{errors}");
    let before = Instant::now();
    let (ok, _, errors) = cluster.pomona(&["node", "revoke", "mini 8"]);
    assert!(ok, "{errors}");
    eventually("the revoked node is out", Duration::from_secs(1), || {
        ask(&cluster).0 != 200
    });
    println!("revocation acted within {:?}", before.elapsed());

    // Neither a restart nor a new token brings the machine's id back.
    machine.stop();
    machine.start_node("echo");
    eventually("the node is told why", Duration::from_secs(10), || {
        machine.log().contains("revoked")
    });
    let text = token(&cluster, &[]);
    let (ok, _, errors) = machine.pomona(&["join", &text, "--coordinator", &cluster.quic()]);
    assert!(!ok && errors.contains("revoked"), "{errors}");
    assert_ne!(ask(&cluster).0, 200);
}

#[test]
fn tokens_that_should_not_work_do_not() {
    let cluster = Cluster::start("echo");
    let machine = Machine::empty();
    let join = |text: &str| {
        let (ok, _, errors) = machine.pomona(&["join", text, "--coordinator", &cluster.quic()]);
        assert!(!ok, "{text} was accepted");
        errors
    };
    let good = token(&cluster, &[]);
    assert!(join("pomona-join-1-abc").contains("cut off"));
    assert!(join("hello").contains("pomona token create"));
    let mut changed = good.clone();
    changed.replace_range(40..41, if &good[40..41] == "A" { "B" } else { "A" });
    assert!(join(&changed).contains("copy it again"));

    // Who founded a cluster does not join another one by the way.
    let founder = Cluster::start("echo");
    let (ok, _, errors) = founder.pomona(&["join", &good, "--coordinator", &cluster.quic()]);
    assert!(!ok && errors.contains("cluster of its own"), "{errors}");

    let open = cluster.json(&["token", "list"]);
    let id = open[0]["id"].as_str().unwrap().to_owned();
    assert!(open[0].get("token").is_none(), "the secret is shown once");
    let (ok, _, errors) = cluster.pomona(&["token", "revoke", &id]);
    assert!(ok, "{errors}");
    assert!(join(&good).contains("not open"));
    assert!(!machine.state.path().join("node/membership").exists());

    // A token of another cluster: its coordinator is not the one that answers here.
    let foreign = token(&founder, &[]);
    assert!(join(&foreign).contains("no session"), "{}", join(&foreign));
    for (arguments, word) in [
        (&["token", "create", "--minutes", "2000"][..], "24 hours"),
        (&["token", "create", "--role", "fridge"], "fridge"),
        (&["token", "revoke", "12"], "32 hexadecimal"),
        (&["node", "revoke", "nobody"], "no node"),
    ] {
        let (ok, _, errors) = cluster.pomona(arguments);
        assert!(!ok && errors.contains(word), "{arguments:?}: {errors}");
    }
}

#[test]
fn an_operator_approves_by_words_and_a_copied_identity_is_refused() {
    let cluster = Cluster::configured("echo", "[security]\napprove = \"manual\"\n");
    let mut machine = Machine::empty();
    machine.pull_model_as(OTHER);
    let text = token(&cluster, &["--name", "mini"]);
    let (ok, out, errors) = machine.pomona(&["--json", "join", &text, "--coordinator", &cluster.quic()]);
    assert!(ok, "{errors}");
    let joined: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(joined["approved"], false);
    machine.start_node("echo");
    eventually("it is told to wait", Duration::from_secs(5), || {
        machine.log().contains("awaits approval")
    });
    assert_ne!(ask(&cluster).0, 200);
    let nodes = cluster.json(&["nodes"]);
    let mini = nodes
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["name"] == "mini")
        .unwrap();
    assert_eq!(
        (&mini["approved"], &mini["words"]),
        (&json!(false), &joined["words"])
    );
    let (ok, _, errors) = cluster.pomona(&["node", "approve", "mini"]);
    assert!(!ok && errors.contains("--yes"), "nobody can be asked: {errors}");
    let (ok, _, errors) = cluster.pomona(&["node", "approve", "mini", "--yes"]);
    assert!(ok, "{errors}");
    eventually("the approved node answers", Duration::from_secs(15), || {
        ask(&cluster).0 == 200
    });

    // A copy of its disk, started elsewhere while it lives.
    let mut copy = machine.copy();
    copy.start_node("echo");
    eventually("the copy is refused", Duration::from_secs(10), || {
        copy.log().contains("another process")
    });
    assert_eq!(ask(&cluster).0, 200, "the first one stays");
    assert!(cluster.log().contains("second process"));
}
