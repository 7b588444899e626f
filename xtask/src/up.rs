//! `cargo xtask up`.

use std::path::PathBuf;
use std::process::Command;

use crate::commands::{cargo, run};
use crate::{mlx, model};

/// Builds the programs in release; gives their folder.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.args([
        "build",
        "--release",
        "--locked",
        "-p",
        "pomona",
        "-p",
        "pomona-engine",
    ]);
    if cfg!(target_os = "macos") {
        command.args(["--features", "pomona-engine/metal"]);
    }
    run("build", &mut command)?;
    Ok(crate::target().join("release"))
}

/// Sets up, builds, fetches the model, starts.
pub(crate) fn up() -> anyhow::Result<()> {
    mlx::ensure()?;
    let programs = build()?;
    let state = std::env::var_os("POMONA_STATE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pomona")))
        .unwrap_or_else(|| PathBuf::from(".pomona"));
    let pomona = programs.join("pomona");
    let name = model::ensure(&state, &pomona)?;
    println!(
        "\nmodel {name}; try in another terminal:\n  {} chat \"Hello\"\n",
        pomona.display()
    );
    println!(
        "  curl http://127.0.0.1:7711/v1/chat/completions -d '{{\"model\":\"{name}\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'\n"
    );
    run(
        "pomona up",
        Command::new(pomona).env("POMONA_STATE", state).arg("up"),
    )
}
