//! `config.json` of the Llama family, validated.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Shape of a Llama-family model; field names as in `config.json` of Hugging Face transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width inside the MLP.
    pub intermediate_size: u32,
    /// Number of layers.
    pub num_hidden_layers: u32,
    /// Query heads.
    pub num_attention_heads: u32,
    /// Key and value heads; query heads are a multiple of them.
    pub num_key_value_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Longest context in tokens.
    pub context: u32,
    /// Epsilon of RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Interleaved pairs (as in the original Llama code and in GGUF) instead of halves.
    pub rope_traditional: bool,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// The head shares the embedding's weights.
    pub tie_word_embeddings: bool,
    /// How weights are quantised; `None` when they are not.
    pub quantization: Option<Quantization>,
    /// Tokens that end an answer, as far as `config.json` names them.
    pub eos_token_ids: Vec<u32>,
}

/// How rotary frequencies are stretched for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by a factor (Chen et al., 2023).
    Linear(f32),
    /// Llama 3.1: low frequencies divided, high ones kept, a smooth ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths longer than context over this are divided.
        low_freq_factor: f32,
        /// Wavelengths shorter than context over this are kept.
        high_freq_factor: f32,
        /// Context the model was trained with first.
        original_context: f32,
    },
}

/// Affine quantisation of MLX.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantization {
    /// For all layers that are not named.
    pub default: Affine,
    /// Layers with their own parameters; `None` is a layer left in floating point.
    pub overrides: BTreeMap<String, Option<Affine>>,
}

/// Group size and bits of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affine {
    /// Weights that share a scale and a bias.
    pub group_size: u32,
    /// Bits a weight.
    pub bits: u32,
}

impl Quantization {
    /// Parameters of a layer by its path (`model.layers.0.mlp.up_proj`).
    pub fn of(&self, layer: &str) -> Option<Affine> {
        self.overrides.get(layer).copied().unwrap_or(Some(self.default))
    }
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    vocab_size: u32,
    max_position_embeddings: Option<u32>,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    #[serde(default)]
    rope_traditional: bool,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    tie_word_embeddings: Option<bool>,
    quantization: Option<Value>,
    sliding_window: Option<u32>,
    hidden_act: Option<String>,
    eos_token_id: Option<Value>,
}

impl LlamaConfig {
    /// Parses and validates `config.json`.
    ///
    /// # Errors
    /// What is missing, out of range or not supported, in one line.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let model_type = raw.model_type.as_deref().unwrap_or("llama");
        if !matches!(model_type, "llama" | "mistral") {
            return Err(format!("model_type `{model_type}` is not of the Llama family"));
        }
        if raw.sliding_window.is_some() {
            return Err("sliding_window attention is not supported".into());
        }
        if !matches!(raw.hidden_act.as_deref(), None | Some("silu" | "swish")) {
            return Err("hidden_act must be silu".into());
        }
        let rope = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
        let theta_there = rope
            .and_then(|rope| rope.get("rope_theta"))
            .and_then(Value::as_f64);
        let heads = raw.num_attention_heads;
        let config = Self {
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / heads.max(1)),
            vocab_size: raw.vocab_size,
            context: raw.max_position_embeddings.unwrap_or(2048),
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: raw
                .rope_theta
                .or(theta_there.map(|t| t as f32))
                .unwrap_or(10_000.0),
            rope_traditional: raw.rope_traditional,
            rope_scaling: rope.map_or(Ok(RopeScaling::None), rope_scaling)?,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(model_type == "llama"),
            quantization: raw.quantization.as_ref().map(quantization).transpose()?,
            eos_token_ids: token_ids(raw.eos_token_id.as_ref()),
        };
        config.check_ranges()?;
        Ok(config)
    }

    fn check_ranges(&self) -> Result<(), String> {
        let in_range = |name: &str, value: u32, max: u32| {
            if (1..=max).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} is {value}, expected 1 to {max}"))
            }
        };
        in_range("hidden_size", self.hidden_size, 1 << 16)?;
        in_range("intermediate_size", self.intermediate_size, 1 << 20)?;
        in_range("num_hidden_layers", self.num_hidden_layers, 1024)?;
        in_range("num_attention_heads", self.num_attention_heads, 1024)?;
        in_range("num_key_value_heads", self.num_key_value_heads, 1024)?;
        in_range("head_dim", self.head_dim, 1024)?;
        in_range("vocab_size", self.vocab_size, 1 << 20)?;
        in_range("max_position_embeddings", self.context, 1 << 24)?;
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err("num_attention_heads is not a multiple of num_key_value_heads".into());
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err("head_dim is odd".into());
        }
        let positive = |x: f32| x.is_finite() && x > 0.0;
        if !positive(self.rms_norm_eps) || !positive(self.rope_theta) {
            return Err("rms_norm_eps and rope_theta must be positive".into());
        }
        Ok(())
    }

    /// Numbers of KV cache that one token adds, keys and values of all layers.
    pub fn kv_numbers_per_token(&self) -> u64 {
        2 * u64::from(self.num_hidden_layers) * u64::from(self.num_key_value_heads) * u64::from(self.head_dim)
    }
}

