//! Joining: what a new node and a coordinator say to each other before there is a certificate.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, TokenId};

/// What a node is told that was shut out for good. A rented one removes what it holds then.
pub const REVOKED: &str = "this node was revoked";

/// SHA-256 of a public key as X.509 encodes it (SubjectPublicKeyInfo): the name of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyPrint(pub [u8; 32]);

impl KeyPrint {
    /// The first 80 bits as five words that two people can compare by voice: proquints
    /// (Wilkerson, arXiv:0901.4016), 16 bits each.
    pub fn words(&self) -> String {
        const CONSONANTS: &[u8; 16] = b"bdfghjklmnprstvz";
        const VOWELS: &[u8; 4] = b"aiou";
        let word = |pair: &[u8]| -> String {
            let bits = usize::from(pair[0]) << 8 | usize::from(pair[1]);
            [
                CONSONANTS[bits >> 12],
                VOWELS[bits >> 10 & 3],
                CONSONANTS[bits >> 6 & 15],
                VOWELS[bits >> 4 & 3],
                CONSONANTS[bits & 15],
            ]
            .map(char::from)
            .iter()
            .collect()
        };
        let words: Vec<String> = self.0[..10].chunks(2).map(word).collect();
        words.join("-")
    }
}

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
        /// Whether it may serve now; an operator approves it otherwise.
        approved: bool,
    },
    /// Not with this token, or not now.
    Refused(String),
    /// Welcome as a coordinator.
    Coordinator {
        /// Its number, which it keeps.
        number: u64,
        /// The authority's private key, sealed for the holder of the token in this TLS session.
        sealed_key: Vec<u8>,
        /// The other coordinators and where they are.
        coordinators: Vec<(u64, SocketAddr)>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_proquints() {
        let mut print = KeyPrint([0; 32]);
        // The paper's example: 127.0.0.1 and 63.84.220.193.
        print.0[..8].copy_from_slice(&[127, 0, 0, 1, 63, 84, 220, 193]);
        assert_eq!(print.words(), "lusab-babad-gutih-tugad-babab");
    }
}
