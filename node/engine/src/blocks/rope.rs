//! Rotary position embedding (Su et al., RoFormer, 2021) with the scalings of the Llama family.

use mlx_rs::error::Exception;
use mlx_rs::ops::concatenate;
use mlx_rs::{Array, Dtype};
use pomona_store::{LlamaConfig, RopeScaling};

use crate::ops;

/// Inverse frequencies of one head.
///
/// Heads are rotated by halves. Weights of models that rotate interleaved pairs are permuted at
/// load instead ([`Rope::halves_from_pairs`]): scores do not change when queries and keys are
/// permuted alike, and one code path serves both.
#[derive(Debug, Clone)]
pub struct Rope {
    inverse_frequencies: Vec<f32>,
    position_scale: f32,
    dtype: Dtype,
}

impl Rope {
    /// The frequencies of a model; `factors` divide them one by one, where a file brings such a
    /// table.
    pub fn new(config: &LlamaConfig, factors: Option<&[f32]>, dtype: Dtype) -> Self {
        let half = config.head_dim as usize / 2;
        let mut position_scale = 1.0;
        if let RopeScaling::Linear(factor) = config.rope_scaling {
            position_scale = 1.0 / factor;
        }
        let inverse_frequencies = (0..half)
            .map(|i| {
                let exponent = 2.0 * i as f64 / f64::from(config.head_dim);
                let plain = f64::from(config.rope_theta).powf(-exponent);
                let scaled = scale(plain, config.rope_scaling);
                (scaled / factors.map_or(1.0, |factors| f64::from(factors[i]))) as f32
            })
            .collect();
        Self {
            inverse_frequencies,
            position_scale,
            dtype,
        }
    }

    /// Cosines and sines for these positions, each `[N, 1, head_dim / 2]`.
    ///
    /// # Errors
    /// MLX refuses the conversion.
    pub fn angles(&self, positions: &[u32]) -> Result<(Array, Array), Exception> {
        let mut cos = Vec::with_capacity(positions.len() * self.inverse_frequencies.len());
        let mut sin = Vec::with_capacity(cos.capacity());
        for position in positions {
            for frequency in &self.inverse_frequencies {
                let angle = *position as f32 * self.position_scale * frequency;
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        let shape = [positions.len() as i32, 1, self.inverse_frequencies.len() as i32];
        let array = |values: &[f32]| Array::from_slice(values, &shape).as_dtype(self.dtype);
        Ok((array(&cos)?, array(&sin)?))
    }

    /// Rotates `[N, heads, head_dim]`.
    ///
    /// # Errors
    /// MLX refuses the shapes.
    pub fn rotate(x: &Array, (cos, sin): &(Array, Array)) -> Result<Array, Exception> {
        let (n, heads, dim) = (x.dim(0), x.dim(1), x.dim(2));
        let a = ops::slice(x, &[0, 0, 0], &[n, heads, dim / 2])?;
        let b = ops::slice(x, &[0, 0, dim / 2], &[n, heads, dim])?;
        let turned_a = a.multiply(cos)?.subtract(b.multiply(sin)?)?;
        let turned_b = b.multiply(cos)?.add(a.multiply(sin)?)?;
        concatenate(&[turned_a, turned_b], -1)
    }

    /// The order of a projection's rows that turns interleaved pairs into halves, `[heads·dim]`.
    pub fn halves_from_pairs(heads: u32, dim: u32) -> Array {
        let mut order = Vec::with_capacity((heads * dim) as usize);
        for head in 0..heads {
            for parity in 0..2 {
                order.extend((0..dim / 2).map(|i| (head * dim + 2 * i + parity) as i32));
            }
        }
        Array::from_slice(&order, &[order.len() as i32])
    }
}

/// Llama 3.1's stretching of the low frequencies, as in Meta's reference code.
fn scale(frequency: f64, scaling: RopeScaling) -> f64 {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_context,
    } = scaling
    else {
        return frequency;
    };
    let [factor, low, high, context] =
        [factor, low_freq_factor, high_freq_factor, original_context].map(f64::from);
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength < context / high {
        frequency
    } else if wavelength > context / low {
        frequency / factor
    } else {
        let smooth = (context / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}
