//! A server of another program is pushed over the limit of a control group: the kernel kills a process that it has
//! started, and then the server; the node that fronts it counts both, the second kill quarantines its model. What the
//! server has started counts as its memory.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use pomona_tests::memory_group::MemoryGroup;
use pomona_tests::{Cluster, eventually, greedy, post_to};
use serde_json::json;

use crate::{Outcome, Scale};

/// What the cluster calls its model.
const SERVED: &str = "served";
/// What a process that the server starts holds.
const HELD: u64 = 150_000_000;
/// Until the kernel kills one: whichever grows becomes the larger one.
const ROOM: u64 = 300_000_000;
const SOON: Duration = Duration::from_secs(30);
/// From when a process is known until it is watched.
const WATCHED: Duration = Duration::from_secs(3);

/// The server; it ends with the value.
struct Server(Child);

impl Server {
    fn start(group: &MemoryGroup, port: u16) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/growing_server.py");
        let mut python = Command::new("python3");
        python.arg(script).arg(port.to_string());
        Self(group.confine(&python).spawn().expect("python3"))
    }

    fn is_dead(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where the kernel killed it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run(_scale: Scale) -> Outcome {
    let Some(group) = MemoryGroup::new() else {
        return Outcome::Skipped("control groups with a limit on memory need root");
    };
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|one| one.local_addr())
        .expect("a port")
        .port();
    let url = format!("http://127.0.0.1:{port}/v1");
    let home = Cluster::start("echo:1");
    let mut server = Server::start(&group, port);
    let adopt = ["engine", "adopt", &url, "--name", SERVED];
    eventually("it is adopted", SOON, || home.pomona(&adopt).0);
    eventually("it answers", SOON, || ask(&home, "Hi").0 == 200);
    let rss = || home.json(&["nodes"])[0]["report"]["machine"]["engine"]["rss"]["Measured"].as_u64();
    eventually("its memory is known", SOON, || rss() > Some(HELD));
    let held = rss().unwrap_or(0);
    // One that ends in another way was not killed for want of memory.
    drop(server);
    eventually("it is gone", SOON, || ask(&home, "Hi").0 != 200);
    server = Server::start(&group, port);
    eventually("it is back", SOON, || ask(&home, "Hi").0 == 200);
    assert_eq!(kills(&home), 0);
    // Its processes are looked for every ten seconds, and watched from the next second on.
    eventually("its memory is known again", SOON, || rss() > Some(HELD));
    std::thread::sleep(WATCHED);
    group.limit(group.used() + ROOM);
    eventually("what it started is killed", SOON, || {
        ask(&home, "Please have it grow").0 == 200
    });
    eventually("that kill is counted", SOON, || kills(&home) == 1);
    assert!(!server.is_dead(), "it goes on without");
    eventually("it has started another", SOON, || ask(&home, "Hi").0 == 200);
    group.limit(group.used() + ROOM);
    std::thread::scope(|scope| {
        scope.spawn(|| ask(&home, "Please grow"));
        eventually("the kernel kills it", SOON, || server.is_dead());
    });
    eventually("the kill is counted", SOON, || kills(&home) == 2);
    group.limit(8_000_000_000);
    let _server = Server::start(&group, port);
    eventually("its model is refused", SOON, || {
        ask(&home, "Hi")
            .1
            .contains("was killed with it twice within 7 days")
    });
    Outcome::Figures(json!({ "kills_seen": kills(&home), "rss_with_what_it_started_mb": held / 1_000_000 }))
}

fn ask(home: &Cluster, prompt: &str) -> (u16, String) {
    let mut body = greedy(prompt, 3);
    body["model"] = SERVED.into();
    let (status, answer) = post_to(home.coordinator, "/v1/chat/completions", &body);
    (status, answer.to_string())
}

fn kills(home: &Cluster) -> usize {
    let kills = &home.json(&["gates", "show"])["kills"][0]["at_s"];
    kills.as_array().map_or(0, Vec::len)
}
