//! The invariants of the workspace as ordinary tests, from `cargo metadata` and the sources.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pomona_tests::root;
use serde_json::Value;

fn metadata() -> Value {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo");
    serde_json::from_slice(&output.stdout).expect("metadata")
}

/// Direct dependencies of every crate of ours, tests and build scripts left out.
fn direct() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let members: BTreeSet<&str> = metadata["workspace_members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_str().unwrap())
        .collect();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .filter(|package| members.contains(package["id"].as_str().unwrap()))
        .map(|package| {
            let normal = package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|d| d["kind"].is_null());
            let names = normal.map(|d| d["name"].as_str().unwrap().to_owned()).collect();
            (package["name"].as_str().unwrap().to_owned(), names)
        })
        .collect()
}

/// Everything a crate of ours links, on any target.
fn transitive(name: &str) -> BTreeSet<String> {
    let metadata = metadata();
    let packages: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
        .collect();
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), node))
        .collect();
    let start = packages
        .iter()
        .find(|(_, n)| **n == name)
        .map(|(id, _)| *id)
        .expect("a member");
    let (mut seen, mut todo) = (BTreeSet::new(), vec![start]);
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let normal = dependency["dep_kinds"]
                .as_array()
                .unwrap()
                .iter()
                .any(|kind| kind["kind"].is_null());
            if normal {
                todo.push(dependency["pkg"].as_str().unwrap());
            }
        }
    }
    seen.into_iter().map(|id| packages[id].to_owned()).collect()
}

fn sources() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "*.rs"])
        .current_dir(root())
        .output()
        .expect("git");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| root().join(line))
        .collect()
}

fn is_test(path: &Path) -> bool {
    let inside = path.strip_prefix(root()).unwrap();
    inside.components().any(|part| part.as_os_str() == "tests")
}

#[test]
fn pure_crates_link_no_runtime_socket_mlx_or_randomness() {
    for name in [
        "pomona-common",
        "pomona-wire",
        "pomona-decide",
        "pomona-sched",
        "pomona-cluster-config",
        "pomona-store",
        "pomona-text",
        "pomona-keys",
    ] {
        let linked = transitive(name);
        for banned in [
            "tokio", "quinn", "rustls", "axum", "hyper", "mlx-rs", "openraft", "ureq",
        ] {
            assert!(!linked.contains(banned), "{name} links {banned}");
        }
    }
    for name in ["pomona-common", "pomona-decide", "pomona-sched", "pomona-keys"] {
        let linked = transitive(name);
        for banned in ["rand", "getrandom", "fastrand"] {
            assert!(!linked.contains(banned), "{name} links {banned}");
        }
    }
}

#[test]
fn each_heavy_library_lives_in_one_crate() {
    let direct = direct();
    for (library, home) in [
        ("openraft", vec!["pomona-raft"]),
        ("redb", vec!["pomona-raft"]),
        ("quinn", vec!["pomona-link"]),
        ("rustls", vec!["pomona-link"]),
        ("tokio-rustls", vec!["pomona-upstream"]),
        ("rcgen", vec!["pomona-link"]),
        ("mdns-sd", vec!["pomona-discovery"]),
        ("bincode", vec!["pomona-wire"]),
        ("mlx-rs", vec!["pomona-engine"]),
        ("mlx-sys", vec!["pomona-engine"]),
        ("tokenizers", vec!["pomona-text"]),
        ("minijinja", vec!["pomona-text"]),
        ("axum", vec!["pomona-api", "pomona-coordinator"]),
        ("macmon", vec!["pomona-probe"]),
        ("sysinfo", vec!["pomona-probe"]),
        ("rustix", vec!["pomona-clocks", "pomona-probe"]),
    ] {
        let users: Vec<&str> = direct
            .iter()
            .filter(|(_, deps)| deps.contains(library))
            .map(|(name, _)| name.as_str())
            .collect();
        let mut home = home;
        home.sort_unstable();
        assert_eq!(users, home, "users of {library}");
    }
}

#[test]
fn dependencies_point_one_way() {
    let direct = direct();
    assert!(!direct["pomona-coordinator"].contains("pomona-node"));
    assert!(!direct["pomona-node"].contains("pomona-coordinator"));
    assert!(
        direct["pomona-common"]
            .iter()
            .all(|name| !name.starts_with("pomona"))
    );
    for name in [
        "pomona-wire",
        "pomona-decide",
        "pomona-sched",
        "pomona-cluster-config",
    ] {
        let ours: Vec<&String> = direct[name]
            .iter()
            .filter(|dep| dep.starts_with("pomona"))
            .collect();
        assert_eq!(ours, ["pomona-common"], "{name}");
    }
    assert!(
        !transitive("pomona").contains("mlx-rs"),
        "only the engine links MLX"
    );
}

#[test]
fn unsafe_code_is_forbidden_outside_engine_and_probe() {
    for path in sources() {
        let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        let text = fs::read_to_string(&path).unwrap();
        // libFuzzer's macro exports C functions.
        let excepted = ["node/engine", "node/probe", "fuzz/libfuzzer"]
            .iter()
            .any(|part| path.starts_with(root().join(part)));
        if is_root && !excepted {
            assert!(text.contains("#![forbid(unsafe_code)]"), "{}", path.display());
        }
    }
}

#[test]
fn files_are_short_and_named_after_one_idea() {
    for path in sources() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            !["mod.rs", "utils.rs", "util.rs", "helpers.rs", "misc.rs"].contains(&name.as_str()),
            "{}",
            path.display()
        );
        if !is_test(&path) {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= 600, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for word in [
            concat!("TO", "DO"),
            concat!("FIX", "ME"),
            concat!("XX", "X"),
            concat!("todo", "!("),
        ] {
            assert!(!text.contains(word), "{} contains {word}", path.display());
        }
    }
}

#[test]
fn every_variable_that_is_read_is_in_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    for (name, _) in pomona_cluster_config::VARIABLES {
        assert!(readme.contains(name), "{name} is not in README.md");
    }
}

#[test]
fn every_route_is_in_the_readme_and_its_row_says_who_may() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    for row in pomona_api::ROUTES {
        let path = row.path.replace("{*id}", "NAME");
        assert!(readme.contains(&path), "{path} is not in README.md");
        assert!(matches!(row.open_to, "everybody" | "loopback"), "{path}");
    }
    let open: Vec<&str> = pomona_api::ROUTES
        .iter()
        .filter(|row| row.open_to == "everybody")
        .map(|row| row.path)
        .collect();
    assert_eq!(open, ["/healthz"], "the set that is open everywhere is closed");
}

#[test]
fn every_crate_is_in_the_map_of_the_architecture() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    for name in direct().keys() {
        assert!(map.contains(name.as_str()), "{name} is not in ARCHITECTURE.md");
    }
}

/// A planted bug that cannot be planted any more is none that is caught.
#[test]
fn every_planted_bug_can_be_planted() {
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("tests/sim/planted")).unwrap() {
        let patch = entry.unwrap().path();
        let checked = Command::new("git")
            .args(["apply", "--check"])
            .arg(&patch)
            .current_dir(root())
            .output()
            .unwrap();
        let why = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{}: {why}", patch.display());
        count += 1;
    }
    assert!(count > 10, "{count}");
}
