//! Installing the node or the coordinator as a service of the system: a launchd daemon on macOS, a
//! systemd unit on Linux. What is written and run is a value, which `--print` shows.
//!
//! A daemon, not an agent: macOS lets daemons that launchd starts reach the local network, and silently
//! blocks agents until somebody allows them (Apple TN3179).

mod launchd;
mod systemd;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use pomona_cluster_config::{Config, VARIABLES};

use crate::arguments::ServiceOptions;
use crate::tables;

/// How often, and after what time, launchd is asked again.
const LOADS: u32 = 12;
const AGAIN: std::time::Duration = std::time::Duration::from_secs(2);

/// What runs as a service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Service {
    /// `node` or `coordinator`: the subcommand.
    part: &'static str,
    program: PathBuf,
    /// Configuration file, if one was given.
    config: Option<PathBuf>,
    state: PathBuf,
    /// Who it runs as.
    user: String,
    /// The settings of the environment that the command was typed in.
    environment: Vec<(String, String)>,
}

/// What installing takes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Installation {
    /// Where the system looks for it.
    path: PathBuf,
    content: String,
    /// Commands that load it, each with whether it may fail.
    load: Vec<(Vec<String>, bool)>,
    /// Commands that take it away again, the file aside.
    unload: Vec<(Vec<String>, bool)>,
    /// Where its log is read.
    log: String,
}

impl Service {
    fn installation(&self) -> Installation {
        if cfg!(target_os = "macos") {
            launchd::installation(self)
        } else {
            systemd::installation(self)
        }
    }

    /// The command line.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![self.program.to_string_lossy().into_owned()];
        if let Some(config) = &self.config {
            arguments.extend(["--config".into(), config.to_string_lossy().into_owned()]);
        }
        arguments.push(self.part.into());
        arguments
    }
}

fn commands(list: &[&[&str]], may_fail: bool) -> Vec<(Vec<String>, bool)> {
    let owned = |command: &&[&str]| command.iter().map(|word| (*word).to_owned()).collect();
    list.iter().map(|command| (owned(command), may_fail)).collect()
}

/// Installs `pomona PART` as a service and starts it, or shows what that would do.
pub(crate) fn install(
    (config, file): (&Config, Option<&Path>),
    part: &'static str,
    options: &ServiceOptions,
) -> anyhow::Result<()> {
    let installation = service(config, file, part)?.installation();
    if options.print {
        tables::say(&format!(
            "# {}\n{}",
            installation.path.display(),
            installation.content
        ));
        for (command, _) in &installation.load {
            tables::say(&format!("# then: {}", command.join(" ")));
        }
        return Ok(());
    }
    refuse_sudo()?;
    // launchd makes no folder for a log.
    std::fs::create_dir_all(&config.state)
        .with_context(|| format!("cannot make {}", config.state.display()))?;
    let draft = tempfile(&installation)?;
    let target = installation.path.to_string_lossy().into_owned();
    let written = run(
        &[
            "install".into(),
            "-m".into(),
            "644".into(),
            draft.to_string_lossy().into_owned(),
            target,
        ],
        false,
    );
    let _ = std::fs::remove_file(&draft);
    written?;
    for (command, may_fail) in &installation.load {
        load(command, *may_fail)?;
    }
    tables::say(&format!(
        "`pomona {part}` runs as a service from now on, also after a restart of the machine.\nIts log: {}",
        installation.log
    ));
    Ok(())
}

/// Stops the service and removes it.
pub(crate) fn uninstall(config: &Config, part: &'static str) -> anyhow::Result<()> {
    let installation = service(config, None, part)?.installation();
    if !installation.path.exists() {
        bail!(
            "`pomona {part}` is not installed as a service: there is no {}",
            installation.path.display()
        );
    }
    for (command, may_fail) in &installation.unload {
        run(command, *may_fail)?;
    }
    run(
        &["rm".into(), installation.path.to_string_lossy().into_owned()],
        false,
    )?;
    tables::say(&format!("`pomona {part}` is no service any more."));
    Ok(())
}

/// Files of services and agents of ours that are installed.
pub(crate) fn installed() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let folders = [
        PathBuf::from("/Library/LaunchDaemons"),
        PathBuf::from("/Library/LaunchAgents"),
        home.join("Library/LaunchAgents"),
        PathBuf::from("/etc/systemd/system"),
    ];
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok());
    entries
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("dev.pomona.") || name.starts_with("pomona-")
        })
        .collect()
}

/// With sudo the service would run as root, on root's state.
fn refuse_sudo() -> anyhow::Result<()> {
    if std::env::var_os("SUDO_USER").is_some() {
        bail!("type it without sudo: it asks for a password by itself, and the service runs as you");
    }
    Ok(())
}

fn service(config: &Config, file: Option<&Path>, part: &'static str) -> anyhow::Result<Service> {
    let program = std::env::current_exe().context("this program does not know where it is")?;
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let state = absolute(&config.state);
    let mut environment: Vec<(String, String)> = VARIABLES
        .iter()
        .filter(|(name, _)| *name != "POMONA_STATE")
        .filter_map(|(name, _)| Some(((*name).to_owned(), std::env::var(name).ok()?)))
        .collect();
    environment.push(("POMONA_STATE".into(), state.to_string_lossy().into_owned()));
    Ok(Service {
        part,
        program,
        config: file.map(absolute),
        state,
        user: output("id", &["-un"])?,
        environment,
    })
}

/// As [`run`], again while an earlier service of the name is still ending: launchd refuses a new one
/// until then.
fn load(command: &[String], may_fail: bool) -> anyhow::Result<()> {
    let mut outcome = run(command, may_fail);
    for _ in 0..LOADS {
        if outcome.is_ok() || command.first().is_none_or(|program| program != "launchctl") {
            break;
        }
        std::thread::sleep(AGAIN);
        outcome = run(command, may_fail);
    }
    outcome
}

/// Runs a command with the rights of the system's owner: as it is for root, with sudo, which may ask
/// for a password, otherwise.
fn run(command: &[String], may_fail: bool) -> anyhow::Result<()> {
    let is_root = output("id", &["-u"])? == "0";
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let words = if is_root {
        words
    } else {
        [&["sudo"], &words[..]].concat()
    };
    let Some((program, arguments)) = words.split_first() else {
        return Ok(());
    };
    let status = Command::new(program)
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() && !may_fail {
        bail!("`{}` failed: {status}", words.join(" "));
    }
    Ok(())
}

fn output(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The content in a file of our own, from where it is installed.
fn tempfile(installation: &Installation) -> anyhow::Result<PathBuf> {
    let name = installation.path.file_name().unwrap_or_default();
    let draft = std::env::temp_dir().join(format!("{}-{}", std::process::id(), name.to_string_lossy()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&draft)
        .with_context(|| format!("cannot write {}", draft.display()))?;
    std::io::Write::write_all(&mut file, installation.content.as_bytes())?;
    Ok(draft)
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// A service whose every part needs care.
    pub(super) fn awkward() -> Service {
        Service {
            part: "node",
            program: "/opt/pomona & co/pomona".into(),
            config: Some("/etc/pomona \"x\".toml".into()),
            state: "/home/ada/100%".into(),
            user: "ada".into(),
            environment: vec![
                ("POMONA_QUIC".into(), "0.0.0.0:7712".into()),
                ("POMONA_NODE_NAME".into(), "Ada's <mini> \\ $HOME".into()),
                ("POMONA_STATE".into(), "/home/ada/100%".into()),
            ],
        }
    }
}
