//! Grouped-query attention of rows of equal length over their KV slab.

use mlx_rs::error::Exception;
use mlx_rs::fast::{ScaledDotProductAttentionMask, scaled_dot_product_attention};
use mlx_rs::ops::{max_axis, sum_axis};
use mlx_rs::{Array, Dtype};

use crate::backend::Backend;
use crate::blocks::activation::exp;

/// Queries of `rows` rows with `len` tokens each, and the keys they see.
#[derive(Debug)]
pub struct Attend<'a> {
    /// `[rows·len, heads, dim]`, rotated.
    pub queries: &'a Array,
    /// `[rows, kv_heads, seen, dim]`.
    pub keys: &'a Array,
    /// As `keys`.
    pub values: &'a Array,
    /// Added to the scores: `[rows, 1, len, seen]` or broadcastable to it; `None` when every
    /// query sees every key.
    pub mask: Option<&'a Array>,
    /// Tokens a row.
    pub len: i32,
}

/// Gives `[rows·len, heads·dim]`.
///
/// On CPUs the query heads that share a key head become rows of one product: a third to an
/// eighth of the BLAS calls of the generic path, which is most of what attention costs there.
///
/// # Errors
/// MLX refuses the shapes.
pub fn attend(input: &Attend<'_>, scale: f32, backend: &Backend) -> Result<Array, Exception> {
    let (rows, kv_heads, seen, dim) = (
        input.keys.dim(0),
        input.keys.dim(1),
        input.keys.dim(2),
        input.keys.dim(3),
    );
    let (heads, len) = (input.queries.dim(1), input.len);
    let group = heads / kv_heads;
    if backend.fused_attention {
        let queries = input
            .queries
            .reshape(&[rows, len, heads, dim])?
            .transpose_axes(&[0, 2, 1, 3])?;
        let mask = input.mask.map(ScaledDotProductAttentionMask::Array);
        let out = scaled_dot_product_attention(queries, input.keys, input.values, scale, mask, None)?;
        return out
            .transpose_axes(&[0, 2, 1, 3])?
            .reshape(&[rows * len, heads * dim]);
    }
    let queries = input
        .queries
        .multiply(Array::from_f32(scale))?
        .reshape(&[rows, len, kv_heads, group, dim])?
        .transpose_axes(&[0, 2, 3, 1, 4])?
        .reshape(&[rows, kv_heads, group * len, dim])?;
    let mut scores = queries.matmul(input.keys.swap_axes(-1, -2)?)?;
    if let Some(mask) = input.mask {
        // The mask has one row a token; group and token share an axis, the token inner.
        scores = scores
            .reshape(&[rows, kv_heads * group, len, seen])?
            .add(mask)?
            .reshape(&[rows, kv_heads, group * len, seen])?;
    }
    // Softmax, divided last: values have fewer numbers than scores.
    let weights = exp(&scores.subtract(max_axis(&scores, -1, true)?)?)?;
    weights
        .matmul(input.values)?
        .divide(sum_axis(&weights, -1, true)?)?
        .reshape(&[rows, kv_heads, group, len, dim])?
        .transpose_axes(&[0, 3, 1, 2, 4])?
        .reshape(&[rows * len, heads * dim])
}

/// The mask of rows whose queries start at `starts`, `len` tokens each, over `seen` keys:
/// `[rows, 1, len, seen]`, 0 where a key is at or before the query, else minus infinity.
/// `None` when nothing is hidden.
///
/// # Errors
/// MLX refuses the conversion.
pub fn causal_mask(starts: &[u32], len: i32, seen: i32, dtype: Dtype) -> Result<Option<Array>, Exception> {
    let hides = |start: u32, token: i32| seen > start as i32 + token + 1;
    if !starts.iter().any(|start| hides(*start, 0)) {
        return Ok(None);
    }
    let mut mask = Vec::with_capacity(starts.len() * (len * seen) as usize);
    for start in starts {
        for token in 0..len {
            let visible = (*start as i32 + token + 1).min(seen);
            mask.extend((0..seen).map(|key| if key < visible { 0.0 } else { f32::NEG_INFINITY }));
        }
    }
    let shape = [starts.len() as i32, 1, len, seen];
    Ok(Some(Array::from_slice(&mask, &shape).as_dtype(dtype)?))
}
