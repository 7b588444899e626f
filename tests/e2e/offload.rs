//! A laptop under load is relieved: its batch answers go on in the rack, its person's stay.

use std::path::Path;
use std::time::{Duration, Instant};

use pomona_tests::{MODEL, Machine, Streamed, agent, eventually, get_from, greedy, post_to, stream_from};
use serde_json::Value;

use crate::fallback::ask;
use crate::sleep::seen;

const SOON: Duration = Duration::from_secs(15);
/// The smoothed watts pass the limit and stay there for a minute; what runs stands for as long before it is moved.
const RELIEVED: Duration = Duration::from_secs(240);
/// Of 20 ms each on the laptop: they run until long after that.
const TOKENS: u32 = 4500;
const STREAMS: usize = 4;

fn rung(at: &Machine, name: &str) -> String {
    let rung = &seen(at, name)["relieved"]["relief"]["rung"];
    rung.as_str().unwrap_or("normal").to_owned()
}

pub(crate) fn node(at: &Machine, name: &str, role: &str, engine: &str, script: Option<&Path>) -> Machine {
    let mut machine = Machine::empty();
    machine.pull_model();
    machine.join(at, &["token", "create", "--role", role, "--name", name]);
    if let Some(script) = script {
        machine.configure(&format!("[probe]\nscript = {script:?}\n"));
    }
    machine.start_node(engine);
    machine
}

fn batch(i: usize) -> Value {
    let mut body = greedy(&format!("Line {i} of the night's work"), TOKENS);
    body["stream"] = true.into();
    body["stream_options"] = serde_json::json!({ "include_usage": true });
    body["service_tier"] = "flex".into();
    body
}

