//! The `pomona` command.

use std::process::Command;
use std::time::{Duration, Instant};

use pomona_tests::{Cluster, MODEL, programs};

#[test]
fn commands_show_chat_and_remove() {
    let cluster = Cluster::start("echo");
    assert_eq!(cluster.json(&["status"])["loaded"][0], MODEL);
    assert_eq!(cluster.json(&["nodes"])[0]["connected"], true);
    assert_eq!(cluster.json(&["models"])[0]["name"], MODEL);
    assert_eq!(cluster.json(&["model", "list"])[0]["name"], MODEL);
    for arguments in [&["status"][..], &["nodes"], &["models"], &["model", "list"]] {
        let (ok, out, _) = cluster.pomona(arguments);
        assert!(ok && !out.is_empty());
        assert!(out.lines().all(|line| line.chars().count() <= 140), "{out}");
    }
    let (ok, out, errors) = cluster.pomona(&["chat", "Hello", "--max-tokens", "5"]);
    assert!(ok && !out.trim().is_empty(), "{errors}");
    let (ok, _, errors) = cluster.pomona(&["chat", "Hello", "--model", "nobody"]);
    assert!(!ok && errors.contains("nobody"), "{errors}");

    let (ok, _, errors) = cluster.pomona(&["model", "remove", MODEL]);
    assert!(ok, "{errors}");
    let deadline = Instant::now() + Duration::from_secs(5);
    while cluster
        .json(&["models"])
        .as_array()
        .is_some_and(|models| !models.is_empty())
    {
        assert!(Instant::now() < deadline, "the model is still there");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_wrong_configuration_exits_64_with_every_problem_before_a_port_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pomona.toml");
    std::fs::write(
        &file,
        "colour = 3\n[engine.batch]\nwindow_ms = \"long\"\n[http]\nnode = \"here\"\n",
    )
    .unwrap();
    let output = Command::new(programs().join("pomona"))
        .args(["--config", file.to_str().unwrap(), "up"])
        .env("POMONA_STATE", folder.path().join("state"))
        .env("MLX_BATCH_MAX_BATCH_SIZE", "-1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{errors}");
    for word in [
        "colour",
        "window_ms",
        "http.node",
        "MLX_BATCH_MAX_BATCH_SIZE",
        "4 problems",
    ] {
        assert!(errors.contains(word), "{word}: {errors}");
    }
    assert!(!folder.path().join("state").exists(), "nothing was opened");
}

#[test]
fn commands_without_a_cluster_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(programs().join("pomona"))
        .arg("status")
        .env("POMONA_STATE", folder.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("pomona up"));
}
