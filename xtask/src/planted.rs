//! `cargo xtask sim planted`: bugs are planted, one after the other, into a copy of the sources, and somebody has to
//! notice.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::commands::{self, output, run};

/// Simulated hours of two hundred seeds: a bug has to show in them.
const HOURS: &str = "31.7";

/// Tests of everything that decides, keeps or carries: who looks at what the simulator has not.
const CORE: &str = "test -p pomona-common -p pomona-decide -p pomona-sched -p pomona-raft -p pomona-keys -p pomona-wire -p pomona-link -p pomona-dispatch -p pomona-api -p pomona-probe -p pomona-upstream -p pomona-node -p pomona-coordinator";

/// Who may notice a bug.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Check {
    /// The simulator.
    Sim,
    /// Tests, by these arguments of cargo.
    Tests(Vec<String>),
}

impl Check {
    fn tests(arguments: &str) -> Self {
        Check::Tests(arguments.split(' ').map(str::to_owned).collect())
    }
}

/// A bug: a patch, below a line that says what it does and one that says who is to notice.
struct Bug {
    name: String,
    does: String,
    /// Who is to notice: the first that does.
    checks: Vec<Check>,
    patch: PathBuf,
}

impl Bug {
    fn read(patch: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(patch).with_context(|| format!("cannot read {}", patch.display()))?;
        let caught_by = text.lines().find_map(|line| line.strip_prefix("Caught-by: "));
        let checks = match caught_by {
            // Patches of others need no header: anybody may notice.
            None => vec![Check::Sim, Check::tests(CORE)],
            Some("sim") => vec![Check::Sim],
            Some(test) => vec![Check::tests(test)],
        };
        Ok(Self {
            name: patch
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            does: text.lines().next().unwrap_or_default().to_owned(),
            checks,
            patch: patch.to_owned(),
        })
    }
}

/// Plants every patch of a folder; an error unless each is noticed. What is printed at the end lies in
/// `target/sim/planted.json` as well.
pub(crate) fn planted(folder: Option<&Path>) -> anyhow::Result<()> {
    let ours = crate::root().join("tests/sim/planted");
    let folder = folder.unwrap_or(&ours);
    // Patches are applied in another folder than the caller's.
    let folder = fs::canonicalize(folder).with_context(|| format!("no folder {}", folder.display()))?;
    let listed = fs::read_dir(&folder)?;
    let paths = listed.map(|entry| entry.map(|entry| entry.path()));
    let mut patches: Vec<PathBuf> = paths.collect::<Result<_, _>>()?;
    patches.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    patches.sort();
    ensure!(!patches.is_empty(), "no *.patch in {}", folder.display());
    let bugs: Vec<Bug> = patches
        .iter()
        .map(|patch| Bug::read(patch))
        .collect::<Result<_, _>>()?;

    let copy = Copy::make()?;
    println!("the sources as they are");
    let mut checks: Vec<&Check> = bugs.iter().flat_map(|bug| &bug.checks).collect();
    checks.sort_unstable();
    checks.dedup();
    for check in checks {
        copy.build(check)?;
        let (notices, told) = copy.check(check)?;
        ensure!(
            !notices,
            "{check:?} finds fault with the sources as they are: {told}"
        );
    }
    let mut rows = Vec::new();
    for bug in &bugs {
        // One that is not planted is not caught either, and keeps no other one from its turn.
        let (caught, told) = match copy.apply(&bug.patch, false) {
            Ok(()) => {
                let outcome = copy.looked_for(bug);
                copy.apply(&bug.patch, true)?;
                outcome.unwrap_or_else(|error| (false, format!("does not build: {error}")))
            }
            Err(error) => (false, format!("does not apply: {error}")),
        };
        let verdict = if caught { "caught" } else { "NOT CAUGHT" };
        println!("{verdict:10} {:14} {}\n{:25} {told}", bug.name, bug.does, "");
        rows.push(json!({ "bug": bug.name, "does": bug.does, "caught": caught, "by": told }));
    }
    let missed = rows
        .iter()
        .filter(|row| row["caught"] == Value::Bool(false))
        .count();
    let outcome = json!({ "planted": rows, "ran": bugs.len(), "skipped": [] }).to_string();
    let raw = crate::target().join("sim");
    fs::create_dir_all(&raw)?;
    fs::write(raw.join("planted.json"), &outcome)?;
    println!("{outcome}");
    if missed > 0 {
        bail!("{missed} of {} bugs were not noticed", bugs.len());
    }
    Ok(())
}

/// A copy of the sources, with a build folder of its own.
struct Copy {
    tree: PathBuf,
    build: PathBuf,
}

