//! What the cluster agrees on version by version: knobs, service levels, where requests go.

use hyper::Method;
use pomona_cluster_config::Config;
use serde_json::Value;

use crate::admin::tell;
use crate::tables;

/// Makes a new version, by whoever is at the shell, and says what that means.
pub(crate) fn change(config: &Config, path: &str, mut change: Value, done: &str) -> anyhow::Result<()> {
    change["by"] = std::env::var("USER").unwrap_or_default().into();
    tell(config, &Method::PATCH, path, &change)?;
    tables::say(done);
    Ok(())
}
