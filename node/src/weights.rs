//! Weights from node to node: over connections of their own, from everybody who has them, chunk by
//! chunk, each checked. What was fetched becomes a model when its digests are the catalogue's.

mod fetch;
mod partial;
mod serve;
mod work;

use std::io;

pub use fetch::{FetchError, Givers, fetch};
pub use serve::WeightsServer;

/// Disk work, off the threads that keep sessions alive.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
