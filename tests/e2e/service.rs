//! Installing services, with stand-ins for the system's commands, and the doctor.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use pomona_tests::{Machine, eventually};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// A program that writes its name and arguments to a record, then does this.
fn stand_in(folder: &Path, name: &str, then: &str) {
    let path = folder.join(name);
    let record = folder.join("record");
    let script = format!("#!/bin/sh\necho {name} \"$@\" >> {}\n{then}\n", record.display());
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_service_is_installed_with_the_settings_it_was_typed_in() {
    let machine = Machine::empty();
    let system = tempfile::tempdir().unwrap();
    let folder = system.path();
    stand_in(folder, "sudo", "exec \"$@\"");
    stand_in(folder, "systemctl", "");
    stand_in(folder, "launchctl", "");
    // install -m 644 DRAFT TARGET
    stand_in(
        folder,
        "install",
        &format!("cp \"$3\" {}/installed", folder.display()),
    );
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    stand_in(folder, "rm", "");
    let run = |arguments: &[&str]| {
        let mut command = machine.command(arguments);
        command.env_remove("SUDO_USER");
        let output = command
            .env("PATH", &path)
            .env("POMONA_NODE_NAME", "50 % \"mini\"")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let shown = run(&["node", "install-service", "--print"]);
    assert!(!folder.join("record").exists(), "showing changes nothing");
    run(&["node", "install-service"]);
    let installed = fs::read_to_string(folder.join("installed")).unwrap();
    assert!(shown.contains(&installed), "{shown}\n{installed}");
    let state = machine.state.path().to_str().unwrap();
    assert!(installed.contains(state), "{installed}");
    let record = fs::read_to_string(folder.join("record")).unwrap();
    if cfg!(target_os = "linux") {
        assert!(
            installed.contains(r#"Environment="POMONA_NODE_NAME=50 %% \"mini\"""#),
            "{installed}"
        );
        assert!(record.contains("install -m 644"), "{record}");
        assert!(
            record.contains("systemctl restart pomona-node.service"),
            "{record}"
        );
        verify(folder, &installed);
    }
}

/// systemd's own opinion of the unit, where systemd is.
fn verify(folder: &Path, unit: &str) {
    let file = folder.join("pomona-node.service");
    fs::write(&file, unit).unwrap();
    match std::process::Command::new("systemd-analyze")
        .arg("verify")
        .arg(&file)
        .output()
    {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!said.contains("pomona-node.service:"), "{said}");
        }
        Err(_) => println!("SKIPPED: systemd-analyze is not here to look at the unit"),
    }
}

fn diagnosis(machine: &Machine) -> Vec<(String, String)> {
    let (_, out, errors) = machine.pomona(&["--json", "doctor"]);
    let found: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out} {errors}"));
    let text = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
    let found = found.as_array().cloned().unwrap_or_default();
    found
        .iter()
        .map(|one| (text(one, "what"), text(one, "level")))
        .collect()
}

fn says(machine: &Machine, what: &str, level: &str) -> bool {
    diagnosis(machine).contains(&(what.to_owned(), level.to_owned()))
}

#[test]
fn the_doctor_tells_a_healthy_node_from_a_cut_off_one() {
    let _lock = super::engine_lock();
    let mut coordinator = Machine::empty();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let mut node = Machine::empty();
    assert!(
        says(&node, "place in the cluster", "warning"),
        "it has joined nothing"
    );
    node.join(&coordinator, &["token", "create"]);
    node.start_node("echo");
    eventually("its port answers", SOON, || says(&node, "node's HTTP port", "ok"));
    assert!(says(&node, "coordinators", "ok"), "{:?}", diagnosis(&node));
    assert!(says(&node, "place in the cluster", "ok"));
    coordinator.kill();
    assert!(says(&node, "coordinators", "broken"), "{:?}", diagnosis(&node));
    let (ok, out, errors) = node.pomona(&["doctor"]);
    assert!(
        !ok && out.contains("is not reached") && errors.contains("broken"),
        "{out}{errors}"
    );
}
