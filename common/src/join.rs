//! Joining: what a new node and a coordinator say to each other before there is a certificate.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, TokenId};

/// SHA-256 of a public key as X.509 encodes it (SubjectPublicKeyInfo): the name of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyPrint(pub [u8; 32]);

impl fmt::Display for KeyPrint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyPrint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPrint({self})")
    }
}

/// What the cluster keeps of a token's secret: a hash, which is the key that proofs of the
/// secret are made with. Knowing it allows joining for as long as the token is open, so it is
/// shown nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenVerifier(pub [u8; 32]);

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenVerifier(..)")
    }
}

/// Sent by a machine that wants to join. `proof` shows that it knows the token's secret and
/// `signature` that it holds the key; both cover this TLS session, so neither can be relayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Which token.
    pub token: TokenId,
    /// Id the machine has drawn for itself.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// Its public key: a point of P-256, uncompressed.
    pub public_key: Vec<u8>,
    /// HMAC-SHA256 under the token's verifier.
    pub proof: [u8; 32],
    /// ECDSA with SHA-256, ASN.1.
    pub signature: Vec<u8>,
}

/// Sent back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// Welcome.
    Admitted {
        /// The node's certificate, PEM.
        certificate: String,
        /// Where coordinators are; the one that answered is reachable anyway.
        coordinators: Vec<SocketAddr>,
    },
    /// Not with this token, or not now.
    Refused(String),
}
