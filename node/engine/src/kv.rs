//! The memory behind `pomona_sched::KvPool`: slabs `[rows, kv_heads, capacity, dim]` of keys and
//! values for every layer of one model.

use std::collections::BTreeMap;

use mlx_rs::error::Exception;
use mlx_rs::ops::zeros_dtype;
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype};
use pomona_store::LlamaConfig;

use crate::ops;

/// Keys and values of one layer in one slab.
#[derive(Debug)]
pub struct LayerKv {
    /// `[rows, kv_heads, capacity, dim]`.
    pub keys: Array,
    /// As `keys`.
    pub values: Array,
}

/// All slabs of one model, by capacity.
#[derive(Debug)]
pub struct KvSlabs {
    layers: usize,
    kv_heads: i32,
    dim: i32,
    dtype: Dtype,
    slabs: BTreeMap<u32, Vec<LayerKv>>,
}

/// Keys and values of a prefix, for every layer: `[1, kv_heads, len, dim]` each.
#[derive(Debug)]
pub struct SavedKv(Vec<LayerKv>);

impl KvSlabs {
    /// No slabs yet.
    pub fn new(config: &LlamaConfig, dtype: Dtype) -> Self {
        Self {
            layers: config.num_hidden_layers as usize,
            kv_heads: config.num_key_value_heads as i32,
            dim: config.head_dim as i32,
            dtype,
            slabs: BTreeMap::new(),
        }
    }

    /// The layers of a slab that the pool made.
    pub fn slab(&mut self, capacity: u32) -> &mut [LayerKv] {
        self.slabs.entry(capacity).or_default()
    }

    /// Gives a slab this many rows.
    ///
    /// # Errors
    /// MLX cannot allocate.
    pub fn resize(&mut self, capacity: u32, rows: u32) -> Result<(), Exception> {
        if rows == 0 {
            self.slabs.remove(&capacity);
            return Ok(());
        }
        let shape = [rows as i32, self.kv_heads, capacity as i32, self.dim];
        let old = self.slabs.remove(&capacity);
        let kept = old
            .as_ref()
            .and_then(|layers| layers.first())
            .map_or(0, |layer| layer.keys.dim(0).min(shape[0]));
        let stop = [kept, shape[1], shape[2], shape[3]];
        let grown = |old: Option<&Array>| -> Result<Array, Exception> {
            let fresh = zeros_dtype(&shape, self.dtype)?;
            match old {
                Some(old) if kept > 0 => {
                    let kept = ops::slice(old, &[0; 4], &stop)?;
                    ops::slice_update(&fresh, &kept, &[0; 4], &stop)
                }
                _ => Ok(fresh),
            }
        };
        let mut layers = Vec::with_capacity(self.layers);
        let mut old = old.into_iter().flatten();
        for _ in 0..self.layers {
            let old = old.next();
            let old = old.as_ref();
            let layer = LayerKv {
                keys: grown(old.map(|layer| &layer.keys))?,
                values: grown(old.map(|layer| &layer.values))?,
            };
            // Layer by layer, so that old and new are never in memory together as a whole.
            eval([&layer.keys, &layer.values])?;
            layers.push(layer);
        }
        self.slabs.insert(capacity, layers);
        Ok(())
    }

    /// Copies the first `len` positions of a row over another row.
    ///
    /// # Errors
    /// MLX refuses the ranges.
    pub fn copy_row(&mut self, capacity: u32, from: u32, to: u32, len: u32) -> Result<(), Exception> {
        let saved = self.save(capacity, from, len)?;
        self.restore(capacity, to, &saved, len)
    }

    /// A copy of the first `len` positions of a row.
    ///
    /// # Errors
    /// MLX refuses the ranges.
    pub fn save(&mut self, capacity: u32, row: u32, len: u32) -> Result<SavedKv, Exception> {
        let start = [row as i32, 0, 0, 0];
        let stop = [row as i32 + 1, self.kv_heads, len as i32, self.dim];
        let mut saved = Vec::with_capacity(self.layers);
        for layer in self.slab(capacity).iter() {
            // A view would keep the whole slab alive and stop in-place updates, and `contiguous`
            // may give one; `deep_clone` copies, but only what is computed and contiguous.
            let copy = |array: &Array| -> Result<Array, Exception> {
                let part = ops::slice(array, &start, &stop)?.contiguous()?;
                part.eval()?;
                Ok(part.deep_clone())
            };
            saved.push(LayerKv {
                keys: copy(&layer.keys)?,
                values: copy(&layer.values)?,
            });
        }
        Ok(SavedKv(saved))
    }

    /// Writes the first `len` saved positions into a row.
    ///
    /// # Errors
    /// MLX refuses the ranges.
    pub fn restore(&mut self, capacity: u32, row: u32, saved: &SavedKv, len: u32) -> Result<(), Exception> {
        let start = [row as i32, 0, 0, 0];
        let stop = [row as i32 + 1, self.kv_heads, len as i32, self.dim];
        let part_stop = [1, self.kv_heads, len as i32, self.dim];
        for (layer, saved) in self.slab(capacity).iter_mut().zip(&saved.0) {
            let keys = ops::slice(&saved.keys, &[0; 4], &part_stop)?;
            let values = ops::slice(&saved.values, &[0; 4], &part_stop)?;
            layer.keys = ops::slice_update(&layer.keys, &keys, &start, &stop)?;
            layer.values = ops::slice_update(&layer.values, &values, &start, &stop)?;
        }
        let arrays: Vec<&Array> = self.arrays_of(capacity).collect();
        eval(arrays)
    }

    /// All arrays of a slab, to evaluate them.
    pub fn arrays_of(&self, capacity: u32) -> impl Iterator<Item = &Array> {
        self.slabs
            .get(&capacity)
            .into_iter()
            .flatten()
            .flat_map(|layer| [&layer.keys, &layer.values])
    }
}
