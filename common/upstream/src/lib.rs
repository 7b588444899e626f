//! A client of OpenAI-compatible servers outside the cluster. Where they are comes from the configuration alone:
//! no request names a destination, and no redirection is followed. Each phase of an answer has its own time, and
//! whether a server is well is told by its tokens, not by its status page.
#![forbid(unsafe_code)]

mod answer;
mod body;
mod breaker;
mod client;
mod connect;
mod error;
mod events;
mod rate;

pub use answer::{Answer, Piece};
pub use breaker::Breaker;
pub use client::{Client, Settings, Turn};
pub use error::{Phase, UpstreamError};
pub use events::Events;
pub use rate::Rate;
