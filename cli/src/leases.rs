//! Until when rented machines stay.

use anyhow::bail;
use hyper::Method;
use pomona_cluster_config::Config;
use serde_json::{Value, json};

use crate::admin::{ask, tell};
use crate::node_commands::{confirmed, path_of};
use crate::tables;

/// A lease as the admin API takes it.
pub(crate) fn lease(hours: f64, drain_minutes: u64) -> Value {
    // Negative and absurd numbers become 0, which is refused by name.
    json!({ "ends_in_s": (hours * 3600.0) as u64, "drain_s": drain_minutes.saturating_mul(60) })
}

/// Gives a node a lease, or takes it.
pub(crate) fn set(config: &Config, node: &str, hours: Option<f64>, drain_minutes: u64) -> anyhow::Result<()> {
    let path = format!("{}/lease", path_of(node)?);
    match hours {
        Some(hours) => {
            tell(config, &Method::PUT, &path, &lease(hours, drain_minutes))?;
            tables::say(&format!(
                "{node} leaves in {hours} hours; it is drained {drain_minutes} minutes before."
            ));
        }
        None => {
            ask(config, &Method::DELETE, &path)?;
            tables::say(&format!("{node} stays until it is evicted or revoked."));
        }
    }
    Ok(())
}

/// Ends the lease of a node now.
pub(crate) fn evict(config: &Config, node: &str, yes: bool) -> anyhow::Result<()> {
    let question = format!("Destroy everything of the cluster on {node}, and shut it out? [y/N] ");
    if !yes && !confirmed(&question)? {
        bail!("not evicted");
    }
    ask(config, &Method::POST, &format!("{}/eviction", path_of(node)?))?;
    tables::say(&format!(
        "{node} destroys what it holds and leaves; `pomona nodes` shows when it has."
    ));
    Ok(())
}
