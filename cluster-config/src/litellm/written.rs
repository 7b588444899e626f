//! Clouds as sections of our configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use pomona_common::{CloudName, ModelName};

use super::{Cloud, Import, PROVIDERS, Place, model_of};
use crate::cloud::PARALLEL_MAX;

impl Import {
    pub(super) fn section(
        &mut self,
        toml: &mut String,
        name: &CloudName,
        (address, key): &Place,
        cloud: Cloud,
        names: &BTreeMap<String, ModelName>,
    ) {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        // Writing to a string cannot fail.
        let _ = writeln!(toml, "[cloud.{name}]\nurl = {}", quoted(address));
        if let Some(key) = key {
            let _ = writeln!(toml, "key_env = {}", quoted(key));
        }
        if address.starts_with("http://") && !is_loopback(address) {
            let _ = writeln!(
                toml,
                "# everybody on the way reads prompts and key\nallow_http = true"
            );
        }
        if let Some(parallel) = cloud.parallel {
            let most = PARALLEL_MAX as u64;
            if parallel > most {
                self.changed.push(format!(
                    "cloud:{name}: {parallel} requests at once are {most}, which is as many as there can be"
                ));
            }
            let _ = writeln!(toml, "parallel = {}", parallel.clamp(1, most));
        }
        for (setting, value) in [
            ("requests_per_minute", cloud.rpm),
            ("tokens_per_minute", cloud.tpm),
        ] {
            if let Some(value) = value {
                let _ = writeln!(toml, "{setting} = {}", value.max(1));
            }
        }
        let mut seen = BTreeSet::new();
        for one in cloud.deployments {
            let Some(model) = model_of(&one.group, names) else {
                let left = format!(
                    "`{}`: is no name that a model of the cluster can have: say which with --model {}=NAME",
                    one.group, one.group
                );
                self.left.push(left);
                continue;
            };
            if !seen.insert(model.clone()) {
                self.left.push(format!(
                    "`{}`: a second one at {address}: a cloud has a model once",
                    one.group
                ));
                continue;
            }
            let line = |prices: (&str, &str)| {
                format!(
                    "models.{} = {{ name = {}, input = {}, output = {} }}",
                    quoted(model.as_str()),
                    quoted(&one.there),
                    prices.0,
                    prices.1
                )
            };
            match &one.prices {
                Some((input, output)) => {
                    let _ = writeln!(toml, "{}", line((input, output)));
                }
                None => {
                    self.left.push(format!(
                        "`{}`: its prices are not in the file: write them into its line, for a million tokens, and take the # away",
                        one.group
                    ));
                    let _ = writeln!(toml, "# {}", line(("?", "?")));
                }
            }
        }
        toml.push('\n');
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.trim_start_matches("http://");
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|local| {
        let rest = host.strip_prefix(local);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
    })
}

/// What to call a cloud: its provider, or the first part of its host that says something.
pub(super) fn hint(provider: &str, address: &str) -> String {
    let usual = PROVIDERS
        .iter()
        .any(|(name, usual, _)| *name == provider && *usual == address);
    if usual {
        return provider.to_owned();
    }
    let host = address.split("://").nth(1).unwrap_or(address);
    let host = host.split(['/', ':']).next().unwrap_or(host);
    let mut parts = host.split('.').filter(|part| !["api", "www", ""].contains(part));
    parts.next().unwrap_or(provider).to_owned()
}

/// A name of its own, after what hints at it; the suffix stays whole.
pub(super) fn name(hint: &str, suffix: &str, taken: &mut BTreeSet<CloudName>) -> Option<CloudName> {
    let plain: String = hint.to_lowercase();
    let plain: String = plain
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(20)
        .collect();
    let plain = plain.trim_matches('-');
    let plain = if plain.is_empty() { "cloud" } else { plain };
    for nth in 1..1000 {
        let text = if nth == 1 {
            format!("{plain}{suffix}")
        } else {
            format!("{plain}{suffix}-{nth}")
        };
        let name: CloudName = text.parse().ok()?;
        if taken.insert(name.clone()) {
            return Some(name);
        }
    }
    None
}
