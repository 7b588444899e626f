//! The authority's private key on its way to a new coordinator: sealed with a key that only the
//! holder of the token has, and only in the TLS session in which it proved that.

use pomona_common::TokenVerifier;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};

use crate::LinkError;

const LABEL: &[u8] = b"pomona authority key 1";

/// Seals the key.
pub(crate) fn seal(
    key_pem: &str,
    verifier: TokenVerifier,
    exporter: &[u8; 32],
) -> Result<Vec<u8>, LinkError> {
    let mut bytes = key_pem.as_bytes().to_vec();
    sealing_key(verifier, exporter)?
        .seal_in_place_append_tag(once(), Aad::from(LABEL), &mut bytes)
        .map_err(|_| trouble("is not sealed"))?;
    Ok(bytes)
}

/// Opens it again.
pub(crate) fn open(
    mut sealed: Vec<u8>,
    verifier: TokenVerifier,
    exporter: &[u8; 32],
) -> Result<String, LinkError> {
    let opened = sealing_key(verifier, exporter)?
        .open_in_place(once(), Aad::from(LABEL), &mut sealed)
        .map_err(|_| trouble("does not open"))?;
    String::from_utf8(opened.to_vec()).map_err(|_| trouble("is not text"))
}

fn sealing_key(verifier: TokenVerifier, exporter: &[u8; 32]) -> Result<LessSafeKey, LinkError> {
    let secret = Salt::new(HKDF_SHA256, exporter).extract(&verifier.0);
    let key = secret.expand(&[LABEL], &AES_256_GCM).map(UnboundKey::from);
    key.map(LessSafeKey::new)
        .map_err(|_| trouble("has no sealing key"))
}

/// Each session has a key of its own that seals one text.
fn once() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn trouble(what: &str) -> LinkError {
    LinkError::Certificate(format!("the authority's key {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_holder_of_the_token_in_this_session_opens_the_key() -> Result<(), LinkError> {
        let verifier = TokenVerifier([1; 32]);
        let sealed = seal("key", verifier, &[2; 32])?;
        assert_eq!(open(sealed.clone(), verifier, &[2; 32])?, "key");
        assert!(open(sealed.clone(), TokenVerifier([3; 32]), &[2; 32]).is_err());
        assert!(open(sealed.clone(), verifier, &[3; 32]).is_err());
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(open(damaged, verifier, &[2; 32]).is_err(), "changed at {at}");
        }
        Ok(())
    }
}
