//! Turns a GGUF file into a model folder, once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::View;
use serde_json::{Map, Value, json};

use crate::gguf::{Gguf, GgufTensor, GgufType};
use crate::{StoreError, tokenizer_gguf};

/// Weights that share a scale in the quantised types of GGUF.
const GROUP: u64 = 32;

/// Writes `config.json`, `model.safetensors`, `tokenizer.json` and `tokenizer_config.json` into
/// `folder`, which must exist. Quantised tensors keep their bits: they become MLX triples.
///
/// # Errors
/// The file is damaged, of another architecture, or the folder cannot be written.
pub fn import_gguf(file: &Path, folder: &Path) -> Result<(), StoreError> {
    let gguf = Gguf::open(file)?;
    let architecture = gguf.text("general.architecture").unwrap_or("unknown");
    if architecture != "llama" {
        return Err(StoreError::Unsupported {
            what: format!("the architecture `{architecture}`"),
            supported: "GGUF files of the Llama family can be imported",
        });
    }
    let tokenizer = tokenizer_gguf::build(&gguf)?;
    let mut quantized = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, tensor) in &gguf.tensors {
        let Some(name) = mlx_name(name) else {
            continue;
        };
        for part in parts(tensor.kind) {
            let (key, shape) = part_name_and_shape(&name, tensor, *part);
            let view = Lazy {
                gguf: &gguf,
                tensor,
                part: *part,
                shape,
            };
            tensors.insert(key, view);
        }
        if let Some(bits) = bits(tensor.kind) {
            quantized.insert(name.trim_end_matches(".weight").to_owned(), bits);
        }
    }
    let config = config(&gguf, &tokenizer, &quantized)?;
    write_json(&folder.join("config.json"), &config)?;
    write_json(&folder.join("tokenizer.json"), &tokenizer.tokenizer)?;
    write_json(&folder.join("tokenizer_config.json"), &tokenizer.config)?;
    let weights = folder.join("model.safetensors");
    let metadata = std::collections::HashMap::from([("format".to_owned(), "mlx".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), &weights)
        .map_err(|error| StoreError::invalid(&weights, error.to_string()))?;
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<(), StoreError> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|error| StoreError::invalid(path, error.to_string()))?;
    fs::write(path, text).map_err(StoreError::io(path))
}

/// GGUF's tensor names in the words of transformers; `None` for what is not needed.
fn mlx_name(name: &str) -> Option<String> {
    let fixed = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        "rope_freqs.weight" => Some("rope_freqs.weight"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return Some(fixed.to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (what, suffix) = rest.rsplit_once('.')?;
    let module = match what {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{module}.{suffix}"))
}

fn config(
    gguf: &Gguf,
    tokenizer: &tokenizer_gguf::Tokenizer,
    quantized: &BTreeMap<String, u32>,
) -> Result<Value, StoreError> {
    let number = |key: &str| {
        gguf.number(key)
            .ok_or_else(|| StoreError::invalid(&gguf.path, format!("metadata `{key}` is missing")))
    };
    let vocab = gguf
        .tensors
        .get("token_embd.weight")
        .map(|tensor| tensor.shape[0])
        .ok_or_else(|| StoreError::invalid(&gguf.path, "tensor `token_embd.weight` is missing"))?;
    let heads = number("llama.attention.head_count")?;
    let hidden = number("llama.embedding_length")?;
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden as u64,
        "intermediate_size": number("llama.feed_forward_length")? as u64,
        "num_hidden_layers": number("llama.block_count")? as u64,
        "num_attention_heads": heads as u64,
        "num_key_value_heads": gguf.number("llama.attention.head_count_kv").unwrap_or(heads) as u64,
        "head_dim": gguf.number("llama.attention.key_length").unwrap_or(hidden / heads.max(1.0)) as u64,
        "max_position_embeddings": number("llama.context_length")? as u64,
        "rms_norm_eps": number("llama.attention.layer_norm_rms_epsilon")?,
        "rope_theta": gguf.number("llama.rope.freq_base").unwrap_or(10_000.0),
        "rope_traditional": true,
        "tie_word_embeddings": !gguf.tensors.contains_key("output.weight"),
        "vocab_size": vocab,
        "eos_token_id": tokenizer.eos,
    });
    if let Some(bits) = quantized.values().copied().min() {
        config["quantization"] = quantization(bits, quantized);
    }
    Ok(config)
}

/// The commonest bit width is the default, layers with another one are named.
fn quantization(default_bits: u32, quantized: &BTreeMap<String, u32>) -> Value {
    let mut map = Map::new();
    map.insert("group_size".into(), GROUP.into());
    map.insert("bits".into(), default_bits.into());
    for (layer, bits) in quantized.iter().filter(|(_, bits)| **bits != default_bits) {
        map.insert(layer.clone(), json!({ "group_size": GROUP, "bits": bits }));
    }
    Value::Object(map)
}

fn bits(kind: GgufType) -> Option<u32> {
    match kind {
        GgufType::F32 | GgufType::F16 => None,
        GgufType::Q4_0 | GgufType::Q4_1 => Some(4),
        GgufType::Q8_0 => Some(8),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Plain,
    Packed,
    Scales,
    Biases,
}

fn parts(kind: GgufType) -> &'static [Part] {
    match bits(kind) {
        None => &[Part::Plain],
        Some(_) => &[Part::Packed, Part::Scales, Part::Biases],
    }
}

fn part_name_and_shape(name: &str, tensor: &GgufTensor, part: Part) -> (String, Vec<usize>) {
    let mut shape: Vec<usize> = tensor.shape.iter().map(|dim| *dim as usize).collect();
    let columns = shape.last().copied().unwrap_or(0);
    let stem = name.trim_end_matches(".weight");
    let (key, columns) = match part {
        Part::Plain => (name.to_owned(), columns),
        Part::Packed => {
            let packed = columns * bits(tensor.kind).unwrap_or(32) as usize / 32;
            (name.to_owned(), packed)
        }
        Part::Scales => (format!("{stem}.scales"), columns / GROUP as usize),
        Part::Biases => (format!("{stem}.biases"), columns / GROUP as usize),
    };
    if let Some(last) = shape.last_mut() {
        *last = columns;
    }
    (key, shape)
}

/// A tensor that is read and converted when the writer comes to it, so that a large file is
/// never in memory as a whole.
struct Lazy<'a> {
    gguf: &'a Gguf,
    tensor: &'a GgufTensor,
    part: Part,
    shape: Vec<usize>,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        match (self.part, self.tensor.kind) {
            (Part::Plain, GgufType::F32) => Dtype::F32,
            (Part::Packed, _) => Dtype::U32,
            (Part::Plain | Part::Scales | Part::Biases, _) => Dtype::F16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // The header was checked against the file, so this fails only when the file changes
        // under us; the digest of the result would then not be the one of any good import.
        let bytes = self.gguf.data(self.tensor).unwrap_or_default();
        Cow::Owned(convert(&bytes, self.tensor.kind, self.part))
    }

    fn data_len(&self) -> usize {
        let size = match self.dtype() {
            Dtype::F16 => 2,
            _ => 4,
        };
        self.shape.iter().product::<usize>() * size
    }
}

