//! Configurations of other programs as ours.

use std::path::Path;

use anyhow::{Context, bail};
use pomona_cluster_config::litellm::{self, Imported};
use pomona_common::ModelName;
use serde_json::json;

use crate::arguments::ImportCommand;
use crate::tables;

/// Far longer than any configuration that people write.
const FILE_BYTES: u64 = 1024 * 1024;

pub(crate) fn run(command: &ImportCommand, json: bool) -> anyhow::Result<()> {
    let ImportCommand::Litellm { file, models } = command;
    let names = models
        .iter()
        .map(|pair| renamed(pair))
        .collect::<anyhow::Result<_>>()?;
    let imported =
        litellm::import(&read(file)?, &names).map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))?;
    if json {
        tables::print_json(&json!({
            "toml": imported.toml, "clouds": imported.clouds, "monthly": imported.monthly.map(|money| money.to_string()),
            "changed": imported.changed, "left": imported.left,
        }));
    } else {
        tables::say(&whole(&imported));
    }
    Ok(())
}

fn renamed(pair: &str) -> anyhow::Result<(String, ModelName)> {
    let Some((from, to)) = pair.split_once('=') else {
        bail!("`{pair}` is no FROM=TO, such as gpt-4o=mlx-community/Qwen3-8B");
    };
    Ok((from.to_owned(), to.parse()?))
}

fn read(file: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", file.display());
    if std::fs::metadata(file).with_context(cannot)?.len() > FILE_BYTES {
        bail!("{} is longer than any configuration", file.display());
    }
    std::fs::read_to_string(file).with_context(cannot)
}

/// All of it as one file: what is said about it are comments.
fn whole(imported: &Imported) -> String {
    let mut text = String::new();
    let mut say = |head: &str, lines: &[String]| {
        if !lines.is_empty() {
            let lines: String = lines
                .iter()
                .map(|line| format!("#   - {}\n", line.replace('\n', " ")))
                .collect();
            text.push_str(&format!("# {head}\n{lines}#\n"));
        }
    };
    say("Carried over, and worth a look:", &imported.changed);
    say("Not carried over:", &imported.left);
    let money = imported
        .monthly
        .map_or_else(|| "20".to_owned(), |money| money.to_string());
    let mut next: Vec<String> =
        vec!["add this to the configuration of a coordinator, and start it again".into()];
    next.extend(
        imported
            .clouds
            .iter()
            .map(|cloud| format!("pomona cloud approve {cloud} --days 30 --money {money} --tokens 5M")),
    );
    let clouds: String = imported
        .clouds
        .iter()
        .map(|cloud| format!("cloud:{cloud},"))
        .collect();
    next.push(format!(
        "pomona fallback set batch=rack,rented,laptop,local,{clouds}pause"
    ));
    next.push("a cloud is asked for models of the cluster's catalogue (`pomona models`): give them its names with --model FROM=TO".into());
    if imported.clouds.is_empty() {
        next.clear();
    }
    say("Next:", &next);
    format!("{text}\n{}", imported.toml.trim_end())
}
