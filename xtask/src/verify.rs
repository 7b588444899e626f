//! `cargo xtask verify`: the gate. It never writes to the work tree.

use std::path::PathBuf;
use std::process::Command;

use crate::commands::{cargo, cargo_test, exists, run};
use crate::report::Report;

/// Format, lints, dependency rules, documentation, tidiness.
pub(crate) fn verify(report: &mut Report) -> anyhow::Result<()> {
    report.step("format", || run("fmt", cargo().args(["fmt", "--all", "--check"])))?;
    report.step("clippy", || {
        run(
            "clippy",
            cargo().args([
                "clippy",
                "--release",
                "--locked",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ]),
        )
    })?;
    report.step("deny", deny)?;
    report.step("docs", || {
        run(
            "doc",
            cargo()
                .args([
                    "doc",
                    "--release",
                    "--locked",
                    "--workspace",
                    "--no-deps",
                    "--quiet",
                    "--document-private-items",
                ])
                .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"),
        )
    })?;
    report.step("tidy", || run("tidy", &mut cargo_test("tidy")))
}

/// Version of cargo-deny that is built where none is installed.
const DENY_VERSION: &str = "0.20.2";

/// Bans, licences and sources; advisories need a database that is fetched over the network.
fn deny() -> anyhow::Result<()> {
    let mut program = PathBuf::from("cargo-deny");
    if !exists("cargo-deny") {
        let tools = crate::target().join("tools");
        program = tools.join("bin/cargo-deny");
        if !program.exists() {
            println!("building cargo-deny (some minutes, once)");
            let mut install = cargo();
            install
                .args([
                    "install",
                    "cargo-deny",
                    "--version",
                    DENY_VERSION,
                    "--locked",
                    "--quiet",
                    "--no-default-features",
                ])
                // Built for one short run, so built quickly.
                .args([
                    "--config",
                    "profile.release.lto=false",
                    "--config",
                    "profile.release.opt-level=0",
                ])
                .args([
                    "--config",
                    "profile.release.codegen-units=256",
                    "--config",
                    "profile.release.debug=0",
                ])
                .arg("--root")
                .arg(&tools);
            run("cargo install cargo-deny", &mut install)?;
        }
    }
    let mut command = Command::new(program);
    command.current_dir(crate::root());
    run(
        "deny",
        command.args(["--log-level", "warn", "check", "bans", "licenses", "sources"]),
    )
}
