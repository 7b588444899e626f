//! What Pomona takes of a machine when nobody asks anything: coordinator and node in one process, and
//! the agent alone, a node that belongs to that cluster and reports once a second.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::{Running, cluster, pomona, processor_seconds, resident_mb, wait_for, work_folder};
use crate::commands::output;

/// How long is looked, in seconds.
const SECONDS: u64 = 30;
const CLUSTER: [u16; 3] = [17730, 17731, 17732];
/// The second machine has a coordinator's ports in its settings as well, and runs none.
const AGENT: [u16; 3] = [17733, 17734, 17735];

pub(super) fn idle(programs: &Path) -> anyhow::Result<Value> {
    let work = work_folder("idle")?;
    let (at, agent) = (work.join("state"), work.join("agent"));
    let running = Running::start(
        &mut cluster(programs, &at, "none", CLUSTER),
        &work.join("pomona.log"),
    )?;
    wait_for("http://127.0.0.1:17731/healthz")?;
    let run = |state: &Path, ports, arguments: &[&str]| {
        let mut command = pomona(programs, state, "none", ports);
        command.args(arguments);
        command
    };
    let create = &mut run(&at, CLUSTER, &["--json", "token", "create", "--role", "rack"]);
    let made: Value = serde_json::from_str(&output("token", create)?)?;
    let token = made["token"].as_str().context("no token")?;
    let coordinator = format!("127.0.0.1:{}", CLUSTER[2]);
    let join = ["join", token, "--coordinator", &coordinator];
    output("join", &mut run(&agent, AGENT, &join))?;
    let node = Running::start(&mut run(&agent, AGENT, &["node"]), &work.join("agent.log"))?;
    std::thread::sleep(Duration::from_secs(5));
    let processes = [&running, &node].map(|running| running.0.id());
    let mut before = [0.0; 2];
    for (before, pid) in before.iter_mut().zip(processes) {
        *before = processor_seconds(pid)?;
    }
    std::thread::sleep(Duration::from_secs(SECONDS));
    let mut percent = [0.0; 2];
    for i in 0..2 {
        percent[i] = (processor_seconds(processes[i])? - before[i]) * 100.0 / SECONDS as f64;
    }
    Ok(json!({
        "rss_mb": resident_mb(processes[0])?, "core_percent": percent[0],
        "agent_rss_mb": resident_mb(processes[1])?, "agent_core_percent": percent[1], "seconds": SECONDS,
    }))
}
