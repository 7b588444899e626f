//! Weights of a checked folder into a model.

use std::collections::HashMap;

use mlx_rs::error::Exception;
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype};
use pomona_store::config::Affine;
use pomona_store::{LlamaConfig, ModelFolder};

use crate::backend::Backend;
use crate::blocks::linear::Weight;
use crate::blocks::{Embedding, Linear, Rope};
use crate::llama::{Layer, Llama};

/// Why a folder does not become a model.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A tensor that the configuration asks for is not there.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` has shape {got:?}, expected {want:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        got: Vec<i32>,
        /// The shape it should have.
        want: Vec<i32>,
    },
    /// A file cannot be mapped.
    #[error("{0} cannot be read as safetensors")]
    File(String),
    /// MLX failed.
    #[error("MLX failed while loading")]
    Mlx(#[from] Exception),
}

/// Loads a model in one go.
///
/// # Errors
/// What is missing or does not fit.
pub fn load(folder: &ModelFolder, backend: &Backend) -> Result<Llama, LoadError> {
    let mut loading = Loading::open(folder, backend)?;
    loop {
        if let Some(llama) = loading.advance()? {
            return Ok(llama);
        }
    }
}

/// A model that is being loaded part by part, so that others can run in between.
#[derive(Debug)]
pub struct Loading {
    source: Source,
    embedding: Option<Embedding>,
    layers: Vec<Layer>,
    /// Bytes of the folder's weights.
    total: u64,
}

impl Loading {
    /// Opens the files of a checked folder; nothing is read yet but their headers.
    ///
    /// # Errors
    /// A file cannot be mapped.
    pub fn open(folder: &ModelFolder, backend: &Backend) -> Result<Self, LoadError> {
        let mut tensors = HashMap::new();
        for file in &folder.files {
            let loaded = Array::load_safetensors(&file.path)
                .map_err(|_| LoadError::File(file.path.display().to_string()))?;
            tensors.extend(loaded);
        }
        let source = Source {
            tensors,
            config: folder.config.clone(),
            backend: backend.clone(),
            read: 0,
        };
        Ok(Self {
            source,
            embedding: None,
            layers: Vec::new(),
            total: folder.weight_bytes(),
        })
    }

    /// Bytes of weights read so far, and in all.
    pub fn progress(&self) -> (u64, u64) {
        (self.source.read.min(self.total), self.total)
    }

    /// Loads the next part: the embedding, a layer, or what comes after the layers. Gives the
    /// model when that was the last.
    ///
    /// # Errors
    /// What is missing or does not fit.
    pub fn advance(&mut self) -> Result<Option<Llama>, LoadError> {
        let config = &self.source.config;
        if (self.layers.len() as u32) < config.num_hidden_layers {
            match &self.embedding {
                None => self.embedding = Some(self.source.embedding()?),
                Some(_) => self.layers.push(self.source.layer(self.layers.len() as u32)?),
            }
            return Ok(None);
        }
        let embedding = match self.embedding.take() {
            Some(embedding) => embedding,
            None => self.source.embedding()?,
        };
        self.source
            .finish(embedding, std::mem::take(&mut self.layers))
            .map(Some)
    }
}

#[derive(Debug)]
struct Source {
    tensors: HashMap<String, Array>,
    config: LlamaConfig,
    backend: Backend,
    /// Bytes of tensors taken out.
    read: u64,
}

