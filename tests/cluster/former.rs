//! Forms clusters of machines.

use std::path::Path;
use std::time::{Duration, Instant};

use pomona_tests::{MODEL, Machine, eventually};
use serde_json::{Value, json};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What a coordinator says of itself and the others; null when it does not.
pub(crate) fn status(machine: &Machine) -> Value {
    let answer = machine.admin("GET", "/admin/v1/status", &Value::Null);
    answer.map_or(Value::Null, |(_, status)| status)
}

/// Whether all `n` coordinators vote, are in reach from here, and have a leader.
pub(crate) fn is_whole(machine: &Machine, n: usize) -> bool {
    let status = status(machine);
    let records = status["coordinators"].as_array().cloned().unwrap_or_default();
    let sound = |record: &&Value| record["votes"] == true && record["connected"] == true;
    records.iter().filter(sound).count() == n && status["raft"]["leader"].is_u64()
}

/// Makes a token at a coordinator.
pub(crate) fn token(at: &Machine, role: &str, name: &str) -> String {
    let wanted = json!({ "role": role, "name": name });
    let (status, made) = at.admin("POST", "/admin/v1/tokens", &wanted).expect("an answer");
    assert_eq!(status, 200, "{made}");
    made["token"].as_str().expect("a token").to_owned()
}

/// Starts a coordinator that founds a cluster, and waits until it leads.
pub(crate) fn lead(machine: &mut Machine) {
    machine.start_coordinator();
    eventually("the founder leads", SOON, || {
        status(machine)["raft"]["leads"] == true
    });
}

/// Lets a machine join as a node, at an address or by what it finds on its LAN.
pub(crate) fn join(at: &Machine, node: &Machine, role: &str, address: Option<&str>) {
    let token = token(at, role, "");
    let address = address.map(|address| ["--coordinator", address]);
    let arguments = ["join", token.as_str()]
        .into_iter()
        .chain(address.into_iter().flatten());
    let (ok, _, errors) = node.pomona(&arguments.collect::<Vec<_>>());
    assert!(ok, "{errors}");
}

/// Lets a machine with the default model join as a node with a real engine, the `nth` that has it loaded then.
pub(crate) fn start_engine(at: &Machine, node: &mut Machine, role: &str, nth: usize) {
    node.pull_model();
    join(at, node, role, Some(&at.quic()));
    node.start_node("mlx");
    eventually("the node has its model", Duration::from_secs(60), || {
        holders(at, MODEL) == nth
    });
}

/// Founds a cluster with a laptop, whose readings come from a script, and a machine of the rack, with real engines on a
/// core each, the first one and the second, and one BLAS thread.
pub(crate) fn pin_pair(
    coordinator: &mut Machine,
    (laptop, rack): (&mut Machine, &mut Machine),
    script: &Path,
) {
    lead(coordinator);
    laptop.configure(&format!("[probe]\nscript = {script:?}\n"));
    for (node, role, core) in [(laptop, "laptop", 0), (rack, "rack", 1)] {
        node.set("OPENBLAS_NUM_THREADS", "1");
        start_engine(coordinator, node, role, core + 1);
        node.pin_engine(core);
    }
}

/// How many nodes in reach have a model loaded.
pub(crate) fn holders(coordinator: &Machine, model: &str) -> usize {
    let status = status(coordinator);
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let loaded = |node: &&Value| node["report"]["engine"]["models"][model].is_object();
    nodes.iter().filter(loaded).count()
}

/// Founds a cluster on the first machine and lets the others join it as coordinators; `join`
/// gives the arguments after the token.
pub(crate) fn found(machines: &mut [Machine], join: impl Fn(&Machine) -> Vec<String>) {
    lead(&mut machines[0]);
    for i in 1..machines.len() {
        let token = token(&machines[0], "coordinator", "");
        let more = join(&machines[0]);
        let mut arguments = vec!["join", token.as_str()];
        arguments.extend(more.iter().map(String::as_str));
        let (ok, _, errors) = machines[i].pomona(&arguments);
        assert!(ok, "{errors}");
        machines[i].start_coordinator();
    }
    let (n, deadline) = (machines.len(), Instant::now() + SOON);
    while !machines.iter().all(|machine| is_whole(machine, n)) {
        if Instant::now() > deadline {
            for machine in machines.iter() {
                println!("{}\n{}", status(machine), machine.log());
            }
            panic!("not all {n} coordinators vote within {SOON:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
