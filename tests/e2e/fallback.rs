//! Requests go where the list of their class says, in its order, and are held where it says so.

use std::time::Duration;

use pomona_tests::{Cluster, MODEL, Machine, agent, eventually, greedy, stream_from};
use serde_json::Value;

use crate::offload::node;
use crate::placement::holders;
use crate::sleep::seen;

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

/// What a person asks their own machine for goes elsewhere when its queue is full, and when it is drained. With real
/// engines: the echo engine has no queue.
#[test]
fn a_full_or_drained_laptop_asks_the_cluster() {
    let _one = crate::engine_lock();
    let mut coordinator = Machine::empty();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let laptop = node(&coordinator, "laptop", "laptop", "mlx", None);
    let _mini = node(&coordinator, "mini", "rack", "mlx", None);
    let change = |arguments: &[&str]| {
        let (ok, _, errors) = coordinator.pomona(arguments);
        assert!(ok, "{errors}");
    };
    change(&["model", "place", MODEL, "--replicas", "2"]);
    let one_slot = ["interactive.max_slots=1", "interactive.reserved_slots=1"];
    change(&["knobs", "set", one_slot[0], one_slot[1]]);
    change(&["slo", "set", "interactive.queue=1"]);
    let of_interactive = |part: &str| {
        let laptop = seen(&coordinator, "laptop");
        laptop["report"]["engine"][part]["interactive"].clone()
    };
    let here = |field: &str| of_interactive("classes")[field].clone();
    eventually("both hold it", Duration::from_secs(60), || {
        let holders = holders(&coordinator);
        holders.len() == 2 && holders.iter().all(|(_, loaded)| *loaded)
    });
    eventually("the laptop knows", SOON, || {
        of_interactive("knobs")["max_slots"] == 1 && laptop.log().contains("slo of the cluster version=1")
    });
    let answered_by = || {
        let (status, node, _, answer) = ask(laptop.node, "interactive");
        assert_eq!(status, 200, "{answer}");
        node
    };
    let [of_laptop, of_mini] = ["laptop", "mini"].map(|name| id(&coordinator, name));
    // A machine that is well leaves nothing to others, however much is asked.
    (0..20).for_each(|_| assert_eq!(answered_by(), of_laptop));
    std::thread::scope(|scope| {
        for (tokens, field) in [(400, "running"), (4, "waiting")] {
            let mut body = greedy("Count", tokens);
            body["stream"] = true.into();
            body["ignore_eos"] = true.into();
            let port = laptop.node;
            scope.spawn(move || assert!(stream_from(port, &body).done));
            eventually(field, SOON, || here(field) == 1);
        }
        assert_eq!(answered_by(), of_mini, "its queue is full");
        assert_eq!(here("waiting"), 1, "and was all the time");
    });
    assert_eq!(answered_by(), of_laptop);
    change(&["node", "drain", "laptop"]);
    eventually("its models have gone", SOON, || answered_by() == of_mini);
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
