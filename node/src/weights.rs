//! Weights from node to node: over connections of their own, from everybody who has them, chunk by
//! chunk, each checked. What was fetched becomes a model when its digests are the catalogue's.

mod fetch;
mod pace;
mod partial;
mod serve;
mod work;

pub use fetch::{FetchError, fetch};
pub use pace::Pace;
pub use serve::WeightsServer;
