//! What turns text into tokens and back, out of a model folder.

use std::path::Path;

use pomona_common::control::TextBundle;
use pomona_common::limits;
use serde_json::Value;

use crate::StoreError;
use crate::config::LlamaConfig;
use crate::folder::read_limited;

/// Longest configuration or template file.
const SMALL_LIMIT: u64 = 4 * 1024 * 1024;

/// Reads tokenizer, template and special tokens of a folder.
///
/// # Errors
/// `tokenizer.json` is missing or a file is not JSON.
pub fn text_bundle(folder: &Path, config: &LlamaConfig) -> Result<TextBundle, StoreError> {
    let tokenizer_json = read_limited(
        &folder.join("tokenizer.json"),
        limits::TEXT_BUNDLE_BYTES as u64 - SMALL_LIMIT,
    )?;
    let tokenizer_config = optional_json(&folder.join("tokenizer_config.json"))?;
    let generation_config = optional_json(&folder.join("generation_config.json"))?;
    let template_file = folder.join("chat_template.jinja");
    let chat_template = if template_file.exists() {
        let bytes = read_limited(&template_file, SMALL_LIMIT)?;
        String::from_utf8(bytes).map_err(|_| StoreError::invalid(&template_file, "not UTF-8"))?
    } else {
        chat_template(&tokenizer_config)
    };
    let eos_token = token_text(&tokenizer_config["eos_token"]);
    let mut stop_tokens = config.eos_token_ids.clone();
    for id in ids(&generation_config["eos_token_id"])
        .into_iter()
        .chain(added_token_id(&tokenizer_json, &eos_token))
    {
        if !stop_tokens.contains(&id) {
            stop_tokens.push(id);
        }
    }
    Ok(TextBundle {
        bos_token: token_text(&tokenizer_config["bos_token"]),
        eos_token,
        add_bos: tokenizer_config["add_bos_token"].as_bool().unwrap_or(false),
        chat_template,
        stop_tokens,
        tokenizer_json,
        vocab: config.vocab_size,
    })
}

fn optional_json(path: &Path) -> Result<Value, StoreError> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&read_limited(path, SMALL_LIMIT)?)
        .map_err(|error| StoreError::invalid(path, format!("not JSON: {error}")))
}

/// A template is a string, or a list of named ones of which `default` counts.
fn chat_template(tokenizer_config: &Value) -> String {
    match &tokenizer_config["chat_template"] {
        Value::String(template) => template.clone(),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str())
            .unwrap_or_default()
            .to_owned(),
        _ => String::new(),
    }
}

/// A special token is a string, or an object with its content.
fn token_text(value: &Value) -> String {
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .unwrap_or_default()
        .to_owned()
}

fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().filter_map(one).collect(),
        id => one(id).into_iter().collect(),
    }
}

fn added_token_id(tokenizer_json: &[u8], content: &str) -> Option<u32> {
    #[derive(serde::Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    #[derive(serde::Deserialize)]
    struct Head {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    let head: Head = serde_json::from_slice(tokenizer_json).ok()?;
    head.added_tokens
        .into_iter()
        .find(|token| !content.is_empty() && token.content == content)
        .map(|token| token.id)
}
