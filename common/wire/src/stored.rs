//! Bytes of a value that is stored, not sent: Raft entries, votes and snapshots carry their own
//! version byte in front.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::WireError;

/// Version of stored values. Version 4 added placement to the state, version 5 leases; both added
/// commands. Versions 1 and 2 were never released: their state had no tokens, and no coordinators.
const VERSION: u8 = 5;
/// Oldest version that can still be read.
const OLDEST: u8 = 3;

/// Encodes a value for storage.
///
/// # Errors
/// The value cannot be encoded.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![VERSION];
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .map_err(WireError::Encode)?;
    Ok(bytes)
}

/// Decodes a stored value whose layout all readable versions share.
///
/// # Errors
/// A newer version, bytes that are not the value, or bytes left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    decode_grown(bytes, &[])
}

/// Decodes a stored value that has grown at its end: `added` is what each version added there, when
/// it is empty, the oldest first.
///
/// # Errors
/// As [`decode`].
pub fn decode_grown<T: DeserializeOwned>(bytes: &[u8], added: &[(u8, &[u8])]) -> Result<T, WireError> {
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
