//! The Llama family, out of the shared blocks.

use mlx_rs::error::Exception;
use mlx_rs::fast::rms_norm;

use mlx_rs::ops::{concatenate, sigmoid};
use mlx_rs::{Array, Dtype};
use pomona_store::LlamaConfig;

use crate::backend::Backend;
use crate::blocks::attention::causal_mask;
use crate::blocks::{Attend, Embedding, Linear, Rope, attend};
use crate::kv::{KvSlabs, LayerKv};
use crate::ops;

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

/// Tokens of one sequence that are fed in a step.
#[derive(Debug, Clone)]
pub struct Feed {
    /// Slab.
    pub capacity: u32,
    /// Row of the slab.
    pub row: u32,
    /// Position of the first token.
    pub start: u32,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Whether the logits after the last token are wanted.
    pub wants_logits: bool,
}

/// Rows that attend together: consecutive single-token rows of one slab, or one chunk.
struct Group {
    capacity: u32,
    row: i32,
    rows: i32,
    len: i32,
    /// First token in the flat order of the step.
    first: i32,
    seen: i32,
    mask: Option<Array>,
    /// Rows and positions as arrays, for groups of single tokens.
    targets: Option<(Array, Array)>,
    start: i32,
}

impl Llama {
    /// Runs one step over `feeds`, which are ordered by slab and row, and updates the KV slabs.
    /// Gives the logits `[wanted, vocab]` in f32, in the order of the feeds that want them.
    ///
    /// # Errors
    /// MLX fails.
    pub fn step(&self, feeds: &[Feed], kv: &mut KvSlabs) -> Result<Option<Array>, Exception> {
        let tokens: Vec<u32> = feeds
            .iter()
            .flat_map(|feed| feed.tokens.iter().copied())
            .collect();
        let positions: Vec<u32> = feeds
            .iter()
            .flat_map(|feed| (feed.start..).take(feed.tokens.len()))
            .collect();
        let count = tokens.len() as i32;
        let angles = self.rope.angles(&positions)?;
        let groups = self.groups(feeds)?;
        let mut x = self.embedding.lookup(&Array::from_slice(&tokens, &[count]))?;
        for (i, layer) in self.layers.iter().enumerate() {
            let normed = rms_norm(&x, Some(&layer.input_norm), self.config.rms_norm_eps)?;
            let attended = self.attention(layer, &normed, &angles, &groups, i, kv)?;
            x = x.add(attended)?;
            let normed = rms_norm(&x, Some(&layer.post_norm), self.config.rms_norm_eps)?;
            x = x.add(Self::mlp(layer, &normed)?)?;
        }
        self.logits(feeds, &x)
    }

    fn attention(
        &self,
        layer: &Layer,
        x: &Array,
        angles: &(Array, Array),
        groups: &[Group],
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
        let qk = Rope::rotate(&qk, angles)?;
        let queries = ops::slice(&qk, &[0, 0, 0], &[count, heads, dim])?;
        let keys = ops::slice(&qk, &[0, heads, 0], &[count, heads + kv_heads, dim])?;
        let values = ops::slice(
            &qkv,
            &[0, heads + kv_heads, 0],
            &[count, heads + 2 * kv_heads, dim],
        )?;
        let scale = (dim as f32).powf(-0.5);
        let mut attended = Vec::with_capacity(groups.len());
        for group in groups {
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
    fn mlp(layer: &Layer, x: &Array) -> Result<Array, Exception> {
        let gate = layer.gate.apply(x)?;
        let up = layer.up.apply(x)?;
        layer.down.apply(&gate.multiply(sigmoid(&gate)?)?.multiply(up)?)
    }

    fn logits(&self, feeds: &[Feed], x: &Array) -> Result<Option<Array>, Exception> {
        let mut wanted = Vec::new();
        let mut end = 0;
        for feed in feeds {
            end += feed.tokens.len() as i32;
            if feed.wants_logits {
                wanted.push(end - 1);
            }
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        let last = if wanted.len() as i32 == x.dim(0) {
            x.clone()
        } else {
            x.take_axis(Array::from_slice(&wanted, &[wanted.len() as i32]), 0)?
        };
        let normed = rms_norm(&last, Some(&self.norm), self.config.rms_norm_eps)?;
        let logits = match &self.head {
            Some(head) => head.apply(&normed)?,
            None => self.embedding.as_head(&normed)?,
        };
        logits.as_dtype(Dtype::Float32).map(Some)
    }

    fn groups(&self, feeds: &[Feed]) -> Result<Vec<Group>, Exception> {
        let mut groups = Vec::new();
        let mut first = 0;
        let mut rest = feeds;
        while let Some(head) = rest.first() {
            let run = if head.tokens.len() == 1 {
                rest.iter()
                    .zip(head.row..)
                    .take_while(|(feed, row)| {
                        feed.tokens.len() == 1 && feed.capacity == head.capacity && feed.row == *row
                    })
                    .count()
            } else {
                1
            };
            let (members, tail) = rest.split_at(run);
            let group = self.group(members, first)?;
            first += group.rows * group.len;
            groups.push(group);
            rest = tail;
        }
        Ok(groups)
    }

    fn group(&self, members: &[Feed], first: i32) -> Result<Group, Exception> {
        let head = &members[0];
        let len = head.tokens.len() as i32;
        let starts: Vec<u32> = members.iter().map(|feed| feed.start).collect();
        let longest = starts.iter().max().map_or(0, |start| *start as i32) + len;
        let step = self.backend.length_step;
        let seen = ((longest + step - 1) / step * step).min(head.capacity as i32);
        let targets = (len == 1 && members.len() > 1).then(|| {
            let rows: Vec<u32> = members.iter().map(|feed| feed.row).collect();
            let shape = [members.len() as i32];
            (
                Array::from_slice(&rows, &shape),
                Array::from_slice(&starts, &shape),
            )
        });
        Ok(Group {
            capacity: head.capacity,
            row: head.row as i32,
            rows: members.len() as i32,
            len,
            first,
            seen,
            mask: causal_mask(&starts, len, seen, self.backend.dtype)?,
            targets,
            start: head.start as i32,
        })
    }
}

impl Group {
    /// Writes the new keys and values, `[rows·len, kv_heads, dim]`, to their places.
    fn write(&self, slab: &mut LayerKv, keys: &Array, values: &Array) -> Result<(), Exception> {
        let (kv_heads, dim) = (keys.dim(1), keys.dim(2));
        let put = |slab: &Array, new: &Array| match &self.targets {
            Some((rows, positions)) => {
                let new = new.reshape(&[self.rows, 1, kv_heads, 1, dim])?;
                ops::scatter_rows(slab, rows, positions, &new)
            }
            None => {
                let new = new
                    .reshape(&[1, self.len, kv_heads, dim])?
                    .transpose_axes(&[0, 2, 1, 3])?;
                let start = [self.row, 0, self.start, 0];
                let stop = [self.row + 1, kv_heads, self.start + self.len, dim];
                ops::slice_update(slab, &new, &start, &stop)
            }
        };
        slab.keys = put(&slab.keys, keys)?;
        slab.values = put(&slab.values, values)?;
        Ok(())
    }
}
