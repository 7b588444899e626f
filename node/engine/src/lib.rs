//! The batch inference engine: models of the Llama family on mlx-rs, with continuous batching
//! as `pomona-sched` decides it.
//!
//! One OS thread owns MLX. [`worker::Worker`] takes commands, asks the scheduler, runs one step
//! of one model, and sends events. A step is *mixed*: decoding rows and a chunk of prefill go
//! through the same matrix products, which on a CPU cost nearly the same for 1 and 16 tokens.
//! A step without interactive rows runs in slices of some layers each; between two slices its
//! [`pass::Pass`] may rest while more urgent steps run, of this model or another.

pub mod backend;
pub mod blocks;
pub mod kv;
mod lane;
pub mod llama;
pub mod loader;
mod ops;
pub mod pace;
pub mod pass;
pub mod sampler;
pub mod stats;
pub mod worker;
