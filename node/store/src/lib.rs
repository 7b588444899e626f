//! Model folders as `mlx-community` publishes them: what may be opened, what it is, and how a
//! GGUF file becomes one. Every size that a file claims is checked before it is used.
#![forbid(unsafe_code)]

pub mod config;
pub mod digest;
pub mod error;
pub mod folder;
pub mod gguf;
pub mod header;
pub mod import;
pub mod manifest;
pub mod text;
mod tokenizer_gguf;

pub use config::{LlamaConfig, Quantization, RopeScaling};
pub use error::StoreError;
pub use folder::{ModelFolder, TensorFile};
pub use text::text_bundle;