impl Source {
    fn embedding(&mut self) -> Result<Embedding, LoadError> {
        let (hidden, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let embedding = Embedding {
            weight: self.weight("model.embed_tokens", vocab, hidden)?,
            dtype: self.backend.dtype,
        };
        eval(embedding.weight.arrays())?;
        Ok(embedding)
    }

    fn finish(&mut self, embedding: Embedding, layers: Vec<Layer>) -> Result<Llama, LoadError> {
        let config = self.config.clone();
        let head = if config.tie_word_embeddings {
            None
        } else {
            let head = self.linear("lm_head", config.vocab_size, config.hidden_size)?;
            eval(head.arrays())?;
            Some(head)
        };
        let factors = match self.tensors.get("rope_freqs.weight") {
            Some(factors) => Some(
                factors
                    .as_dtype(Dtype::Float32)?
                    .to_vec_cast::<f32>()
                    .map_err(|_| LoadError::Missing("rope_freqs.weight".into()))?,
            ),
            None => None,
        };
        if let Some(factors) = &factors {
            check_shape(
                "rope_freqs.weight",
                &[factors.len() as i32],
                &[config.head_dim as i32 / 2],
            )?;
        }
        Ok(Llama {
            rope: Rope::new(&config, factors.as_deref(), self.backend.dtype),
            norm: self.norm("model.norm.weight")?,
            backend: self.backend.clone(),
            embedding,
            layers,
            head,
            config,
        })
    }

    fn layer(&mut self, i: u32) -> Result<Layer, LoadError> {
        let config = &self.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (heads, kv_heads, dim) = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        );
        let path = |rest: &str| format!("model.layers.{i}.{rest}");
        let traditional = config.rope_traditional;
        let mut q = self.linear(&path("self_attn.q_proj"), heads * dim, hidden)?;
        let mut k = self.linear(&path("self_attn.k_proj"), kv_heads * dim, hidden)?;
        let v = self.linear(&path("self_attn.v_proj"), kv_heads * dim, hidden)?;
        if traditional {
            q = permuted(&q, &Rope::halves_from_pairs(heads, dim))?;
            k = permuted(&k, &Rope::halves_from_pairs(kv_heads, dim))?;
        }
        let gate = self.linear(&path("mlp.gate_proj"), inner, hidden)?;
        let up = self.linear(&path("mlp.up_proj"), inner, hidden)?;
        let layer = Layer {
            input_norm: self.norm(&path("input_layernorm.weight"))?,
            qkv: Linear::stack(&[q, k, v], self.backend.dtype)?,
            out: self.linear(&path("self_attn.o_proj"), hidden, heads * dim)?,
            post_norm: self.norm(&path("post_attention_layernorm.weight"))?,
            gate,
            up,
            down: self.linear(&path("mlp.down_proj"), hidden, inner)?,
        };
        let arrays = [&layer.qkv, &layer.out, &layer.gate, &layer.up, &layer.down];
        // At once, so that originals are freed as loading goes on.
        eval(arrays.iter().flat_map(|linear| linear.arrays()))?;
        Ok(layer)
    }

    fn norm(&mut self, name: &str) -> Result<Array, LoadError> {
        let norm = self.take(name)?;
        check_shape(name, norm.shape(), &[self.config.hidden_size as i32])?;
        let norm = norm.as_dtype(self.backend.dtype)?;
        norm.eval()?;
        Ok(norm)
    }

    fn linear(&mut self, path: &str, out: u32, input: u32) -> Result<Linear, LoadError> {
        let weight = self.weight(path, out, input)?;
        let bias = match self.tensors.remove(&format!("{path}.bias")) {
            Some(bias) => {
                check_shape(path, bias.shape(), &[out as i32])?;
                Some(bias.as_dtype(self.backend.dtype)?)
            }
            None => None,
        };
        Ok(Linear { weight, bias })
    }

    fn weight(&mut self, path: &str, out: u32, input: u32) -> Result<Weight, LoadError> {
        let name = format!("{path}.weight");
        let weight = self.take(&name)?;
        let quantization = self.config.quantization.as_ref().and_then(|q| q.of(path));
        // A folder may leave some layers in floating point without naming them.
        let packed = self.tensors.contains_key(&format!("{path}.scales"));
        let Some(affine) = quantization.filter(|_| packed) else {
            check_shape(&name, weight.shape(), &[out as i32, input as i32])?;
            return Ok(Weight::Dense(weight.as_dtype(self.backend.dtype)?));
        };
        let weight = self.quantized(path, weight, affine, out, input)?;
        if self.backend.keep_quantized {
            return Ok(weight);
        }
        Ok(Weight::Dense(weight.dense(self.backend.dtype)?))
    }

    fn quantized(
        &mut self,
        path: &str,
        weight: Array,
        affine: Affine,
        out: u32,
        input: u32,
    ) -> Result<Weight, LoadError> {
        let groups = [out as i32, (input / affine.group_size) as i32];
        let packed = [out as i32, (input * affine.bits / 32) as i32];
        check_shape(&format!("{path}.weight"), weight.shape(), &packed)?;
        let mut part = |name: &str| -> Result<Array, LoadError> {
            let name = format!("{path}.{name}");
            let array = self.take(&name)?;
            check_shape(&name, array.shape(), &groups)?;
            Ok(array)
        };
        Ok(Weight::Quantized {
            scales: part("scales")?,
            biases: part("biases")?,
            weight,
            group_size: affine.group_size as i32,
            bits: affine.bits as i32,
        })
    }

    fn take(&mut self, name: &str) -> Result<Array, LoadError> {
        let tensor = self.tensors.remove(name);
        let tensor = tensor.ok_or_else(|| LoadError::Missing(name.to_owned()))?;
        self.read += tensor.nbytes() as u64;
        Ok(tensor)
    }
}

fn check_shape(name: &str, got: &[i32], want: &[i32]) -> Result<(), LoadError> {
    if got == want {
        return Ok(());
    }
    Err(LoadError::Shape {
        name: name.to_owned(),
        got: got.to_vec(),
        want: want.to_vec(),
    })
}

fn permuted(linear: &Linear, order: &Array) -> Result<Linear, Exception> {
    Ok(Linear {
        weight: linear.weight.take_rows(order)?,
        bias: linear
            .bias
            .as_ref()
            .map(|bias| bias.take_axis(order, 0))
            .transpose()?,
    })
}
