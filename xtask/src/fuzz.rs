//! `cargo xtask fuzz`: libFuzzer over the targets of `fuzz/`, on stable: it needs the coverage that
//! LLVM counts, and no sanitizer. What it finds is kept below `target/fuzz`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::commands::{cargo, output, run};

/// What `cargo fuzz --sanitizer none` passes as well: a counter for every edge, and comparisons.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";
/// Memory that no input may need, in MiB.
const MEMORY_MIB: u32 = 2048;
/// Time that no input may need, in seconds.
const SLOW_S: u32 = 10;

/// Fuzzes one target, or each of them, for so many seconds.
pub(crate) fn fuzz(target: Option<&str>, seconds: u32) -> anyhow::Result<()> {
    let corpora = crate::root().join("fuzz/corpus");
    let known = names(&corpora)?;
    let chosen: Vec<String> = match target {
        Some(target) if known.iter().any(|name| name == target) => vec![target.to_owned()],
        Some(target) => bail!("no target `{target}`; there are {}", known.join(", ")),
        None => known,
    };
    let folder = crate::target().join("fuzz");
    let host = host()?;
    run(
        "fuzz: build",
        cargo()
            .current_dir(crate::root().join("fuzz/libfuzzer"))
            .args(["build", "--release", "--locked", "--target", &host])
            .env("CARGO_TARGET_DIR", &folder)
            .env("RUSTFLAGS", FLAGS),
    )?;
    let program = folder.join(host).join("release/pomona-libfuzzer");
    for name in chosen {
        let found = folder.join("corpus").join(&name);
        fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        println!("{name}: {seconds} s");
        let artifacts = format!("-artifact_prefix={}/{name}-", folder.display());
        run(
            &format!("fuzz {name}"),
            Command::new(&program)
                .arg(&found)
                .arg(corpora.join(&name))
                .arg(format!("-max_total_time={seconds}"))
                .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
                .arg(format!("-timeout={SLOW_S}"))
                .args(["-max_len=65536", "-print_final_stats=1", &artifacts])
                .env("POMONA_FUZZ_TARGET", &name),
        )?;
    }
    Ok(())
}

/// The targets are the folders of the corpus.
fn names(corpora: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(corpora).with_context(|| format!("cannot read {}", corpora.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

fn host() -> anyhow::Result<String> {
    let said = output("rustc", Command::new("rustc").arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say where it runs")?.to_owned())
}
