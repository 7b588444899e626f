//! `cargo xtask sim`: figures of simulated clusters.

use std::path::Path;

use crate::commands::{cargo, run};
use crate::planted::planted;

/// Runs the simulator with these arguments; its last line is its figures as JSON. Figures of single runs lie in
/// `target/sim`.
pub(crate) fn sim(arguments: &[String]) -> anyhow::Result<()> {
    if let Some((kind, rest)) = arguments.split_first()
        && kind == "planted"
    {
        anyhow::ensure!(
            rest.len() <= 1 && rest.iter().all(|folder| !folder.starts_with('-')),
            "`sim planted` takes one folder with patches, or nothing"
        );
        return planted(rest.first().map(Path::new));
    }
    let raw = crate::target().join("sim");
    std::fs::create_dir_all(&raw)?;
    let mut command = cargo();
    command
        .args(["run", "--release", "--locked", "-q", "-p", "pomona-sim", "--"])
        .args(arguments)
        .env("POMONA_SIM_RAW", raw);
    run("simulator", &mut command)
}
