//! Linear layers and embeddings, dense or quantised.

use mlx_rs::error::Exception;
use mlx_rs::ops::{concatenate, dequantize, quantized_matmul};
use mlx_rs::{Array, Dtype};

/// A matrix of weights, output features first.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Floating point, `[out, in]`.
    Dense(Array),
    /// MLX affine: `weight` `[out, in·bits/32]`, `scales` and `biases` `[out, in/group]`.
    Quantized {
        /// Packed values.
        weight: Array,
        /// Scale of each group.
        scales: Array,
        /// Offset of each group.
        biases: Array,
        /// Values a group.
        group_size: i32,
        /// Bits a value.
        bits: i32,
    },
}

impl Weight {
    /// In floating point.
    ///
    /// # Errors
    /// MLX refuses the shapes.
    pub fn dense(&self, dtype: Dtype) -> Result<Array, Exception> {
        match self {
            Weight::Dense(weight) => weight.as_dtype(dtype),
            Weight::Quantized {
                weight,
                scales,
                biases,
                group_size,
                bits,
            } => {
                // In f32 from the start: f16 arithmetic is emulated on CPUs and rounds twice.
                let (scales, biases) = match dtype {
                    Dtype::Float32 => (scales.as_dtype(dtype)?, biases.as_dtype(dtype)?),
                    _ => (scales.clone(), biases.clone()),
                };
                dequantize(weight, &scales, &biases, *group_size, *bits)?.as_dtype(dtype)
            }
        }
    }

    /// Rows taken in another order, or a matrix put below another one: both keep quantisation.
    ///
    /// # Errors
    /// MLX refuses the shapes.
    pub fn take_rows(&self, rows: &Array) -> Result<Self, Exception> {
        Ok(match self {
            Weight::Dense(weight) => Weight::Dense(weight.take_axis(rows, 0)?),
            Weight::Quantized {
                weight,
                scales,
                biases,
                group_size,
                bits,
            } => Weight::Quantized {
                weight: weight.take_axis(rows, 0)?,
                scales: scales.take_axis(rows, 0)?,
                biases: biases.take_axis(rows, 0)?,
                group_size: *group_size,
                bits: *bits,
            },
        })
    }

    /// Stacks matrices with the same input below each other; falls back to floating point when
    /// their quantisations differ.
    ///
    /// # Errors
    /// MLX refuses the shapes.
    pub fn stack(parts: &[Self], dtype: Dtype) -> Result<Self, Exception> {
        let mut fields: [Vec<&Array>; 3] = Default::default();
        let mut kinds = Vec::new();
        for part in parts {
            if let Weight::Quantized {
                weight,
                scales,
                biases,
                group_size,
                bits,
            } = part
            {
                fields[0].push(weight);
                fields[1].push(scales);
                fields[2].push(biases);
                kinds.push((*group_size, *bits));
            }
        }
        let alike = kinds.len() == parts.len() && kinds.windows(2).all(|pair| pair[0] == pair[1]);
        if let (true, Some((group_size, bits))) = (alike, kinds.first().copied()) {
            return Ok(Weight::Quantized {
                weight: concatenate(&fields[0], 0)?,
                scales: concatenate(&fields[1], 0)?,
                biases: concatenate(&fields[2], 0)?,
                group_size,
                bits,
            });
        }
        let dense: Vec<Array> = parts
            .iter()
            .map(|part| part.dense(dtype))
            .collect::<Result<_, _>>()?;
        Ok(Weight::Dense(concatenate(&dense, 0)?))
    }

    /// Output and input features.
    pub fn shape(&self) -> (i32, i32) {
        match self {
            Weight::Dense(weight) => (weight.dim(0), weight.dim(1)),
            Weight::Quantized {
                weight,
                scales,
                group_size,
                ..
            } => (weight.dim(0), scales.dim(1) * group_size),
        }
    }

    /// All arrays, to evaluate them.
    pub fn arrays(&self) -> Vec<&Array> {
        match self {
            Weight::Dense(weight) => vec![weight],
            Weight::Quantized {
                weight,
                scales,
                biases,
                ..
            } => vec![weight, scales, biases],
        }
    }

    fn apply(&self, x: &Array) -> Result<Array, Exception> {
        match self {
            Weight::Dense(weight) => x.matmul(weight.t()),
            Weight::Quantized {
                weight,
                scales,
                biases,
                group_size,
                bits,
            } => quantized_matmul(x, weight, scales, biases, true, *group_size, *bits),
        }
    }
}

/// `y = x Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `W`.
    pub weight: Weight,
    /// `b`, `[out]`.
    pub bias: Option<Array>,
}

impl Linear {
    /// Applies the layer to `[N, in]`, giving `[N, out]`.
    ///
    /// # Errors
    /// MLX refuses the shapes.
    pub fn apply(&self, x: &Array) -> Result<Array, Exception> {
        let y = self.weight.apply(x)?;
        match &self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }

    /// Several layers with the same input as one product.
    ///
    /// # Errors
    /// MLX refuses the shapes.
    pub fn stack(parts: &[Self], dtype: Dtype) -> Result<Self, Exception> {
        let weights: Vec<Weight> = parts.iter().map(|part| part.weight.clone()).collect();
        let bias = if parts.iter().any(|part| part.bias.is_some()) {
            let biases = parts
                .iter()
                .map(|part| match &part.bias {
                    Some(bias) => Ok(bias.clone()),
                    None => mlx_rs::ops::zeros_dtype(&[part.weight.shape().0], dtype),
                })
                .collect::<Result<Vec<Array>, Exception>>()?;
            Some(concatenate(&biases, 0)?)
        } else {
            None
        };
        Ok(Self {
            weight: Weight::stack(&weights, dtype)?,
            bias,
        })
    }

    /// All arrays, to evaluate them.
    pub fn arrays(&self) -> Vec<&Array> {
        self.weight.arrays().into_iter().chain(&self.bias).collect()
    }
}

/// Rows of a matrix by token id; also the head of models that tie the two.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `[vocab, hidden]`.
    pub weight: Weight,
    /// Type of what `lookup` gives.
    pub dtype: Dtype,
}

impl Embedding {
    /// Embeds `[N]` ids, giving `[N, hidden]`.
    ///
    /// # Errors
    /// MLX refuses the shapes.
    pub fn lookup(&self, ids: &Array) -> Result<Array, Exception> {
        self.weight.take_rows(ids)?.dense(self.dtype)
    }

    /// Applies the matrix as a head: `[N, hidden]` to `[N, vocab]`.
    ///
    /// # Errors
    /// MLX refuses the shapes.
    pub fn as_head(&self, x: &Array) -> Result<Array, Exception> {
        self.weight.apply(x)
    }
}
