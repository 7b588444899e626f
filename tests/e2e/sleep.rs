//! Machines that sleep, stall, and are off for days: their clocks are moved, their processes stopped.

use std::time::{Duration, Instant};

use pomona_tests::{Machine, eventually, greedy, post_to, stream_from};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
/// A laptop that wakes is there again within this time.
const AWAKE: Duration = Duration::from_secs(5);
const HOUR: u64 = 3600;

fn coordinator() -> Machine {
    let mut coordinator = Machine::with_clocks();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    coordinator
}

fn node(at: &Machine, role: &str) -> Machine {
    let mut node = Machine::with_clocks();
    node.pull_model();
    node.join(at, &["token", "create", "--role", role, "--name", role]);
    node.start_node("echo:10");
    node
}

/// What the coordinator says of a node.
pub(crate) fn seen(at: &Machine, name: &str) -> Value {
    let nodes = at.json(&["nodes"]);
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    let found = nodes.into_iter().find(|node| node["name"] == name);
    found.unwrap_or_default()
}

fn presence(at: &Machine, name: &str) -> String {
    seen(at, name)["presence"].as_str().unwrap_or_default().to_owned()
}

fn is_loaded(at: &Machine, name: &str) -> bool {
    let models = seen(at, name)["report"]["engine"]["models"]
        .as_object()
        .map_or(0, serde_json::Map::len);
    models > 0
}

fn steps(at: &Machine, name: &str) -> u64 {
    seen(at, name)["report"]["engine"]["steps"]
        .as_u64()
        .unwrap_or_default()
}

/// The machines go on, and the node is there again within the time.
fn returns(machines: &[&Machine], at: &Machine, name: &str) {
    let began = Instant::now();
    machines.iter().for_each(|machine| machine.signal("CONT"));
    eventually("it is back, in a new session", AWAKE, || {
        let node = seen(at, name);
        node["presence"] == "here"
            && node["connected_s"]
                .as_u64()
                .is_some_and(|age_s| age_s <= began.elapsed().as_secs())
    });
    println!("{name} is back after {:?}", began.elapsed());
}

#[test]
fn a_laptop_that_sleeps_is_away_and_comes_back_and_one_that_stalls_is_not_lost() {
    let _lock = super::engine_lock();
    let coordinator = coordinator();
    let laptop = node(&coordinator, "laptop");
    eventually("the laptop holds the model", SOON, || {
        is_loaded(&coordinator, "laptop")
    });
    let mut body = greedy("Tell me a story.", 900);
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });

    // The answer begins on the laptop, which falls asleep; another node comes, and goes on.
    let port = coordinator.coordinator;
    let (streamed, _rack) = std::thread::scope(|scope| {
        let streamed = scope.spawn(|| stream_from(port, &body));
        eventually("the answer runs there", SOON, || {
            steps(&coordinator, "laptop") > 50
        });
        let rack = node(&coordinator, "rack");
        eventually("the rack holds the model", SOON, || {
            is_loaded(&coordinator, "rack")
        });
        laptop.signal("STOP");
        eventually("it is away", SOON, || presence(&coordinator, "laptop") == "away");
        (streamed.join().unwrap(), rack)
    });
    assert!(streamed.done && streamed.error.is_none(), "{:?}", streamed.error);
    assert_eq!(streamed.usage["completion_tokens"], 900);

    laptop.sleep(2 * HOUR);
    returns(&[&laptop], &coordinator, "laptop");
    eventually("it says how long it slept", AWAKE, || {
        let slept_ms = seen(&coordinator, "laptop")["slept_ms"].as_u64();
        slept_ms.is_some_and(|ms| ms / 1000 >= 2 * HOUR - 1)
    });
    // What it was working on is done elsewhere: it does not go on with it.
    std::thread::sleep(Duration::from_secs(1));
    let before = steps(&coordinator, "laptop");
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(steps(&coordinator, "laptop"), before, "no work is repeated");
    assert_eq!(
        post_to(laptop.node, "/v1/chat/completions", &greedy("Hi", 3)).0,
        200
    );

    // Five seconds of swapping are no sleep, and no end.
    let plan = coordinator.json(&["plan", "show"])["plan"].clone();
    laptop.signal("STOP");
    std::thread::sleep(Duration::from_secs(5));
    returns(&[&laptop], &coordinator, "laptop");
    eventually("it reports", SOON, || is_loaded(&coordinator, "laptop"));
    assert_eq!(
        laptop.log().matches("the machine slept").count(),
        1,
        "a stall is no sleep"
    );
    assert_eq!(
        coordinator.json(&["plan", "show"])["plan"],
        plan,
        "what it holds stays its own"
    );
}

