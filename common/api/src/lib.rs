//! The `/v1` surface as an axum router over a [`Backend`]: node and coordinator each implement
//! it. Parsing, validation, tokenising, streaming and errors are here once for both.
#![forbid(unsafe_code)]

mod access;
mod as_text;
mod attribution;
pub mod backend;
mod completions;
mod enough;
mod entry_stats;
mod error;
mod metrics;
mod request;
mod resolve;
mod respond;
mod router;
mod serve;
mod stats;
mod stream;
mod text_cache;
mod usage;

/// Whether the body of a request can be understood: what `/v1` does with it before anything else.
///
/// # Errors
/// Why not, in the client's terms.
pub fn check_body(chat: bool, body: &[u8]) -> Result<(), pomona_common::Failure> {
    let kind = if chat {
        request::Kind::Chat
    } else {
        request::Kind::Text
    };
    request::parse(kind, body).map(drop)
}

pub use access::Access;
pub use backend::{Backend, GenerationStream, Reported};
pub use enough::{Enough, Unwanted, enough};
pub use entry_stats::{Budget, EntryStats};
pub use router::{ROUTES, RouteRow, router};
pub use serve::HttpServer;
pub use text_cache::TextCache;
pub use usage::UsageLog;
