//! Builds `tokenizer.json` and `tokenizer_config.json` from the metadata of a GGUF file.

use serde_json::{Map, Value, json};

use crate::StoreError;
use crate::gguf::{Gguf, MetaValue};

/// Token types of GGUF that are matched as a whole in text.
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

pub(crate) struct Tokenizer {
    pub(crate) tokenizer: Value,
    pub(crate) config: Value,
    pub(crate) eos: Option<u32>,
}

pub(crate) fn build(gguf: &Gguf) -> Result<Tokenizer, StoreError> {
    let missing = |key: &str| StoreError::invalid(&gguf.path, format!("metadata `{key}` is missing"));
    let model = gguf.text("tokenizer.ggml.model").unwrap_or("none");
    if model != "gpt2" {
        return Err(StoreError::Unsupported {
            what: format!("the GGUF tokenizer `{model}`"),
            supported: "byte-level BPE (`gpt2`) can be imported; use the model's safetensors folder instead",
        });
    }
    let Some(MetaValue::Texts(tokens)) = gguf.meta.get("tokenizer.ggml.tokens") else {
        return Err(missing("tokenizer.ggml.tokens"));
    };
    let Some(MetaValue::Texts(merges)) = gguf.meta.get("tokenizer.ggml.merges") else {
        return Err(missing("tokenizer.ggml.merges"));
    };
    let types: &[f64] = match gguf.meta.get("tokenizer.ggml.token_type") {
        Some(MetaValue::Numbers(types)) => types,
        _ => &[],
    };
    let token_text = |id: Option<u32>| id.map(|id| tokens[id as usize].clone());
    let bos = token_text(special_id(gguf, tokens, "tokenizer.ggml.bos_token_id"));
    let eos = special_id(gguf, tokens, "tokenizer.ggml.eos_token_id");
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": token_text(eos),
        "add_bos_token": gguf.number("tokenizer.ggml.add_bos_token") == Some(1.0),
        "chat_template": gguf.text("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": false,
    });
    Ok(Tokenizer {
        tokenizer: tokenizer_json(gguf, tokens, merges, types)?,
        config,
        eos,
    })
}

fn special_id(gguf: &Gguf, tokens: &[String], key: &str) -> Option<u32> {
    let id = gguf.number(key)? as u32;
    ((id as usize) < tokens.len()).then_some(id)
}

fn tokenizer_json(
    gguf: &Gguf,
    tokens: &[String],
    merges: &[String],
    types: &[f64],
) -> Result<Value, StoreError> {
    let vocab: Map<String, Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (token.clone(), id.into()))
        .collect();
    let added: Vec<Value> = tokens
        .iter()
        .enumerate()
        .filter_map(|(id, token)| {
            let kind = types.get(id).copied().unwrap_or(1.0);
            let special = kind == CONTROL;
            (special || kind == USER_DEFINED).then(|| {
                json!({ "id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": special })
            })
        })
        .collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer(gguf)?,
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges },
    }))
}

/// How text is cut before the merges, by the name GGUF gives it. The expressions are those of
/// the models' own `tokenizer.json`.
fn pre_tokenizer(gguf: &Gguf) -> Result<Value, StoreError> {
    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let split = |regex: &str| {
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
            byte_level(false),
        ]})
    };
    let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("default");
    Ok(match pre {
        "default" | "gpt-2" => byte_level(true),
        "smollm" => json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true }, byte_level(true) ]}),
        "llama-bpe" | "llama3" | "llama-v3" => split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        "qwen2" => split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        other => {
            return Err(StoreError::Unsupported {
                what: format!("the pre-tokenizer `{other}`"),
                supported: "gpt-2, smollm, llama-bpe and qwen2 are; use the model's safetensors folder instead",
            });
        }
    })
}
