//! What nodes report, as people and scripts see it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use pomona_tests::{Cluster, admin_at, eventually, programs};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

fn history(cluster: &Cluster, path: &str) -> (u16, Value) {
    let socket = cluster.state.path().join("admin.sock");
    admin_at(&socket, "GET", &format!("/admin/v1/history/{path}"), &Value::Null).unwrap()
}

#[test]
fn readings_reach_the_history_the_metrics_and_the_watch() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("readings.json");
    std::fs::write(
        &script,
        r#"{"power_watts": 42.0, "on_battery": true, "battery_percent": 61.0, "gpu_percent": 900.0}"#,
    )
    .unwrap();
    let cluster = Cluster::configured("echo", &format!("[probe]\nscript = {script:?}\n"));
    eventually("three seconds of power are known", SOON, || {
        let (_, answer) = history(&cluster, "power/60");
        let nodes = answer["nodes"].as_object().cloned().unwrap_or_default();
        nodes.values().any(|points| {
            let points = points.as_array().cloned().unwrap_or_default();
            points.len() >= 3 && points.iter().all(|point| point[2] == 42.0 && point[1] == 1)
        })
    });
    // What cannot be true is not there.
    let (_, gpu) = history(&cluster, "gpu/60");
    assert!(
        gpu["nodes"]
            .as_object()
            .unwrap()
            .values()
            .all(|points| points == &Value::Array(vec![]))
    );
    let (code, refused) = history(&cluster, "wats/60");
    assert_eq!(code, 400);
    assert!(refused["error"].as_str().unwrap().contains("power"), "{refused}");

    let metrics = cluster.get("/metrics").1;
    for wanted in [
        "pomona_node_on_battery{",
        "pomona_node_battery_percent{",
        "pomona_node_report_age_seconds{",
    ] {
        assert!(metrics.contains(wanted), "{wanted} in\n{metrics}");
    }
    assert!(!metrics.contains("pomona_node_gpu_percent"), "{metrics}");

    let mut watch = Command::new(programs().join("pomona"))
        .args(["nodes", "--watch"])
        .env("POMONA_STATE", cluster.state.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let seen: Vec<String> = lines.map_while(Result::ok).take(4).collect();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(
        seen[0].contains("LAST MINUTE") && seen[2].contains("LAST MINUTE"),
        "{seen:?}"
    );
    let row = &seen[1];
    assert!(
        row.contains("42 W (scripted)") && row.contains("battery 61 % (scripted)"),
        "{row}"
    );
    assert!(row.contains('▅'), "{row}");
}
