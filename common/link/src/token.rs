//! The join token: what an operator hands to the person at a new machine.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pomona_common::{ClusterId, KeyPrint, TokenId, TokenVerifier};
use ring::digest::{SHA256, digest};

use crate::LinkError;

/// First characters of every token; the number is its version.
const PREFIX: &str = "pomona-join-1-";
/// Cluster, id, secret, pin, checksum.
const BYTES: usize = 16 + 16 + 16 + 32 + 4;

/// Good for one join of one machine. Its text is a secret until then; `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    cluster: ClusterId,
    id: TokenId,
    secret: [u8; 16],
    authority: KeyPrint,
}

impl JoinToken {
    /// Draws a token for a cluster whose authority has this key.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn draw(cluster: ClusterId, authority: KeyPrint) -> Result<Self, LinkError> {
        let mut bits = [0; 32];
        getrandom::fill(&mut bits).map_err(|error| LinkError::Token(error.to_string()))?;
        let (id, secret) = bits.split_at(16);
        let array = |part: &[u8]| <[u8; 16]>::try_from(part).unwrap_or_default();
        Ok(Self {
            cluster,
            id: TokenId::from_bits(u128::from_be_bytes(array(id))),
            secret: array(secret),
            authority,
        })
    }

    /// Its public name.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// The cluster it is for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The key of the authority that a coordinator must show before anything is sent to it.
    pub(crate) fn authority(&self) -> KeyPrint {
        self.authority
    }

    /// What the cluster keeps of the secret.
    pub fn verifier(&self) -> TokenVerifier {
        let text = [
            b"pomona join token 1".as_slice(),
            &self.id.bits().to_be_bytes(),
            &self.secret,
        ]
        .concat();
        TokenVerifier(sha256(&text))
    }
}

/// SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().unwrap_or_default()
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend(self.cluster.bits().to_be_bytes());
        bytes.extend(self.id.bits().to_be_bytes());
        bytes.extend(self.secret);
        bytes.extend(self.authority.0);
        let checksum = sha256(&bytes);
        bytes.extend(&checksum[..4]);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let bad = |why: &str| LinkError::Token(why.to_owned());
        let encoded = text.trim().strip_prefix(PREFIX).ok_or_else(|| {
            bad("it does not start with `pomona-join-1-`; make one with `pomona token create`")
        })?;
        let bytes = URL_SAFE_NO_PAD
            .decode(encoded)
            .ok()
            .filter(|bytes| bytes.len() == BYTES)
            .ok_or_else(|| bad("it is cut off or has foreign characters; copy all of it"))?;
        let (body, checksum) = bytes.split_at(BYTES - 4);
        if sha256(body)[..4] != *checksum {
            return Err(bad("a character of it is wrong; copy it again"));
        }
        let number = |at: usize| {
            let part = <[u8; 16]>::try_from(&body[at..at + 16]).unwrap_or_default();
            u128::from_be_bytes(part)
        };
        Ok(Self {
            cluster: ClusterId::from_bits(number(0)),
            id: TokenId::from_bits(number(16)),
            secret: body[32..48].try_into().unwrap_or_default(),
            authority: KeyPrint(body[48..80].try_into().unwrap_or_default()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Result<JoinToken, LinkError> {
        JoinToken::draw(ClusterId::from_bits(7), KeyPrint([9; 32]))
    }

    #[test]
    fn a_token_survives_its_text() -> Result<(), LinkError> {
        let token = token()?;
        assert_eq!(token.to_string().parse::<JoinToken>()?, token);
        assert_eq!(format!(" {token}\n").parse::<JoinToken>()?, token);
        assert!(!format!("{token:?}").contains(&token.to_string()));
        Ok(())
    }

    #[test]
    fn every_damage_is_noticed() -> Result<(), LinkError> {
        let text = token()?.to_string();
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<JoinToken>().is_err(), "cut at {cut}");
        }
        for at in PREFIX.len()..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8_lossy(&other).into_owned();
            assert!(other.parse::<JoinToken>().is_err(), "changed at {at}");
        }
        Ok(())
    }

    #[test]
    fn verifiers_depend_on_the_secret_and_the_id() -> Result<(), LinkError> {
        let (one, other) = (token()?, token()?);
        assert_ne!(one.verifier(), other.verifier());
        Ok(())
    }
}
