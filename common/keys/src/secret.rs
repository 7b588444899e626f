//! The text of a key: what a client sends.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pomona_common::KeyId;
use pomona_common::key::KeyHash;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// First characters of every key; many clients want `sk-` there.
pub const PREFIX: &str = "sk-pomona-";
const HALF: usize = 16;

/// A key's name and its secret. `Debug` hides the secret.
#[derive(Clone)]
pub struct KeySecret {
    id: KeyId,
    secret: [u8; HALF],
}

impl KeySecret {
    /// A key of this name from 128 random bits.
    pub fn new(id: KeyId, secret: u128) -> Self {
        let secret = secret.to_be_bytes();
        Self { id, secret }
    }

    /// Its public name.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// What the cluster keeps of the secret.
    pub fn hash(&self) -> KeyHash {
        let mut hash = Sha256::new();
        hash.update(b"pomona api key 1");
        hash.update(self.id.bits().to_be_bytes());
        hash.update(self.secret);
        KeyHash(hash.finalize().into())
    }
}

/// Compares in a time that does not tell how much of it is right.
pub(crate) fn is_same(a: &KeyHash, b: &KeyHash) -> bool {
    a.0.ct_eq(&b.0).into()
}

impl fmt::Display for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; 2 * HALF];
        bytes[..HALF].copy_from_slice(&self.id.bits().to_be_bytes());
        bytes[HALF..].copy_from_slice(&self.secret);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySecret({})", self.id)
    }
}

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key: one begins with `sk-pomona-` and 43 characters follow")]
pub struct NotAKey;

impl FromStr for KeySecret {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(NotAKey)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| NotAKey)?;
        let bytes: [u8; 2 * HALF] = bytes.try_into().map_err(|_| NotAKey)?;
        let half = |at: usize| <[u8; HALF]>::try_from(&bytes[at..at + HALF]).map_err(|_| NotAKey);
        Ok(Self {
            id: KeyId::from_bits(u128::from_be_bytes(half(0)?)),
            secret: half(HALF)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_and_hides_its_secret() -> Result<(), NotAKey> {
        let key = KeySecret::new(KeyId::from_bits(7), 0x0123_4567_89ab_cdef);
        let text = key.to_string();
        assert_eq!(text.len(), PREFIX.len() + 43);
        let again: KeySecret = text.parse()?;
        assert!(again.id() == key.id() && is_same(&again.hash(), &key.hash()));
        assert!(!format!("{key:?}").contains("cdef"));
        for bad in ["", "sk-pomona-", "sk-other", &text[..text.len() - 1], &text[3..]] {
            assert!(bad.parse::<KeySecret>().is_err(), "{bad}");
        }
        Ok(())
    }
}
