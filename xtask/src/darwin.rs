//! `cargo xtask check-darwin`: type-check and lint for macOS on Apple silicon, from any machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::commands::{cargo, output, run, write_if_changed};
use crate::python;
use crate::report::{Report, in_ci};

const TARGET: &str = "aarch64-apple-darwin";

/// Checks every crate for the target. On Linux the C in build scripts is compiled by zig.
pub(crate) fn check(report: &mut Report) -> anyhow::Result<()> {
    let sysroot = output(
        "rustc",
        std::process::Command::new("rustc").args(["--print", "sysroot"]),
    )?;
    let library = std::path::Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(TARGET);
    if !library.exists() {
        let added = run(
            "rustup",
            std::process::Command::new("rustup").args(["target", "add", TARGET]),
        );
        if let Err(error) = added {
            if in_ci() {
                return Err(error);
            }
            report.skip(
                "check-darwin",
                "the target is not installed and rustup cannot fetch it",
            );
            return Ok(());
        }
    }
    report.step("check-darwin", || {
        let mut command = cargo();
        command.args([
            "clippy",
            "--release",
            "--locked",
            "--workspace",
            "--quiet",
            "--target",
            TARGET,
            "--features",
            "pomona-engine/metal",
            "--",
            "-D",
            "warnings",
        ]);
        if !cfg!(target_os = "macos") {
            let compiler = zig_compiler()?;
            command
                .env("CC_aarch64_apple_darwin", &compiler)
                .env("AR_aarch64_apple_darwin", "ar")
                .env("CRATE_CC_NO_DEFAULTS", "1");
        }
        run("clippy for macOS", &mut command)
    })
}

/// A C compiler for the target: zig behind a wrapper that drops what it does not know.
fn zig_compiler() -> anyhow::Result<std::path::PathBuf> {
    let packages = python::install("zig")?;
    let zig = packages.join("ziglang/zig");
    let wrapper = crate::target().join("py/zig-cc-darwin");
    let script = format!(
        r#"#!/usr/bin/env bash
# Made by `cargo xtask`: zig as a C compiler for macOS.
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    -arch|-isysroot) shift ;;
    --target=*|-mmacosx-version-min=*) ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
exec "{}" cc -target aarch64-macos "${{arguments[@]}}"
"#,
        zig.display()
    );
    write_if_changed(&wrapper, &script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    Ok(wrapper)
}
