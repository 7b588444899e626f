//! Bytes of a value that is stored, not sent: Raft entries, votes and snapshots carry their own
//! version byte in front.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::WireError;

/// Newest version of stored values. Version 4 added placement to the state, version 5 leases, version 6
/// nodes that are doubted, version 7 the offload ladder and knobs, version 8 API keys, version 9 the audit log, version 10
/// fallbacks, version 11 clouds, version 12 service levels and the rung that unloads; all added commands.
/// Versions 1 and 2 were never released: their state had no tokens, and no coordinators.
pub const VERSION: u8 = 12;
/// Oldest version that can still be read.
const OLDEST: u8 = 3;

/// What versions added at the end of a value: the bytes of it when it is empty, the oldest first.
pub type Added<'a> = &'a [(u8, &'a [u8])];

/// Encodes a value whose layout all readable versions share.
///
/// # Errors
/// The value cannot be encoded.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    encode_since(value, OLDEST)
}

/// Encodes a value that a program of version `since` reads, and older ones do not.
///
/// # Errors
/// The value cannot be encoded.
pub fn encode_since<T: Serialize>(value: &T, since: u8) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![since.max(OLDEST)];
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .map_err(WireError::Encode)?;
    Ok(bytes)
}

/// Encodes a value that has grown at its end as a program of version `since` wrote it: what came later
/// is empty, and left out.
///
/// # Errors
/// The value cannot be encoded.
pub fn encode_grown<T: Serialize>(value: &T, added: Added<'_>, since: u8) -> Result<Vec<u8>, WireError> {
    let whole = encode_since(value, VERSION)?;
    let mut bytes = whole.as_slice();
    for (_, empty) in added.iter().rev().filter(|(by, _)| *by > since) {
        match bytes.strip_suffix(*empty) {
            Some(shorter) => bytes = shorter,
            // Not empty after all: whoever does not know it must not read the rest.
            None => return Ok(whole),
        }
    }
    let mut bytes = bytes.to_vec();
    bytes[0] = since.max(OLDEST);
    Ok(bytes)
}

/// Decodes a stored value whose layout all readable versions share.
///
/// # Errors
/// A newer version, bytes that are not the value, or bytes left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    decode_grown(bytes, &[])
}

/// Decodes a stored value that has grown at its end.
///
/// # Errors
/// As [`decode`].
pub fn decode_grown<T: DeserializeOwned>(bytes: &[u8], added: Added<'_>) -> Result<T, WireError> {
    let [version, payload @ ..] = bytes else {
        return Err(WireError::Truncated);
    };
    if *version < OLDEST {
        return Err(WireError::TooOld {
            got: *version,
            oldest: OLDEST,
        });
    }
    if *version > VERSION {
        return Err(WireError::Version {
            got: *version,
            known: VERSION,
        });
    }
    let missing = added.iter().filter(|(by, _)| by > version);
    let missing: Vec<u8> = missing.flat_map(|(_, bytes)| *bytes).copied().collect();
    let payload = if missing.is_empty() {
        Cow::Borrowed(payload)
    } else {
        Cow::Owned([payload, &missing].concat())
    };
    let config =
        bincode::config::standard().with_limit::<{ 4 * pomona_common::limits::RAFT_SNAPSHOT_BYTES }>();
    let (value, used) = bincode::serde::decode_from_slice(&payload, config).map_err(WireError::Decode)?;
    if used != payload.len() {
        return Err(WireError::TrailingBytes(payload.len() - used));
    }
    Ok(value)
}
