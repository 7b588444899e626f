//! Servers of other programs as engines.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use pomona_cluster_config::Config;
use pomona_common::ModelName;
use pomona_common::unit::{Bytes, Reading};
use pomona_decide::planner::RESERVE_BYTES;
use pomona_node::adopted::servers::{self, Found, KNOWN};
use pomona_node::adopted::{self, Adopted, GpuLease, local_address};
use serde_json::{Value, json};

use crate::arguments::EngineCommand;
use crate::tables;

/// Answers that one server makes at once, at most.
const SLOTS_MAX: u32 = 256;

pub(crate) fn run(config: &Config, command: &EngineCommand, json: bool) -> anyhow::Result<()> {
    let node = config.state.join("node");
    match command {
        EngineCommand::Detect => {
            let found = runtime()?.block_on(servers::detect(KNOWN));
            if json {
                let listed = found
                    .iter()
                    .map(|one| json!({ "who": one.who, "url": one.url, "models": one.models }));
                tables::print_json(&listed.collect());
            } else {
                offer(&found);
            }
            Ok(())
        }
        EngineCommand::Adopt {
            url,
            model,
            name,
            slots,
            context,
            key_file,
            force,
        } => {
            if !(1..=SLOTS_MAX).contains(slots) || *context == 0 {
                bail!("a server makes 1 to {SLOTS_MAX} answers at once, of at least one token");
            }
            // The node reads it as well, from wherever it was started.
            let key_file = key_file.as_ref().map(|file| {
                let absolute = std::path::absolute(file);
                absolute.with_context(|| format!("{}", file.display()))
            });
            let key_file = key_file.transpose()?;
            let server = (url.as_str(), key_file.as_deref());
            let (there, name, memory) = look(server, model.as_deref(), name.as_deref())?;
            fits(&memory, *force)?;
            let adopted = Adopted {
                url: url.trim_end_matches('/').to_owned(),
                model: there,
                slots: *slots,
                context: *context,
                memory_bytes: memory.of_server.unwrap_or_default(),
                adopted_s: pomona_clocks::wall_s(),
                key_file,
            };
            let record = adopt(&node, &adopted, &name)?;
            if json {
                tables::print_json(&record);
            } else {
                tables::say(&format!(
                    "`{}` is answered by {} from now on, as soon as a node runs here. `pomona engine release` undoes it.",
                    tables::text(&record["name"]),
                    adopted.url
                ));
            }
            Ok(())
        }
        EngineCommand::Show => show(&node, json),
        EngineCommand::Release => release(&node),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().context("no runtime")
}

fn models(node: &Path) -> PathBuf {
    node.join("models")
}

fn offer(found: &[Found]) {
    if found.is_empty() {
        let ports: Vec<String> = KNOWN
            .iter()
            .map(|(port, who)| format!("{port} ({who})"))
            .collect();
        tables::say(&format!(
            "No server answers on {}. One elsewhere can be named: `pomona engine adopt http://127.0.0.1:PORT/v1`.",
            ports.join(", ")
        ));
        return;
    }
    let rows = found.iter().map(|one| {
        let first = one.models.first().map_or("MODEL", String::as_str);
        let more = if one.models.len() > 1 {
            format!(" --model '{first}'")
        } else {
            String::new()
        };
        vec![
            one.who.to_owned(),
            one.models.join(", "),
            format!("pomona engine adopt {}{more}", one.url),
        ]
    });
    tables::table(&["PROBABLY", "MODELS", "ADOPT IT"], rows.collect());
}

/// What a server takes, and what there is.
struct Memory {
    of_server: Option<u64>,
    total: Option<u64>,
}

/// The server's model, what the cluster calls it, and what it takes once it has answered.
fn look(
    (url, key_file): (&str, Option<&Path>),
    model: Option<&str>,
    name: Option<&str>,
) -> anyhow::Result<(String, ModelName, Memory)> {
    let address = local_address(url).map_err(|why| anyhow::anyhow!("{url}: {why}"))?;
    let port = address.port;
    let client = servers::client(address, key_file).map_err(anyhow::Error::msg)?;
    let has = runtime()?.block_on(servers::models(&client)).with_context(|| {
        let key = if key_file.is_none() {
            " (one that asks for an API key: --key-file)"
        } else {
            ""
        };
        format!("{url} does not answer as a server of OpenAI's API{key}")
    })?;
    let there = match (model, has.as_slice()) {
        (Some(model), has) if has.iter().any(|one| one == model) => model.to_owned(),
        (Some(model), has) => bail!("{url} has no `{model}`; it has {}", has.join(", ")),
        (None, [only]) => only.clone(),
        (None, []) => bail!("{url} has no model"),
        (None, has) => bail!(
            "{url} has several models: say which with --model, of {}",
            has.join(", ")
        ),
    };
    let text = name.unwrap_or(&there);
    let name: ModelName = text
        .parse()
        .with_context(|| format!("the cluster cannot call a model `{text}`: give it a name with --name"))?;
    runtime()?
        .block_on(servers::first_token(&client, name.clone(), &there))
        .with_context(|| format!("{url} does not answer for `{there}`"))?;
    let bytes = |reading: Reading<Bytes>| reading.value().map(|bytes| bytes.0);
    let memory = match pomona_node::listener(port) {
        Some(pid) => {
            let (of_server, total) = pomona_node::process_memory(pid);
            Memory {
                of_server: bytes(of_server),
                total: bytes(total),
            }
        }
        None => Memory {
            of_server: None,
            total: None,
        },
    };
    Ok((there, name, memory))
}

/// A measured server, on a machine with room for the rest.
fn fits(memory: &Memory, force: bool) -> anyhow::Result<()> {
    let gib = |bytes: u64| tables::gib(bytes as f64);
    match (memory.of_server, memory.total) {
        _ if force => Ok(()),
        (Some(server), Some(total)) if server.saturating_add(RESERVE_BYTES) > total => bail!(
            "the server takes {} of {}, which leaves the system less than {}: take a smaller model, or adopt it with --force",
            gib(server),
            gib(total),
            gib(RESERVE_BYTES)
        ),
        (Some(_), Some(_)) => Ok(()),
        _ => bail!(
            "nobody can tell how much memory the server takes: is it another user's? `--force` adopts it all the same"
        ),
    }
}

fn adopt(node: &Path, adopted: &Adopted, name: &ModelName) -> anyhow::Result<Value> {
    let other = lease(node)?.filter(|lease| lease.server != adopted.url);
    if let Some(lease) = other {
        bail!(
            "the GPU is lent to {} already: `pomona engine release` first",
            lease.server
        );
    }
    let models = models(node);
    std::fs::create_dir_all(&models).with_context(|| format!("cannot use {}", models.display()))?;
    adopted.write(&models, name)?;
    let lease = GpuLease {
        server: adopted.url.clone(),
    };
    lease.write(node)?;
    Ok(json!({ "name": name, "adopted": adopted }))
}

fn lease(node: &Path) -> anyhow::Result<Option<GpuLease>> {
    GpuLease::read(node).context("who has the GPU is not readable: `pomona engine release` ends it")
}

fn show(node: &Path, json: bool) -> anyhow::Result<()> {
    let all = adopted::all(&models(node));
    let lease = lease(node)?;
    if json {
        let listed = all
            .iter()
            .map(|(name, adopted)| json!({ "name": name, "adopted": adopted }));
        let listed: Vec<Value> = listed.collect();
        tables::print_json(&json!({ "lent_to": lease.map(|lease| lease.server), "models": listed }));
        return Ok(());
    }
    match lease {
        Some(lease) => tables::say(&format!("The GPU is lent to {}.", lease.server)),
        None => tables::say("The GPU is the node's own engine's."),
    }
    let rows = all.into_iter().map(|(name, adopted)| {
        let memory = tables::gib(adopted.memory_bytes as f64);
        vec![
            name.to_string(),
            adopted.url,
            adopted.model,
            adopted.slots.to_string(),
            memory,
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if !rows.is_empty() {
        tables::table(&["MODEL", "SERVER", "THERE", "SLOTS", "MEMORY"], rows);
    }
    Ok(())
}

fn release(node: &Path) -> anyhow::Result<()> {
    let models = models(node);
    adopted::forget_all(&models).with_context(|| format!("cannot change {}", models.display()))?;
    GpuLease::end(node)?;
    tables::say(
        "The GPU is the node's own engine's again. Take the models out of the catalogue with `pomona model remove` where no other machine has them.",
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_fits_where_the_system_keeps_its_share_or_somebody_says_so() {
        let fits = |of_server, total, force| fits(&Memory { of_server, total }, force);
        let gib = 1 << 30;
        let most = 16 * gib - RESERVE_BYTES;
        assert!(fits(Some(most), Some(16 * gib), false).is_ok());
        for (of_server, total, says) in [
            (Some(most + 1), Some(16 * gib), "smaller model"),
            (Some(u64::MAX), Some(16 * gib), "smaller model"),
            (None, Some(16 * gib), "another user's"),
        ] {
            let error = fits(of_server, total, false).map_err(|error| error.to_string());
            assert!(error.is_err_and(|error| error.contains(says)), "{of_server:?}");
            assert!(fits(of_server, total, true).is_ok());
        }
    }
}