#[test]
fn after_days_without_power_the_cluster_forms_again() {
    let _lock = super::engine_lock();
    let mut first = coordinator();
    let mut others = [Machine::with_clocks(), Machine::with_clocks()];
    for other in &mut others {
        other.join(&first, &["coordinator", "add"]);
        other.start_coordinator();
    }
    let mut node = node(&first, "rack");
    eventually("everybody is there", SOON, || {
        is_loaded(&first, "rack") && others.iter().all(|other| is_loaded(other, "rack"))
    });

    for machine in others.iter_mut().chain([&mut first, &mut node]) {
        machine.kill();
        machine.sleep(72 * HOUR);
    }
    for other in &mut others {
        other.start_coordinator();
    }
    node.start_node("echo");
    first.start_coordinator();
    for machine in others.iter().chain([&first]) {
        eventually("it is up", SOON, || machine.pomona(&["status"]).0);
        eventually("it answers", SOON, || {
            post_to(machine.coordinator, "/v1/chat/completions", &greedy("Hi", 3)).0 == 200
        });
    }
    // Its certificate of 24 hours had run out.
    assert!(
        node.log().contains("certificate renewed that had run out"),
        "{}",
        node.log()
    );

    // Machines that all sleep at once find each other again.
    let machines = [&first, &others[0], &others[1], &node];
    machines.iter().for_each(|machine| machine.signal("STOP"));
    std::thread::sleep(Duration::from_secs(3));
    machines.iter().for_each(|machine| machine.sleep(80 * HOUR));
    returns(&machines, &others[0], "rack");
    for machine in machines {
        eventually("it has noticed", SOON, || {
            machine.log().contains("the machine slept")
        });
    }
    eventually("writes are taken", SOON, || first.pomona(&["token", "create"]).0);
}

#[test]
fn under_manual_approval_who_slept_past_its_certificate_is_approved_again() {
    let _lock = super::engine_lock();
    let mut coordinator = Machine::with_clocks();
    coordinator.configure("[security]\napprove = \"manual\"\n");
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let mut node = node(&coordinator, "rack");
    let approve = || {
        let (ok, _, errors) = coordinator.pomona(&["node", "approve", "rack", "--yes"]);
        assert!(ok, "{errors}");
    };
    approve();
    eventually("it is there", SOON, || is_loaded(&coordinator, "rack"));
    for days in 1..=2 {
        node.kill();
        // Coordinator and node agree on the time.
        node.sleep(days * 30 * HOUR);
        coordinator.sleep(days * 30 * HOUR);
        node.start_node("echo");
        eventually("it is to be approved again", SOON, || {
            seen(&coordinator, "rack")["approved"] == false
        });
        std::thread::sleep(Duration::from_secs(2));
        assert_ne!(presence(&coordinator, "rack"), "here");
        approve();
        eventually("it is back", SOON, || is_loaded(&coordinator, "rack"));
        assert_eq!(seen(&coordinator, "rack")["approved"], true);
    }
    // Whoever only looks spends no approval.
    let late = 4 * 30 * HOUR;
    node.kill();
    node.sleep(late);
    coordinator.sleep(late);
    // The coordinator has slept past its own certificate as well, and notices in a moment.
    eventually("who asks is to be approved again", SOON, || {
        node.pomona(&["doctor"]);
        seen(&coordinator, "rack")["approved"] == false
    });
    approve();
    node.pomona(&["doctor"]);
    node.start_node("echo");
    eventually("it is back", SOON, || is_loaded(&coordinator, "rack"));
    // Within its certificate's life nobody is asked.
    node.kill();
    node.start_node("echo");
    eventually("it is back", SOON, || is_loaded(&coordinator, "rack"));
}
