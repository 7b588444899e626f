//! What an operator does to one node.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use hyper::Method;
use pomona_cluster_config::Config;
use serde_json::{Value, json};

use crate::admin::{ask, tell};
use crate::arguments::NodeCommand;
use crate::{admin, leases, service, tables};

/// A drained node gets its last target, and unloads, within this time after the deadline.
const SLACK: Duration = Duration::from_secs(15);

pub(crate) fn run(config: &Config, file: Option<&Path>, command: &NodeCommand) -> anyhow::Result<()> {
    match command {
        NodeCommand::Cordon { node } => {
            open_or_close(config, node, &json!("cordoned"))?;
            tables::say(&format!("{node} takes nothing new."));
        }
        NodeCommand::Uncordon { node } => {
            open_or_close(config, node, &json!("open"))?;
            tables::say(&format!("{node} is open."));
        }
        NodeCommand::Drain { node, within, wait } => {
            open_or_close(config, node, &json!({ "draining": { "within_s": within } }))?;
            if *wait {
                wait_until_empty(config, node, Duration::from_secs(*within) + SLACK)?;
                tables::say(&format!("{node} is empty."));
            } else {
                tables::say(&format!(
                    "{node} is drained within {within} s: `pomona plan show`."
                ));
            }
        }
        NodeCommand::Approve { node, yes } => {
            let path = path_of(node)?;
            let shown = ask(config, &Method::GET, &path)?;
            let words = shown["words"].as_str().unwrap_or("-");
            let name = shown["name"].as_str().unwrap_or(node);
            if !yes && !confirmed(&format!("Does {name} show {words}? [y/N] "))? {
                bail!("not approved");
            }
            ask(config, &Method::POST, &format!("{path}/approval"))?;
            tables::say(&format!("{name} may serve; it connects within seconds."));
        }
        NodeCommand::Revoke { node } => {
            ask(config, &Method::DELETE, &path_of(node)?)?;
            tables::say(&format!("{node} is shut out."));
        }
        NodeCommand::Rename { node, name } => {
            tell(config, &Method::PATCH, &path_of(node)?, &json!({ "name": name }))?;
            tables::say(&format!("{node} is now called {name}."));
        }
        NodeCommand::Lease {
            node,
            hours,
            none: _,
            drain_minutes,
        } => leases::set(config, node, *hours, *drain_minutes)?,
        NodeCommand::Comfort {
            node,
            watts,
            off,
            usual: _,
        } => {
            let comfort = match watts {
                Some(watts) => json!({ "watts": watts }),
                None if *off => json!("off"),
                None => json!("usual"),
            };
            let path = format!("{}/comfort", path_of(node)?);
            tell(config, &Method::PUT, &path, &comfort)?;
            tables::say(&format!("{node}: comfort is set, see `pomona nodes`."));
        }
        NodeCommand::InstallService(options) => service::install((config, file), "node", options)?,
        NodeCommand::UninstallService => service::uninstall(config, "node")?,
        NodeCommand::Evict { node, yes } => leases::evict(config, node, *yes)?,
    }
    Ok(())
}

fn open_or_close(config: &Config, node: &str, availability: &Value) -> anyhow::Result<Value> {
    let path = format!("{}/availability", path_of(node)?);
    tell(config, &Method::PUT, &path, availability)
}

/// Waits until a node has given up every model.
fn wait_until_empty(config: &Config, node: &str, at_most: Duration) -> anyhow::Result<()> {
    let id = ask(config, &Method::GET, &path_of(node)?)?["id"].clone();
    let deadline = Instant::now() + at_most;
    loop {
        let status = ask(config, &Method::GET, tables::STATUS)?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let found = nodes.iter().find(|one| one["id"] == id);
        if found.is_some_and(|one| one["connected"] == false) {
            bail!("{node} is away; it is drained when it is back");
        }
        let left = found.map_or(0, |one| {
            let count = |models: &Value| models.as_object().map_or(0, serde_json::Map::len);
            count(&one["target"]["models"]) + count(&one["report"]["engine"]["models"])
        });
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{node} still holds {left} models; `pomona plan show` says which");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

pub(crate) fn confirmed(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody can be asked here: add --yes");
    }
    std::io::stderr().write_all(question.as_bytes())?;
    let mut answer = String::new();
    std::io::stdin().lock().take(16).read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The node's admin path; names may have characters that paths may not.
pub(crate) fn path_of(node: &str) -> anyhow::Result<String> {
    if node.is_empty() {
        bail!("give a name or an id, see `pomona nodes`");
    }
    Ok(format!("/admin/v1/nodes/{}", admin::encoded(node)))
}
