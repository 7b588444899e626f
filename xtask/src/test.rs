//! `cargo xtask test`: what CI runs, `full` for the long figures, `cluster` for faults of a whole
//! cluster in their full length, `offload` for the one in which a hot node is relieved, `servers` for
//! those of other programs.

use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::commands::{cargo, cargo_test, run};
use crate::report::Report;
use crate::{darwin, mlx, model, python, servers, up, verify};

/// Everything of a submission; `full` adds the long figures.
pub(crate) fn test(kind: Option<&str>, report: &mut Report) -> anyhow::Result<()> {
    let full = match kind {
        None => false,
        Some("full") => true,
        Some("cluster") => return cluster(None, report),
        Some("offload") => return cluster(Some("offload"), report),
        Some("servers") => return others(report),
        Some(other) => {
            bail!("no such kind of test: `{other}` (there are `full`, `cluster`, `offload` and `servers`)")
        }
    };
    report.step("set-up", mlx::ensure)?;
    report.step("build", || up::build().map(|_| ()))?;
    let gguf = model::gguf()?;
    let clients = python::install("clients")?;
    let servers = if full { servers::install()? } else { Vec::new() };
    report.step("tests", || {
        let mut command = cargo();
        command
            .args(["test", "--release", "--locked", "--workspace", "--no-fail-fast"])
            .envs(real(&gguf))
            .env("POMONA_TEST_CLIENTS", &clients)
            .envs(servers);
        // Real processes share two cores: tests of one binary run one after the other there.
        run("cargo test", &mut command)
    })?;
    if !full {
        report.skip(
            "live comparison with mlx-lm",
            "long; `cargo xtask test full` runs it, goldens ran",
        );
        report.skip(
            "servers of other programs, adopted, in front and behind",
            "large; `cargo xtask test servers` runs them, stand-ins ran",
        );
    }
    verify::verify(report)?;
    darwin::check(report)
}

/// Where tests find the real model and the programs that were built.
fn real(gguf: &Path) -> [(&'static str, PathBuf); 2] {
    [
        ("POMONA_TEST_GGUF", gguf.to_owned()),
        ("POMONA_TEST_PROGRAMS", crate::target().join("release")),
    ]
}

/// The end-to-end tests with servers of other programs: adopted as engines, in front of a cluster and behind one.
fn others(report: &mut Report) -> anyhow::Result<()> {
    report.step("set-up", mlx::ensure)?;
    report.step("build", || up::build().map(|_| ()))?;
    let gguf = model::gguf()?;
    let servers = servers::install()?;
    report.step("tests", || {
        let mut command = cargo_test("e2e");
        command
            .args(["--", "adopted", "litellm", "--nocapture"])
            .envs(real(&gguf))
            .envs(servers);
        run("cargo test", &mut command)
    })
}

/// The scenarios of `tests/cluster` in full, or one of them; the last line is their figures as JSON.
fn cluster(only: Option<&str>, report: &mut Report) -> anyhow::Result<()> {
    report.step("set-up", mlx::ensure)?;
    report.step("build", || up::build().map(|_| ()))?;
    let gguf = model::gguf()?;
    let mut command = cargo_test("cluster");
    if let Some(scenario) = only {
        command.args(["--", scenario]);
    }
    command.envs(real(&gguf)).env("POMONA_TEST_CLUSTER", "full");
    // Not a step: the figures are the last thing that is printed.
    run("cargo test", &mut command)?;
    report.forget();
    Ok(())
}
