//! The real engine is pushed over the limit of a control group: the kernel kills it, the node counts that
//! and starts it again, the second kill quarantines the model. A kill that the node's own process did not
//! live to see is counted by the next one.

use std::process::Command;
use std::time::{Duration, Instant};

use pomona_tests::memory_group::MemoryGroup;
use pomona_tests::{MODEL, Machine, eventually, greedy, send, try_stream};
use serde_json::json;

use crate::former::{SOON, holders, join, lead};
use crate::{Outcome, Scale, keep};

const STREAMS: usize = 8;
/// Each grows by some 45 kB of KV cache with every token.
const TOKENS: u32 = 1500;
/// What may still be taken while the engine is pushed: more than the node's own process needs to hand on the
/// requests. When that one is the first to find none, the kernel may kill it right after the engine, before
/// what the engine had is given back.
const ROOM: u64 = 16_000_000;
/// As good as no limit.
const PLENTY: u64 = 8_000_000_000;
const LOADS: Duration = Duration::from_secs(60);
/// Until it has grown out of its room.
const GROWS: Duration = Duration::from_secs(60);

pub(crate) fn run(_scale: Scale) -> Outcome {
    let Some(group) = MemoryGroup::new() else {
        return Outcome::Skipped("control groups with a limit on memory need root");
    };
    let (mut coordinator, mut node) = (Machine::empty(), Machine::empty());
    lead(&mut coordinator);
    node.pull_model();
    join(&coordinator, &node, "rack", Some(&coordinator.quic()));
    node.start_node_in(&group, "mlx");
    eventually("the model is there", LOADS, || holders(&coordinator, MODEL) == 1);
    // The tokenizer goes to the coordinator with the first request: not while there is no room for it.
    eventually("it answers", LOADS, || ask(&coordinator, 2).is_ok());
    let (agent, loaded) = (node.pid(), group.used());

    let began = Instant::now();
    std::thread::scope(|scope| {
        let more = || overfill(scope, coordinator.coordinator);
        push(&node, &group, more, || ());
        eventually("it is counted", SOON, || kills(&coordinator) == 1);
        // Its clients still wait, and what they asked for is tried again.
        eventually("it is started again", LOADS, || holders(&coordinator, MODEL) == 1);
        push(&node, &group, more, || ());
        eventually("the second is", SOON, || kills(&coordinator) == 2);
    });
    let took = began.elapsed().as_secs_f64();
    eventually("it is refused", SOON, || {
        let refused = ask(&coordinator, 2);
        refused.is_err_and(|why| why.contains("was killed with it twice within 7 days"))
    });
    let log = node.log();
    assert_eq!(
        log.matches("in its control group, which may have").count(),
        2,
        "{log}"
    );
    let tickets = coordinator.json(&["gates", "show"])["tickets"].to_string();
    assert!(
        tickets.contains("; the latest: for want of memory, in its control group"),
        "{tickets}"
    );
    eventually("it is unloaded", SOON, || holders(&coordinator, MODEL) == 0);
    assert_eq!(node.pid(), agent, "the node itself lives on");

    // The node's process does not see the next kill and does not survive it: the one after finds out.
    let (ok, _, errors) = coordinator.pomona(&["gates", "forgive", &name(&coordinator), MODEL]);
    assert!(ok, "{errors}");
    eventually("it answers again", LOADS, || ask(&coordinator, 2).is_ok());
    std::thread::scope(|scope| {
        let more = || overfill(scope, coordinator.coordinator);
        push(&node, &group, more, || node.signal_alone("STOP"));
        node.kill();
    });
    node.start_node_in(&group, "mlx");
    eventually("the kill is counted", SOON, || kills(&coordinator) == 1);
    let log = node.log();
    assert!(log.contains("an earlier engine was killed"), "{log}");

    let figures = json!({
        "loaded_mb": loaded / 1_000_000, "streams": STREAMS, "kills_seen": 2, "kills_found": 1,
        "two_kills_and_all_clients_told_s": took,
    });
    keep("memory", &json!({ "figures": figures }));
    Outcome::Figures(figures)
}

/// Leaves hardly any room above what is in use, asks for more than that, and waits until it was too much;
/// `meanwhile` is before the engine hears of it.
fn push(node: &Machine, group: &MemoryGroup, overfill: impl FnOnce(), meanwhile: impl FnOnce()) {
    let engine = node.engine_pid();
    // What it has already it keeps: only what is new does not fit.
    send("STOP", engine);
    group.limit(group.used() + ROOM);
    overfill();
    std::thread::sleep(Duration::from_millis(500));
    meanwhile();
    if !is_dead(engine) {
        send("CONT", engine);
    }
    eventually("it is killed", GROWS, || is_dead(engine));
    group.limit(PLENTY);
}

/// Long answers, more than fit.
fn overfill<'scope>(scope: &'scope std::thread::Scope<'scope, '_>, port: u16) {
    for i in 0..STREAMS {
        scope.spawn(move || {
            let mut body = greedy(&format!("Tell a long story number {i}"), TOKENS);
            body["stream"] = true.into();
            body["ignore_eos"] = true.into();
            // It ends well or with an error, but it ends.
            let _ = try_stream(port, &body);
        });
    }
}

fn ask(coordinator: &Machine, tokens: u32) -> Result<(), String> {
    let mut body = greedy("Hi", tokens);
    body["stream"] = true.into();
    let answer = try_stream(coordinator.coordinator, &body)?;
    match answer.error {
        None => Ok(()),
        Some(error) => Err(error.to_string()),
    }
}

fn kills(coordinator: &Machine) -> usize {
    let shown = coordinator.json(&["gates", "show"]);
    let kills = shown["kills"][0]["at_s"].as_array();
    kills.map_or(0, Vec::len)
}

fn name(coordinator: &Machine) -> String {
    let status = crate::former::status(coordinator);
    let name = status["nodes"][0]["name"].as_str();
    name.expect("a node").to_owned()
}

/// Whether a process has ended; nobody may have asked how.
fn is_dead(pid: u32) -> bool {
    let state = Command::new("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output();
    let state = state.expect("ps").stdout;
    let state = String::from_utf8_lossy(&state);
    state.trim().is_empty() || state.starts_with('Z')
}
