//! Packages from the Python index, as pip is configured here. `--target` keeps out of the
//! system's Python, which Debian does not let pip write to, and needs no venv module.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::commands::{exists, run};

/// Installs a requirements file of `xtask/mlx` into a folder below `target/py`, once. Files with
/// hashes are installed without dependencies.
pub(crate) fn install(requirements: &str) -> anyhow::Result<PathBuf> {
    pip(requirements, &[])
}

/// The same with what the file names and nothing that it depends on: for packages of which a server of
/// text needs a part only.
pub(crate) fn install_alone(requirements: &str) -> anyhow::Result<PathBuf> {
    pip(requirements, &["--no-deps"])
}

fn pip(requirements: &str, options: &[&str]) -> anyhow::Result<PathBuf> {
    let file = crate::root()
        .join("xtask/mlx")
        .join(format!("{requirements}.txt"));
    let folder = crate::target().join("py").join(requirements);
    let done = folder.join(".done");
    let wanted = std::fs::read_to_string(&file)?;
    if std::fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(folder);
    }
    if !exists("python3") {
        bail!("python3 is needed: apt-get install python3 python3-pip");
    }
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    println!("installing {requirements} (Python packages)");
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
    ])
    .args(["--no-compile", "--only-binary", ":all:"])
    .args(options)
    .arg("--target")
    .arg(&folder)
    .arg("-r")
    .arg(&file);
    if wanted.contains("--hash=") {
        pip.args(["--no-deps", "--require-hashes"]);
    }
    run("pip", &mut pip)?;
    std::fs::write(done, wanted)?;
    Ok(folder)
}

/// mlx-lm with the engine's OpenBLAS: the wheel's reference BLAS is thirty times slower.
pub(crate) fn oracle() -> anyhow::Result<PathBuf> {
    let oracle = install("oracle")?;
    with_openblas(&oracle)?;
    Ok(oracle)
}

/// Lets the MLX of a folder use the system's OpenBLAS; elsewhere than on Linux it has a better one.
pub(crate) fn with_openblas(packages: &Path) -> anyhow::Result<()> {
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    let system = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .iter()
        .map(|triple| Path::new("/usr/lib").join(triple).join("libopenblas.so.0"))
        .find(|path| path.exists())
        .context("OpenBLAS is not installed")?;
    for entry in std::fs::read_dir(packages.join("mlx_cpu.libs"))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("libblas-") && !path.is_symlink() {
            std::fs::remove_file(&path)?;
            std::os::unix::fs::symlink(&system, &path)?;
        }
    }
    Ok(())
}

/// Python with the packages of a folder.
pub(crate) fn python(packages: &Path) -> Command {
    let mut command = Command::new("python3");
    command
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}
