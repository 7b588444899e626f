//! Building blocks that model families share.

pub mod activation;
pub mod attention;
pub mod linear;
pub mod rope;

pub use attention::{Attend, attend};
pub use linear::{Embedding, Linear};
pub use rope::Rope;