fn rope_scaling(value: &Value) -> Result<RopeScaling, String> {
    let kind = value
        .get("rope_type")
        .or_else(|| value.get("type"))
        .and_then(Value::as_str)
        .unwrap_or("default");
    let number = |name: &str| {
        value
            .get(name)
            .and_then(Value::as_f64)
            .map(|x| x as f32)
            .filter(|x| x.is_finite() && *x > 0.0)
            .ok_or_else(|| format!("rope_scaling.{name} must be a positive number"))
    };
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear(number("factor")?),
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: number("original_max_position_embeddings")?,
        },
        other => return Err(format!("rope_scaling type `{other}` is not supported")),
    })
}

fn quantization(value: &Value) -> Result<Quantization, String> {
    let object = value.as_object().ok_or("quantization must be an object")?;
    if let Some(mode) = object.get("mode").and_then(Value::as_str)
        && mode != "affine"
    {
        return Err(format!(
            "quantization mode `{mode}` is not supported, only affine"
        ));
    }
    let mut overrides = BTreeMap::new();
    for (layer, value) in object.iter().filter(|(_, value)| !value.is_number()) {
        match value {
            Value::Bool(false) => overrides.insert(layer.clone(), None),
            Value::Object(_) => overrides.insert(layer.clone(), Some(affine(value)?)),
            _ => continue,
        };
    }
    Ok(Quantization {
        default: affine(value)?,
        overrides,
    })
}

fn affine(value: &Value) -> Result<Affine, String> {
    let number = |name: &str| {
        value
            .get(name)
            .and_then(Value::as_u64)
            .ok_or_else(|| format!("quantization.{name} is missing"))
    };
    let (group_size, bits) = (number("group_size")?, number("bits")?);
    if !matches!(bits, 2 | 3 | 4 | 5 | 6 | 8) {
        return Err(format!("quantization to {bits} bits is not supported"));
    }
    if !(1..=4096).contains(&group_size) || group_size % 8 != 0 {
        return Err(format!(
            "quantization group_size {group_size} is not a multiple of 8"
        ));
    }
    Ok(Affine {
        group_size: group_size as u32,
        bits: bits as u32,
    })
}

fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(one).collect(),
        Some(id) => one(id).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(extra: &str) -> Result<LlamaConfig, String> {
        LlamaConfig::parse(
            format!(
                r#"{{"model_type":"llama","hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,
                "num_attention_heads":4,"vocab_size":100,"rms_norm_eps":1e-5{extra}}}"#
            )
            .as_bytes(),
        )
    }

    #[test]
    fn absent_fields_get_the_defaults_of_transformers() -> Result<(), String> {
        let config = with("")?;
        assert_eq!((config.num_key_value_heads, config.head_dim), (4, 16));
        assert_eq!(config.rope_theta, 10_000.0);
        Ok(())
    }

    #[test]
    fn overrides_name_layers_and_false_leaves_one_alone() -> Result<(), String> {
        let config =
            with(r#","quantization":{"group_size":32,"bits":4,"a":{"group_size":64,"bits":8},"b":false}"#)?;
        let quantization = config.quantization.ok_or("none")?;
        assert_eq!(quantization.of("a").map(|q| q.bits), Some(8));
        assert_eq!(quantization.of("b"), None);
        assert_eq!(quantization.of("c").map(|q| q.bits), Some(4));
        Ok(())
    }

    #[test]
    fn contradictions_are_named() {
        for (extra, word) in [
            (r#","num_key_value_heads":3"#, "multiple"),
            (r#","head_dim":7"#, "odd"),
            (r#","quantization":{"group_size":32,"bits":7}"#, "7 bits"),
            (
                r#","quantization":{"group_size":32,"bits":4,"mode":"mxfp4"}"#,
                "mxfp4",
            ),
            (r#","rope_scaling":{"rope_type":"yarn","factor":2}"#, "yarn"),
            (r#","rope_scaling":{"rope_type":"linear","factor":0}"#, "factor"),
            (r#","sliding_window":4096"#, "sliding_window"),
            (r#","max_position_embeddings":0"#, "max_position_embeddings"),
        ] {
            assert!(with(extra).is_err_and(|error| error.contains(word)), "{extra}");
        }
    }
}
