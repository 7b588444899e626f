//! Requests go where the list of their class says, in its order, and are held where it says so.

use std::time::Duration;

use pomona_tests::{Cluster, MODEL, Machine, agent, eventually, greedy};
use serde_json::Value;

use crate::placement::holders;

const SOON: Duration = Duration::from_secs(20);

/// Status, the node that answered, when to come back, and the answer.
pub(crate) fn ask(port: u16, class: &str) -> (u16, String, Option<u64>, Value) {
    let mut response = agent()
        .post(format!("http://127.0.0.1:{port}/v1/chat/completions"))
        .header("x-pomona-class", class)
        .send_json(greedy("Hi", 2))
        .unwrap();
    let header = |name: &str| {
        let value = response.headers().get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    let (node, retry) = (header("x-pomona-node"), header("retry-after"));
    let retry = retry.and_then(|seconds| seconds.parse().ok());
    let answer = response.body_mut().read_json().unwrap_or_default();
    (
        response.status().as_u16(),
        node.unwrap_or_default(),
        retry,
        answer,
    )
}

fn id(at: &Machine, name: &str) -> String {
    let nodes = at.json(&["nodes"]);
    let nodes = nodes.as_array().or_else(|| nodes["nodes"].as_array()).unwrap();
    let node = nodes.iter().find(|node| node["name"] == name).unwrap();
    node["id"].as_str().unwrap().to_owned()
}

#[test]
fn requests_follow_the_list_of_their_class() {
    let _one = crate::engine_lock();
    let mut coordinator = Machine::empty();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let machines = [("laptop", "laptop"), ("mini", "rack"), ("hired", "rented")].map(|(name, role)| {
        let mut machine = Machine::empty();
        machine.pull_model();
        let token = [
            "token",
            "create",
            "--role",
            role,
            "--name",
            name,
            "--lease-hours",
            "8",
        ];
        // Only rented machines have a lease.
        let named = if role == "rented" { &token[..] } else { &token[..6] };
        machine.join(&coordinator, named);
        machine.start_node("echo:1");
        machine
    });
    let [laptop, mini, hired] = ["laptop", "mini", "hired"];
    assert!(
        coordinator
            .pomona(&["model", "place", MODEL, "--replicas", "3"])
            .0
    );
    eventually("all hold it", SOON, || {
        let holders = holders(&coordinator);
        holders.len() == 3 && holders.iter().all(|(_, loaded)| *loaded)
    });
    let node = |name: &str| id(&coordinator, name);
    let answered_by = |port, class| {
        let (status, node, _, answer) = ask(port, class);
        assert_eq!(status, 200, "{answer}");
        node
    };
    let at_cluster = coordinator.coordinator;
    for class in ["interactive", "background", "batch"] {
        assert_eq!(answered_by(at_cluster, class), node(mini), "{class}");
    }
    assert_eq!(answered_by(machines[0].node, "interactive"), node(laptop));
    assert_eq!(answered_by(machines[0].node, "batch"), node(mini));

    for (bad, why) in [
        ("batch=rak,pause", "`rak` is nowhere to go"),
        ("batch=rack,pause,rented", "pause ends a list"),
        ("batch=pause:5", "names nobody who answers"),
        ("interactive=rack,local", "local comes first"),
        ("batch=rack,local,rented", "after all kinds"),
        ("bulk=rack", "unknown class"),
        ("batch", "no CLASS=LIST"),
    ] {
        let (ok, _, errors) = coordinator.pomona(&["fallback", "set", bad]);
        assert!(!ok && errors.contains(why), "{bad}: {errors}");
    }
    let set = |list: &str| {
        let (ok, _, errors) = coordinator.pomona(&["fallback", "set", list]);
        assert!(ok, "{errors}");
    };
    set("batch=rented,laptop");
    assert_eq!(answered_by(at_cluster, "batch"), node(hired));
    assert_eq!(answered_by(at_cluster, "interactive"), node(mini), "its own list");
    set("batch=local,rack");
    eventually("the laptop knows", SOON, || {
        answered_by(machines[0].node, "batch") == node(laptop)
    });
    assert_eq!(coordinator.json(&["fallback", "show"])["version"], 2);

    // Drained machines answer last, and where the list names nobody else they still do.
    set("batch=rack,rented,pause:2");
    assert!(coordinator.pomona(&["node", "drain", mini]).0);
    eventually("the next one answers", SOON, || {
        answered_by(at_cluster, "batch") == node(hired)
    });

    // Nobody in the list holds it: that is said, whatever others hold. What was begun when they let it go would look
    // for another place for minutes.
    assert!(coordinator.pomona(&["node", "drain", hired]).0);
    eventually("they let it go", SOON, || holders(&coordinator).len() == 1);
    eventually("nobody in the list has it", SOON, || {
        let (status, _, _, answer) = ask(at_cluster, "batch");
        status == 503 && answer.to_string().contains("rack, rented, pause:2")
    });
    assert_eq!(answered_by(at_cluster, "interactive"), node(laptop));

    assert!(coordinator.pomona(&["fallback", "rollback", "0"]).0);
    assert_eq!(answered_by(at_cluster, "batch"), node(laptop));
}

/// Whatever the engine itself takes: the memory is the system's.
#[test]
fn a_machine_short_of_memory_takes_only_what_a_person_waits_for() {
    let _one = crate::engine_lock();
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("readings.json");
    let pressure =
        |percent: u32| std::fs::write(&script, format!("{{\"pressure_percent\": {percent}}}")).unwrap();
    pressure(40);
    let cluster = Cluster::configured("echo:1", &format!("[probe]\nscript = {script:?}\n"));
    cluster.wait_ready();
    let anywhere = "local,laptop,rack";
    let lists = ["background", "batch"].map(|class| format!("{class}={anywhere}"));
    assert!(cluster.pomona(&["fallback", "set", &lists[0], &lists[1]]).0);
    let status = |class| ask(cluster.node, class).0;
    for class in ["interactive", "background", "batch"] {
        eventually("it is taken", SOON, || status(class) == 200);
    }
    pressure(90);
    for class in ["background", "batch"] {
        eventually("it is refused", SOON, || {
            let (status, _, retry_after_s, answer) = ask(cluster.node, class);
            status == 429 && retry_after_s.is_some() && answer.to_string().contains("short of memory")
        });
    }
    assert_eq!(status("interactive"), 200);
    pressure(40);
    eventually("it is taken again", SOON, || status("background") == 200);
}
