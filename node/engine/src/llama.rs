//! The Llama family, out of the shared blocks.

use mlx_rs::error::Exception;
use mlx_rs::fast::rms_norm;
use mlx_rs::ops::concatenate;
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};
use pomona_store::LlamaConfig;

use crate::backend::Backend;
use crate::blocks::activation::swiglu;
use crate::blocks::{Attend, Embedding, Linear, Rope, attend};
use crate::kv::KvSlabs;
use crate::ops;
use crate::pass::{Feed, Pass};

/// The device gets its work in parts of this many layers.
const START_EVERY: usize = 4;

/// Weights of a model, ready to run.
#[derive(Debug)]
pub struct Llama {
    pub(crate) config: LlamaConfig,
    pub(crate) backend: Backend,
    pub(crate) embedding: Embedding,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Array,
    /// `None` when the embedding serves as head.
    pub(crate) head: Option<Linear>,
    pub(crate) rope: Rope,
}

/// One transformer layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) input_norm: Array,
    pub(crate) qkv: Linear,
    pub(crate) out: Linear,
    pub(crate) post_norm: Array,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl Llama {
    /// Starts a pass over `feeds`, which are ordered by slab and row.
    ///
    /// # Errors
    /// MLX fails.
    pub fn begin(&self, feeds: Vec<Feed>) -> Result<Pass, Exception> {
        Pass::new(feeds, &self.embedding, &self.rope, &self.backend)
    }

    /// Takes the pass through its next `layers` layers, which the device starts to compute while
    /// the graph of later ones is still being built; updates the KV slabs.
    ///
    /// # Errors
    /// MLX fails.
    pub fn advance(&self, pass: &mut Pass, kv: &mut KvSlabs, layers: usize) -> Result<(), Exception> {
        let until = (pass.layer + layers).min(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate().take(until).skip(pass.layer) {
            let x = &pass.x;
            let normed = rms_norm(x, Some(&layer.input_norm), self.config.rms_norm_eps)?;
            let x = x.add(self.attention(layer, &normed, pass, i, kv)?)?;
            let normed = rms_norm(&x, Some(&layer.post_norm), self.config.rms_norm_eps)?;
            pass.x = x.add(self.mlp(layer, &normed)?)?;
            if (i + 1).is_multiple_of(START_EVERY) {
                async_eval([&pass.x])?;
            }
        }
        pass.layer = until;
        Ok(())
    }

    /// Layers that the pass has not been through.
    pub fn layers_left(&self, pass: &Pass) -> usize {
        self.layers.len() - pass.layer
    }

    /// The logits `[wanted, vocab]` in f32 after the last layer, in the order of the feeds that
    /// want them; `None` when none does.
    ///
    /// # Errors
    /// MLX fails.
    pub fn logits(&self, pass: &Pass) -> Result<Option<Array>, Exception> {
        let wanted = pass.last_tokens_of_wanted();
        if wanted.is_empty() {
            return Ok(None);
        }
        let last = if wanted.len() as i32 == pass.x.dim(0) {
            pass.x.clone()
        } else {
            pass.x
                .take_axis(Array::from_slice(&wanted, &[wanted.len() as i32]), 0)?
        };
        let normed = rms_norm(&last, Some(&self.norm), self.config.rms_norm_eps)?;
        let logits = match &self.head {
            Some(head) => head.apply(&normed)?,
            None => self.embedding.as_head(&normed)?,
        };
        logits.as_dtype(Dtype::Float32).map(Some)
    }

    /// A whole pass in one go; its end is not yet evaluated.
    ///
    /// # Errors
    /// MLX fails.
    pub fn step(&self, feeds: Vec<Feed>, kv: &mut KvSlabs) -> Result<Option<Array>, Exception> {
        let mut pass = self.begin(feeds)?;
        self.advance(&mut pass, kv, self.layers.len())?;
        self.logits(&pass)
    }

    fn attention(
        &self,
        layer: &Layer,
        x: &Array,
        pass: &Pass,
        index: usize,
        kv: &mut KvSlabs,
    ) -> Result<Array, Exception> {
        let config = &self.config;
        let (heads, kv_heads, dim) = (
            config.num_attention_heads as i32,
            config.num_key_value_heads as i32,
            config.head_dim as i32,
        );
        let count = x.dim(0);
        let qkv = layer.qkv.apply(x)?.reshape(&[count, heads + 2 * kv_heads, dim])?;
        let qk = ops::slice(&qkv, &[0, 0, 0], &[count, heads + kv_heads, dim])?;
        let qk = Rope::rotate(&qk, &pass.angles)?;
        let queries = ops::slice(&qk, &[0, 0, 0], &[count, heads, dim])?;
        let keys = ops::slice(&qk, &[0, heads, 0], &[count, heads + kv_heads, dim])?;
        let values = ops::slice(
            &qkv,
            &[0, heads + kv_heads, 0],
            &[count, heads + 2 * kv_heads, dim],
        )?;
        let scale = (dim as f32).powf(-0.5);
        let mut attended = Vec::with_capacity(pass.groups.len());
        for group in &pass.groups {
            let slab = &mut kv.slab(group.capacity)[index];
            let tokens = group.rows * group.len;
            let part = |array: &Array| {
                let (from, to) = (group.first, group.first + tokens);
                ops::slice(array, &[from, 0, 0], &[to, array.dim(1), dim])
            };
            group.write(slab, &part(&keys)?, &part(&values)?)?;
            let seen = |array: &Array| {
                let stop = [group.row + group.rows, kv_heads, group.seen, dim];
                ops::slice(array, &[group.row, 0, 0, 0], &stop)
            };
            let input = Attend {
                queries: &part(&queries)?,
                keys: &seen(&slab.keys)?,
                values: &seen(&slab.values)?,
                mask: group.mask.as_ref(),
                len: group.len,
            };
            attended.push(attend(&input, scale, &self.backend)?);
        }
        let attended = match &attended[..] {
            [one] => one.clone(),
            many => concatenate(many, 0)?,
        };
        layer.out.apply(&attended)
    }

    /// SwiGLU. The two halves are products of their own: as one product their outputs would be
    /// strided views, and element-wise operations on those take a slow path on CPUs.
    fn mlp(&self, layer: &Layer, x: &Array) -> Result<Array, Exception> {
        let gate = layer.gate.apply(x)?;
        let up = layer.up.apply(x)?;
        layer.down.apply(&swiglu(&gate, &up, &self.backend)?)
    }
}
