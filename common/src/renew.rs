//! Renewing: what a node whose certificate has run out says to a coordinator.

use serde::{Deserialize, Serialize};

/// Sent by the node. The signature shows that it holds the key of its old certificate, and covers
/// this TLS session, so that it cannot be relayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// The certificate that ran out, PEM.
    pub certificate: String,
    /// Its key: a point of P-256, uncompressed.
    pub public_key: Vec<u8>,
    /// ECDSA with SHA-256, ASN.1, over the session's exporter.
    pub signature: Vec<u8>,
}

/// Sent back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenewAnswer {
    /// The node goes on.
    Renewed {
        /// Its certificate, PEM.
        certificate: String,
    },
    /// It does not, for a reason that people can act on.
    Refused(String),
}
