//! `cargo xtask sim`: figures of simulated clusters.

use crate::commands::{cargo, run};

/// Runs the simulator with these arguments; its last line is its figures as JSON. Figures of single runs lie in
/// `target/sim`.
pub(crate) fn sim(arguments: &[String]) -> anyhow::Result<()> {
    let raw = crate::target().join("sim");
    std::fs::create_dir_all(&raw)?;
    let mut command = cargo();
    command
        .args(["run", "--release", "--locked", "-q", "-p", "pomona-sim", "--"])
        .args(arguments)
        .env("POMONA_SIM_RAW", raw);
    run("simulator", &mut command)
}