/// Blocks of GGUF into one part of MLX's triple: value = scale · q + bias.
fn convert(bytes: &[u8], kind: GgufType, part: Part) -> Vec<u8> {
    if part == Part::Plain {
        return bytes.to_vec();
    }
    let (_, block) = kind.block();
    let mut out = Vec::with_capacity(bytes.len());
    for block in bytes.chunks_exact(block as usize) {
        let scale = f16::from_le_bytes([block[0], block[1]]);
        match (part, kind) {
            (Part::Scales, _) => out.extend(scale.to_le_bytes()),
            (Part::Biases, GgufType::Q4_1) => out.extend(&block[2..4]),
            (Part::Biases, GgufType::Q8_0) => {
                out.extend(f16::from_f32(scale.to_f32() * -128.0).to_le_bytes())
            }
            (Part::Biases, _) => out.extend(f16::from_f32(scale.to_f32() * -8.0).to_le_bytes()),
            (_, GgufType::Q8_0) => out.extend(block[2..].iter().map(|q| q.wrapping_add(128))),
            (_, GgufType::Q4_1) => out.extend(pack_nibbles(&block[4..])),
            (_, _) => out.extend(pack_nibbles(&block[2..])),
        }
    }
    out
}

/// GGUF keeps values 0 to 15 in the low and 16 to 31 in the high nibbles; MLX wants them in
/// order, the first in the lowest bits.
fn pack_nibbles(nibbles: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let low = nibbles
        .chunks_exact(2)
        .map(|pair| (pair[0] & 15) | (pair[1] & 15) << 4);
    let high = nibbles
        .chunks_exact(2)
        .map(|pair| pair[0] >> 4 | (pair[1] & 0xf0));
    low.chain(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(packed: &[u8], scales: &[u8], biases: &[u8], bits: usize, i: usize) -> f32 {
        let q = if bits == 8 {
            packed[i]
        } else {
            packed[i / 2] >> (4 * (i % 2)) & 15
        };
        let number = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        number(scales) * f32::from(q) + number(biases)
    }

    #[test]
    fn converted_blocks_have_the_values_of_the_original() {
        let scale = f16::from_f32(0.5).to_le_bytes();
        let nibbles: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let q4_0 = [&scale[..], &nibbles].concat();
        let expected = |i: usize| if i < 16 { i as f32 } else { (31 - i) as f32 };
        let part = |kind, part| convert(&q4_0, kind, part);
        let kind = GgufType::Q4_0;
        for i in 0..32 {
            let got = value(
                &part(kind, Part::Packed),
                &part(kind, Part::Scales),
                &part(kind, Part::Biases),
                4,
                i,
            );
            assert_eq!(got, 0.5 * (expected(i) - 8.0));
        }
        let signed: Vec<u8> = (0..32).map(|i| (i as i8 - 16) as u8).collect();
        let q8_0 = [&scale[..], &signed].concat();
        for i in 0..32 {
            let part = |part| convert(&q8_0, GgufType::Q8_0, part);
            let got = value(
                &part(Part::Packed),
                &part(Part::Scales),
                &part(Part::Biases),
                8,
                i,
            );
            assert_eq!(got, 0.5 * (i as f32 - 16.0));
        }
    }
}
