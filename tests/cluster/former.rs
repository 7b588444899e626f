//! Forms clusters of machines.

use std::time::{Duration, Instant};

use pomona_tests::{Machine, eventually};
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

/// Founds a cluster on the first machine and lets the others join it as coordinators; `join`
/// gives the arguments after the token.
pub(crate) fn found(machines: &mut [Machine], join: impl Fn(&Machine) -> Vec<String>) {
    machines[0].start_coordinator();
    eventually("the founder leads", SOON, || {
        status(&machines[0])["raft"]["leads"] == true
    });
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
