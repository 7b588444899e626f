//! A coordinator whose disk gets full, on a file system of the test's own.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pomona_tests::{Machine, eventually, greedy, post_to};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

/// A small file system in memory, gone with the test.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// `None` where the test may not mount anything.
    fn at(folder: &'a Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(folder)
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(folder))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_coordinator_without_room_says_so_and_loses_nothing() {
    let _lock = super::engine_lock();
    let mut coordinator = Machine::empty();
    let folder = coordinator.state.path().join("coordinator");
    std::fs::create_dir_all(&folder).unwrap();
    let Some(mounted) = Mounted::at(&folder) else {
        println!("SKIPPED: the disk-full test, which needs root for a file system of its own");
        return;
    };
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let mut node = Machine::empty();
    node.pull_model();
    node.join(&coordinator, &["token", "create", "--name", "mini-0"]);
    node.start_node("echo");
    let answers = || post_to(coordinator.coordinator, "/v1/chat/completions", &greedy("Hi", 3)).0 == 200;
    eventually("it answers", SOON, answers);

    let filler = folder.join("filler");
    let filled = Command::new("dd")
        .args(["if=/dev/zero", "bs=4096"])
        .arg(format!("of={}", filler.display()))
        .output();
    assert!(!filled.unwrap().status.success(), "the disk is full");
    let rename = |i: u32| {
        let body = json!({ "name": format!("mini-{i}") });
        coordinator.admin("PATCH", &format!("/admin/v1/nodes/{}", id(&coordinator)), &body)
    };
    let (mut last, began) = (0, Instant::now());
    let refusal = loop {
        let (status, answer) = rename(last + 1).unwrap();
        if status != 200 {
            break answer["error"].as_str().unwrap().to_owned();
        }
        last += 1;
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{last} changes on a full disk"
        );
    };
    assert!(
        refusal.contains("stopped writing") && refusal.contains("disk"),
        "{refusal}"
    );
    let answer = post_to(coordinator.coordinator, "/v1/chat/completions", &greedy("Hi", 3));
    assert_eq!(
        answer.0,
        200,
        "it goes on answering from what it knows: {answer:?} {}",
        coordinator.log()
    );
    let (_, status, _) = coordinator.pomona(&["status"]);
    assert!(status.contains("STOPPED"), "{status}");

    std::fs::remove_file(&filler).unwrap();
    coordinator.kill();
    coordinator.start_coordinator();
    eventually("it leads again", SOON, || coordinator.pomona(&["status"]).0);
    let nodes = coordinator.json(&["nodes"]);
    let name = nodes[0]["name"].as_str().unwrap().to_owned();
    // The one that was refused may have been written or not.
    assert!(
        name == format!("mini-{last}") || name == format!("mini-{}", last + 1),
        "{name} after {last}"
    );
    assert!(
        coordinator.pomona(&["node", "rename", &name, "mini"]).0,
        "changes are taken again"
    );
    coordinator.stop();
    drop(mounted);
}

fn id(coordinator: &Machine) -> String {
    let (_, status) = coordinator
        .admin("GET", "/admin/v1/status", &serde_json::Value::Null)
        .unwrap();
    status["nodes"][0]["id"].as_str().unwrap().to_owned()
}
