//! `cargo xtask test`: what CI runs, `full` for the long figures, `cluster` for faults of a whole
//! cluster in their full length, `offload` for the one in which a hot node is relieved.

use anyhow::bail;

use crate::commands::{cargo, cargo_test, run};
use crate::report::Report;
use crate::{darwin, mlx, model, python, up, verify};

/// Everything of a submission; `full` adds the long figures.
pub(crate) fn test(kind: Option<&str>, report: &mut Report) -> anyhow::Result<()> {
    let full = match kind {
        None => false,
        Some("full") => true,
        Some("cluster") => return cluster(None, report),
        Some("offload") => return cluster(Some("offload"), report),
        Some(other) => bail!("no such kind of test: `{other}` (there are `full`, `cluster` and `offload`)"),
    };
    report.step("set-up", mlx::ensure)?;
    report.step("build", || up::build().map(|_| ()))?;
    let gguf = model::gguf()?;
    let clients = python::install("clients")?;
    let oracle = if full { Some(python::oracle()?) } else { None };
    let litellm = if full {
        Some(python::install("litellm")?)
    } else {
        None
    };
    report.step("tests", || {
        let mut command = cargo();
        command
            .args(["test", "--release", "--locked", "--workspace", "--no-fail-fast"])
            .env("POMONA_TEST_GGUF", &gguf)
            .env("POMONA_TEST_CLIENTS", &clients)
            .env("POMONA_TEST_PROGRAMS", crate::target().join("release"));
        if let Some(oracle) = &oracle {
            command.env("POMONA_TEST_ORACLE", oracle);
        }
        if let Some(litellm) = &litellm {
            command.env("POMONA_TEST_LITELLM", litellm);
        }
        // Real processes share two cores: tests of one binary run one after the other there.
        run("cargo test", &mut command)
    })?;
    if !full {
        report.skip(
            "live comparison with mlx-lm",
            "long; `cargo xtask test full` runs it, goldens ran",
        );
        report.skip(
            "LiteLLM in front and behind",
            "580 MB of packages; `cargo xtask test full` runs it",
        );
    }
    verify::verify(report)?;
    darwin::check(report)
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
    command
        .env("POMONA_TEST_GGUF", &gguf)
        .env("POMONA_TEST_CLUSTER", "full")
        .env("POMONA_TEST_PROGRAMS", crate::target().join("release"));
    // Not a step: the figures are the last thing that is printed.
    run("cargo test", &mut command)?;
    report.forget();
    Ok(())
}