/// All at once, at the machine's own endpoint; `meanwhile` runs when they are on their way.
fn stream_all(laptop: &Machine, meanwhile: impl FnOnce()) -> Vec<Streamed> {
    std::thread::scope(|scope| {
        let stream = |i| scope.spawn(move || stream_from(laptop.node, &batch(i)));
        let clients: Vec<_> = (0..STREAMS).map(stream).collect();
        meanwhile();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

fn batch_running(at: &Machine, name: &str) -> u64 {
    let running = &seen(at, name)["report"]["engine"]["classes"]["batch"]["running"];
    running.as_u64().unwrap_or(0)
}

fn batch_slots(at: &Machine, name: &str) -> u64 {
    let slots = &seen(at, name)["report"]["engine"]["knobs"]["batch"]["max_slots"];
    slots.as_u64().unwrap_or(0)
}

/// The node that answers a request at the machine's own endpoint.
fn answered_by(laptop: &Machine, body: &Value) -> String {
    let url = format!("http://127.0.0.1:{}/v1/chat/completions", laptop.node);
    let response = agent().post(url).send_json(body).unwrap();
    assert_eq!(response.status(), 200);
    let node = response.headers().get("x-pomona-node").unwrap();
    node.to_str().unwrap().to_owned()
}

#[test]
fn a_hot_laptop_hands_its_batch_answers_to_the_rack_and_keeps_its_persons() {
    let _one = crate::engine_lock();
    let folder = tempfile::tempdir().unwrap();
    let [script, racks] = ["readings.json", "rack.json"].map(|name| folder.path().join(name));
    let write = |to: &Path, watts: f64| std::fs::write(to, format!("{{\"power_watts\": {watts}}}")).unwrap();
    let power = |watts: f64| write(&script, watts);
    power(12.0);
    write(&racks, 40.0);
    let mut coordinator = Machine::empty();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let laptop = node(&coordinator, "laptop", "laptop", "echo:20", Some(&script));
    eventually("the laptop answers", SOON, || is_loaded(&coordinator, "laptop"));

    let mut before = String::new();
    let mut metrics = String::new();
    let mut rack = None;
    let streams = stream_all(&laptop, || {
        eventually("all run here", SOON, || {
            batch_running(&coordinator, "laptop") == STREAMS as u64
        });
        rack = Some(node(&coordinator, "rack", "rack", "echo:5", Some(&racks)));
        eventually("the rack is there", SOON, || is_loaded(&coordinator, "rack"));
        before = rung(&coordinator, "laptop");
        let (ok, _, errors) = coordinator.pomona(&["node", "comfort", "laptop", "--watts", "20"]);
        assert!(ok, "{errors}");
        power(70.0);
        // Before anybody relieves it, it keeps itself cooler.
        eventually("batch stands still", SOON, || {
            batch_slots(&coordinator, "laptop") == 0
        });
        assert_eq!(rung(&coordinator, "laptop"), "normal");
        eventually("the laptop is relieved", RELIEVED, || {
            rung(&coordinator, "laptop") == "move_running"
        });
        eventually("its batch is in the rack", SOON, || {
            batch_running(&coordinator, "laptop") == 0
                && batch_running(&coordinator, "rack") == STREAMS as u64
        });
        // A person at the laptop goes on there, and more batch work goes to the rack at once.
        let mut more = greedy("Complete this", 5);
        assert_eq!(answered_by(&laptop, &more), seen(&coordinator, "laptop")["id"]);
        more["service_tier"] = "flex".into();
        assert_eq!(answered_by(&laptop, &more), seen(&coordinator, "rack")["id"]);
        metrics = get_from(laptop.node, "/metrics").1;
    });
    assert_eq!(before, "normal");
    // What the rack drew for the laptop's answers is known where they were asked.
    let usage = pomona_journal::lines(&laptop.path("node/usage")).unwrap();
    let at_rack = seen(&coordinator, "rack")["id"].clone();
    let records = usage
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let moved: Vec<Value> = records.map(|record| record["answers"][0].clone()).collect();
    let is_moved = |answer: &&Value| answer["node"] == at_rack && answer["power_source"] == "scripted";
    let told = moved
        .iter()
        .filter(is_moved)
        .filter(|answer| answer["joules"].as_f64() > Some(0.0));
    assert!(told.count() > STREAMS, "{moved:#?}");
    let why = seen(&coordinator, "laptop")["relieved"]["reason"].clone();
    let why = why.as_str().unwrap();
    assert!(why.contains("(scripted), comfortable are 20 W"), "{why}");
    let log = coordinator.log();
    assert_eq!(log.matches("answer goes on elsewhere").count(), STREAMS, "{log}");
    let gates = coordinator.json(&["gates", "show"]);
    let comfort = &gates["open"][0];
    assert_eq!(
        (&comfort["gate"], &comfort["name"]),
        (&"comfort".into(), &"laptop".into()),
        "{gates}"
    );
    let evidence = gates["transitions"][0]["samples"].as_array().unwrap();
    assert!(evidence.len() > 3, "{gates}");
    let rung = metrics
        .lines()
        .find(|line| line.starts_with("pomona_node_relief_rung{"));
    assert!(rung.is_some_and(|line| line.ends_with(" 5")), "{metrics}");

    // Where batch work may go to laptops only, it is held as long as the list says, and then told when to come.
    let list = |list: &[&str]| assert!(coordinator.pomona(&[&["fallback"], list].concat()).0);
    list(&["set", "batch=laptop,pause:3"]);
    for entry in [coordinator.coordinator, laptop.node] {
        let began = Instant::now();
        let (status, _, retry_after_s, answer) = ask(entry, "batch");
        let took = began.elapsed();
        assert_eq!((status, retry_after_s), (429, Some(30)), "{answer}");
        assert!(
            (Duration::from_secs(3)..SOON).contains(&took),
            "held for {took:?}"
        );
    }
    assert_eq!(ask(coordinator.coordinator, "interactive").0, 200);
    list(&["rollback", "0"]);

    // The same answers undisturbed, in less time.
    let mut rack = rack.unwrap();
    rack.stop();
    rack.start_node("echo");
    eventually("the rack is back", SOON, || is_loaded(&coordinator, "rack"));
    let undisturbed = stream_all(&rack, || ());
    for (i, (got, undisturbed)) in streams.iter().zip(&undisturbed).enumerate() {
        assert!(got.error.is_none() && got.done, "stream {i}: {:?}", got.error);
        assert_eq!(got.text, undisturbed.text, "stream {i}");
        assert_eq!(got.usage["completion_tokens"], TOKENS, "stream {i}");
    }
}

/// What the cluster agrees on replaces configurations, and answers say which version served them.
#[test]
fn knobs_of_the_cluster_reach_every_node_and_bad_ones_none() {
    let _one = crate::engine_lock();
    let mut coordinator = Machine::empty();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let mut rack = node(&coordinator, "rack", "rack", "echo:5", None);
    eventually("it answers", SOON, || is_loaded(&coordinator, "rack"));
    let seen_knobs = || seen(&coordinator, "rack")["report"]["engine"]["knobs"].clone();
    assert_eq!(seen_knobs()["batch"]["window_ms"], 50);
    // What the node was configured with stays as it is where the cluster says nothing of it.
    rack.stop();
    rack.set("MLX_BATCH_MAX_BATCH_SIZE", "3");
    rack.start_node("echo:5");
    let configured = || seen_knobs()["batch"]["max_slots"] == 3;
    eventually("it has its own", SOON, configured);
    for (bad, why) in [
        ("interactive.window_ms=80", "never wait"),
        ("batch.step_share=0", "step_share"),
        ("batch.windows=1", "window_ms"),
        ("batch.window_ms=ten", "whole number"),
    ] {
        let (ok, _, errors) = coordinator.pomona(&["knobs", "set", bad]);
        assert!(!ok && errors.contains(why), "{bad}: {errors}");
    }
    let change = ["knobs", "set", "batch.window_ms=200", "slice_ms=20"];
    assert!(coordinator.pomona(&change).0);
    let has = |version: u64, window: u64| {
        let knobs = seen_knobs();
        knobs["version"] == version && knobs["batch"]["window_ms"] == window
    };
    eventually("the node has them", SOON, || has(1, 200));
    assert!(configured());
    let (_, answer) = post_to(rack.node, "/v1/chat/completions", &greedy("Hello", 3));
    assert_eq!(answer["pomona"][0]["knob_version"], 1, "{answer}");
    // A restart, of either, forgets nothing; and there is a way back.
    rack.stop();
    rack.start_node("echo:5");
    eventually("the node has them again", SOON, || has(1, 200));
    assert!(coordinator.pomona(&["knobs", "set", "batch.window_ms=60"]).0);
    eventually("the node has the next", SOON, || has(2, 60));
    assert!(coordinator.pomona(&["knobs", "rollback", "1"]).0);
    eventually("the node has those of before", SOON, || has(3, 200));
    let (ok, out, _) = coordinator.pomona(&["knobs", "show"]);
    assert!(ok && out.contains("Version 3, slice_ms 20"), "{out}");
}

fn is_loaded(at: &Machine, name: &str) -> bool {
    !seen(at, name)["report"]["engine"]["models"][MODEL].is_null()
}
