//! QUIC between coordinators and nodes: mutual TLS 1.3 under a certificate authority of the
//! cluster's own, sessions, and streams of frames. The one crate that touches quinn and rustls.
#![forbid(unsafe_code)]

mod authority;
pub mod commission;
mod contacts;
mod custody;
mod dialler;
mod endpoint;
mod farewell;
mod files;
mod identity;
pub mod join;
#[cfg(test)]
mod matrix;
mod membership;
#[cfg(test)]
mod one_way;
mod pace;
mod paths;
pub mod renew;
mod session;
mod tls;
mod token;
mod visit;

use std::path::PathBuf;

pub use authority::{Authority, CERTIFICATE_LIFE};
pub use commission::Commission;
pub use contacts::{Contacts, Source};
pub use dialler::Dialler;
pub use endpoint::{Accepted, Endpoint, Incoming, Purpose, any_port_toward};
pub use identity::{Identity, Peer, Role};
pub use join::{Joining, Proofs};
pub use membership::Membership;
pub use pace::Pace;
pub use paths::{Faster, Paths};
pub use renew::Renewing;
pub use session::{FrameReceiver, FrameSender, Session};
pub use token::JoinToken;

/// What goes wrong between two machines.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A key or certificate file cannot be used.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key or certificate is not what it should be.
    #[error("certificate trouble: {0}")]
    Certificate(String),
    /// The port cannot be opened.
    #[error("cannot open udp {address}")]
    Bind {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The socket is gone; another one has to be opened.
    #[error("the udp socket is gone")]
    SocketLost,
    /// No session in time, or it was refused.
    #[error("no session with {address}: {reason}")]
    Connect {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        reason: String,
    },
    /// The session has ended.
    #[error("session ended: {0}")]
    Closed(String),
    /// The peer did not answer in time.
    #[error("no answer within {0:?}")]
    Deadline(std::time::Duration),
    /// A join token cannot be used.
    #[error("this token cannot be used: {0}")]
    Token(String),
    /// The coordinator refuses a join.
    #[error("the coordinator refuses: {0}")]
    Refused(String),
    /// A frame cannot be read or written.
    #[error("bad frame")]
    Frame(#[from] pomona_wire::WireError),
}