impl Copy {
    /// Brings the copy up to date; files that have not changed keep their times, so that little is built again.
    fn make() -> anyhow::Result<Self> {
        let folder = crate::target().join("planted");
        let copy = Self {
            tree: folder.join("tree"),
            build: folder.join("build"),
        };
        let mut list = Command::new("git");
        list.args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(crate::root());
        // What is in it and not in the sources any more would be built with it.
        let names = output("git ls-files", &mut list)?;
        copy.drop_others(&copy.tree, &names.lines().map(Path::new).collect())?;
        for name in names.lines() {
            let (from, to) = (crate::root().join(name), copy.tree.join(name));
            let Ok(bytes) = fs::read(&from) else {
                // It was deleted and is still in the index.
                continue;
            };
            if fs::read(&to).is_ok_and(|old| old == bytes) {
                continue;
            }
            if let Some(folder) = to.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok(copy)
    }

    fn drop_others(&self, folder: &Path, names: &BTreeSet<&Path>) -> anyhow::Result<()> {
        let Ok(listed) = fs::read_dir(folder) else {
            return Ok(());
        };
        for entry in listed {
            let path = entry?.path();
            let name = path.strip_prefix(&self.tree)?;
            if path.is_dir() {
                self.drop_others(&path, names)?;
            } else if !names.contains(name) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn apply(&self, patch: &Path, back: bool) -> anyhow::Result<()> {
        let mut git = Command::new("git");
        git.arg("apply");
        if back {
            git.arg("--reverse");
        }
        // There is no such folder: with ours it would take the sources around the copy for the ones that are meant.
        git.arg(patch)
            .current_dir(&self.tree)
            .env("GIT_DIR", self.build.join("none"));
        run(&format!("{}", patch.display()), &mut git)
    }

    fn cargo(&self) -> Command {
        let mut cargo = commands::cargo();
        cargo
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.build)
            // A bug leaves things unused.
            .env("RUSTFLAGS", "-Awarnings")
            .stdin(Stdio::null());
        cargo
    }

    /// Whether somebody who is to notices, and what they say.
    fn looked_for(&self, bug: &Bug) -> anyhow::Result<(bool, String)> {
        let mut told = String::new();
        for check in &bug.checks {
            self.build(check)?;
            let (caught, says) = self.check(check)?;
            if caught {
                return Ok((true, says));
            }
            told = says;
        }
        Ok((false, told))
    }

    /// Builds who is to notice: a bug that does not compile is none.
    fn build(&self, check: &Check) -> anyhow::Result<()> {
        let mut cargo = self.cargo();
        match check {
            Check::Sim => cargo.args(["build", "--release", "--locked", "-q", "-p", "pomona-sim"]),
            Check::Tests(arguments) if arguments.first().is_some_and(|first| first == "test") => {
                let (packages, _) = split(&arguments[1..]);
                cargo
                    .args(["test", "--release", "--locked", "-q", "--no-run"])
                    .args(packages)
            }
            Check::Tests(other) => bail!("a bug is caught by `sim` or by `test ...`, not by {other:?}"),
        };
        run("build", &mut cargo)
    }

    /// Whether somebody notices, and what they say.
    fn check(&self, check: &Check) -> anyhow::Result<(bool, String)> {
        let mut command = match check {
            Check::Sim => {
                let mut sim = Command::new(self.build.join("release/pomona-sim"));
                sim.args(["faults", "--until-broken", "--hours", HOURS]);
                sim
            }
            Check::Tests(arguments) => {
                let (packages, filter) = split(arguments.get(1..).unwrap_or_default());
                let mut cargo = self.cargo();
                cargo
                    .args(["test", "--release", "--locked", "-q"])
                    .args(packages)
                    .arg("--")
                    .args(filter);
                cargo
            }
        };
        let done = command
            .stderr(Stdio::null())
            .output()
            .context("cannot run the check")?;
        let told = String::from_utf8_lossy(&done.stdout);
        let says =
            |line: &&str| line.starts_with("seed ") || line.contains("panicked") || line.ends_with("FAILED");
        let first = told.lines().find(says);
        let is_caught = !done.status.success() && first.is_some();
        Ok((
            is_caught,
            first.unwrap_or("nothing was noticed").trim().to_owned(),
        ))
    }
}

/// Arguments of cargo, and behind them the names of tests.
fn split(arguments: &[String]) -> (&[String], &[String]) {
    // `-p crate --lib name` and `-p crate --test file`.
    let takes_value = |flag: &str| flag == "-p" || flag == "--test";
    let mut at = 0;
    while let Some(argument) = arguments.get(at).filter(|argument| argument.starts_with('-')) {
        at += if takes_value(argument) { 2 } else { 1 };
    }
    arguments.split_at(at.min(arguments.len()))
}
