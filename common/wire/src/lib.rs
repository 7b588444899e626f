//! Frames between the processes of Pomona: length, kind, version, payload. The one place that
//! touches bincode.
//!
//! ```text
//! | u32 length of the rest, little endian | u8 kind | u8 version | bincode payload |
//! ```
//! A frame of another kind or of a newer version is refused by name before its payload is
//! looked at, and nothing longer than the kind's limit is read.
#![forbid(unsafe_code)]

pub mod stored;

use std::io::{Read, Write};

use pomona_common::control::{CoordinatorMessage, NodeMessage, StreamRequest, TextBundle};
use pomona_common::engine::{EngineCommand, EngineEvent};
use pomona_common::generation::GenerationEvent;
use pomona_common::join::{JoinAnswer, JoinRequest};
use pomona_common::limits;
use pomona_common::renew::{RenewAnswer, RenewRequest};
use pomona_common::weights::{Manifest, WeightsRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 6;

/// A frame that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Longer than this kind may be.
    #[error("frame of {len} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// Shorter than its header, or cut off.
    #[error("frame is truncated")]
    Truncated,
    /// Another kind of message.
    #[error("frame of kind {got} where kind {want} belongs")]
    Kind {
        /// Kind in the frame.
        got: u8,
        /// Kind expected.
        want: u8,
    },
    /// Made by a newer program.
    #[error("frame version {got} is newer than {known}, update this program")]
    Version {
        /// Version in the frame.
        got: u8,
        /// Newest version known here.
        known: u8,
    },
    /// Made by a program that is too old.
    #[error("frame version {got} is older than {oldest}, update the program at the other end")]
    OldFrame {
        /// Version in the frame.
        got: u8,
        /// Oldest version known here.
        oldest: u8,
    },
    /// Stored by a program that is too old.
    #[error(
        "stored by an earlier program (version {got}, {oldest} is the oldest that can be read): move the folder away to start anew"
    )]
    TooOld {
        /// Version of the value.
        got: u8,
        /// Oldest version known here.
        oldest: u8,
    },
    /// The payload is not a message.
    #[error("payload does not decode")]
    Decode(#[source] bincode::error::DecodeError),
    /// Bytes follow the message.
    #[error("{0} bytes follow the message")]
    TrailingBytes(usize),
    /// The message cannot be encoded.
    #[error("message does not encode")]
    Encode(#[source] bincode::error::EncodeError),
    /// The pipe or file failed.
    #[error("frame transport failed")]
    Io(#[source] std::io::Error),
}

/// A value with a place on the wire.
pub trait Message: Serialize + DeserializeOwned {
    /// Number of the kind, never reused.
    const KIND: u8;
    /// Version of the encoding; raised when old bytes would decode differently.
    const VERSION: u8;
    /// Oldest version that is still understood.
    const OLDEST: u8;
    /// Longest frame, header excluded from the count.
    const LIMIT: usize;

    /// Version of the protocol, as agreed in the handshake, that brought this message.
    fn since(&self) -> u16 {
        1
    }

    /// Decodes the payload under this kind's limit.
    ///
    /// # Errors
    /// [`WireError::Decode`] or [`WireError::TrailingBytes`].
    fn decode_payload(payload: &[u8]) -> Result<Self, WireError>;
}

macro_rules! message {
    ($type:ty, kind $kind:literal, versions $oldest:literal to $version:literal, limit $limit:expr $(, since $since:expr)?) => {
        impl Message for $type {
            const KIND: u8 = $kind;
            const VERSION: u8 = $version;
            const OLDEST: u8 = $oldest;
            const LIMIT: usize = $limit;

            $(fn since(&self) -> u16 {
                $since(self)
            })?

            fn decode_payload(payload: &[u8]) -> Result<Self, WireError> {
                // In memory a message may take more than on the wire, hence four times.
                let config = bincode::config::standard().with_limit::<{ 4 * $limit }>();
                let (message, used) =
                    bincode::serde::decode_from_slice(payload, config).map_err(WireError::Decode)?;
                if used != payload.len() {
                    return Err(WireError::TrailingBytes(payload.len() - used));
                }
                Ok(message)
            }
        }
    };
}

// Version 1 of a report, which was never released, knew no conditions.
message!(NodeMessage, kind 1, versions 2 to 2, limit limits::CONTROL_FRAME_BYTES, since NodeMessage::since);
message!(CoordinatorMessage, kind 2, versions 1 to 1, limit limits::CONTROL_FRAME_BYTES, since CoordinatorMessage::since);
message!(StreamRequest, kind 3, versions 1 to 1, limit limits::STREAM_FRAME_BYTES);
message!(GenerationEvent, kind 4, versions 1 to 1, limit limits::CONTROL_FRAME_BYTES, since GenerationEvent::since);
message!(TextBundle, kind 5, versions 1 to 1, limit limits::TEXT_BUNDLE_BYTES);
message!(EngineCommand, kind 6, versions 1 to 1, limit limits::ENGINE_FRAME_BYTES);
message!(EngineEvent, kind 7, versions 1 to 1, limit limits::ENGINE_FRAME_BYTES);
message!(JoinRequest, kind 8, versions 1 to 1, limit limits::JOIN_FRAME_BYTES);
message!(JoinAnswer, kind 9, versions 1 to 1, limit limits::JOIN_FRAME_BYTES);
message!(WeightsRequest, kind 10, versions 1 to 1, limit limits::JOIN_FRAME_BYTES);
message!(Manifest, kind 11, versions 1 to 1, limit limits::MANIFEST_FRAME_BYTES);
message!(RenewRequest, kind 12, versions 1 to 1, limit limits::JOIN_FRAME_BYTES);
message!(RenewAnswer, kind 13, versions 1 to 1, limit limits::JOIN_FRAME_BYTES);

/// A message as one frame.
///
/// # Errors
/// The message exceeds its kind's limit or cannot be encoded.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    let mut frame = vec![0, 0, 0, 0, M::KIND, M::VERSION];
    bincode::serde::encode_into_std_write(message, &mut frame, bincode::config::standard())
        .map_err(WireError::Encode)?;
    let len = frame.len() - 4;
    if frame.len() - HEADER_BYTES > M::LIMIT {
        return Err(WireError::TooLong { len, limit: M::LIMIT });
    }
    frame[..4].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(frame)
}

/// Length of what follows the four length bytes.
///
/// # Errors
/// It is over the limit of `M`, or too short for kind and version.
pub fn body_len<M: Message>(length: [u8; 4]) -> Result<usize, WireError> {
    let len = u32::from_le_bytes(length) as usize;
    if len < HEADER_BYTES - 4 {
        return Err(WireError::Truncated);
    }
    if len - (HEADER_BYTES - 4) > M::LIMIT {
        return Err(WireError::TooLong { len, limit: M::LIMIT });
    }
    Ok(len)
}

/// Decodes what followed the four length bytes.
///
/// # Errors
/// Wrong kind, newer version, or a payload that is not a message.
pub fn decode_body<M: Message>(body: &[u8]) -> Result<M, WireError> {
    let [kind, version, payload @ ..] = body else {
        return Err(WireError::Truncated);
    };
    if *kind != M::KIND {
        return Err(WireError::Kind {
            got: *kind,
            want: M::KIND,
        });
    }
    if *version < M::OLDEST {
        return Err(WireError::OldFrame {
            got: *version,
            oldest: M::OLDEST,
        });
    }
    if *version > M::VERSION {
        return Err(WireError::Version {
            got: *version,
            known: M::VERSION,
        });
    }
    M::decode_payload(payload)
}

/// Reads one frame; `None` at a clean end.
///
/// # Errors
/// As [`body_len`] and [`decode_body`], or the reader fails or ends inside a frame.
pub fn read_from<M: Message>(reader: &mut impl Read) -> Result<Option<M>, WireError> {
    let mut length = [0; 4];
    let mut filled = 0;
    while filled < 4 {
        match reader.read(&mut length[filled..]).map_err(WireError::Io)? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(WireError::Truncated),
            n => filled += n,
        }
    }
    let mut body = vec![0; body_len::<M>(length)?];
    reader.read_exact(&mut body).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => WireError::Truncated,
        _ => WireError::Io(error),
    })?;
    decode_body(&body).map(Some)
}

/// Writes one frame.
///
/// # Errors
/// As [`encode`], or the writer fails.
pub fn write_to<M: Message>(writer: &mut impl Write, message: &M) -> Result<(), WireError> {
    let frame = encode(message)?;
    writer.write_all(&frame).map_err(WireError::Io)?;
    writer.flush().map_err(WireError::Io)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use pomona_common::generation::{Accounting, Chunk, FinishReason};
    use pomona_common::{Failure, Generation, ModelDigests, NodeId, Sampling, TokenId};

    use super::*;

    fn generation() -> Result<Generation, pomona_common::id::IdError> {
        Ok(Generation {
            request: pomona_common::RequestId::from_bits(7),
            choice: 0,
            model: "a/b".parse()?,
            digests: ModelDigests {
                weights: "w".into(),
                tokenizer: "t".into(),
                template: "c".into(),
            },
            class: pomona_common::Class::Batch,
            class_reason: pomona_common::ClassReason::Header,
            prompt: vec![1, 300, 70_000],
            resume: vec![],
            max_tokens: 9,
            stop_tokens: vec![2],
            sampling: Sampling::greedy(),
            cache_salt: 0,
            pools: pomona_common::Pools::default(),
            text: None,
            seek: pomona_common::Seek::Any,
        })
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Released bytes: they must decode for ever. A change here is a new version.
    #[test]
    fn golden_frames_still_decode() -> Result<(), Box<dyn std::error::Error>> {
        let chunk = GenerationEvent::Chunk(Chunk {
            position: 3,
            tokens: vec![5, 251, 70_000],
            logprobs: vec![],
        });
        let golden = "0f0000000401010303 05fbfb00fc7011010000".replace(' ', "");
        assert_eq!(hex(&encode(&chunk)?), golden);
        let join = JoinRequest {
            token: TokenId::from_bits(1),
            node: NodeId::from_bits(2),
            name: "mini".into(),
            public_key: vec![4, 5],
            proof: [6; 32],
            signature: vec![7],
        };
        assert_eq!(hex(&encode(&join)?), include_str!("../golden/join.hex").trim());
        let admitted = JoinAnswer::Admitted {
            certificate: "pem".into(),
            coordinators: vec![([10, 0, 0, 1], 7712).into()],
            approved: true,
        };
        let golden = "1100000009010003 70656d01000a000001fb201e01".replace(' ', "");
        assert_eq!(hex(&encode(&admitted)?), golden);
        let start = StreamRequest::Generate(Box::new(generation()?));
        let golden = include_str!("../golden/generate.hex").trim();
        assert_eq!(hex(&encode(&start)?), golden);
        Ok(())
    }

    #[test]
    fn frames_survive_the_pipe() -> Result<(), Box<dyn std::error::Error>> {
        let events = [
            GenerationEvent::Granted,
            GenerationEvent::Finished {
                reason: FinishReason::Length,
                accounting: Accounting::default(),
            },
            GenerationEvent::Failed(Failure::EngineLost),
        ];
        let mut pipe = Vec::new();
        for event in &events {
            write_to(&mut pipe, event)?;
        }
        let mut reader = pipe.as_slice();
        for event in &events {
            assert_eq!(read_from::<GenerationEvent>(&mut reader)?.as_ref(), Some(event));
        }
        assert!(read_from::<GenerationEvent>(&mut reader)?.is_none());
        Ok(())
    }

    #[test]
    fn every_truncation_and_every_flipped_header_byte_is_a_named_error()
    -> Result<(), Box<dyn std::error::Error>> {
        let frame = encode(&StreamRequest::Generate(Box::new(generation()?)))?;
        for len in 1..frame.len() {
            let mut reader = &frame[..len];
            assert!(read_from::<StreamRequest>(&mut reader).is_err(), "{len}");
        }
        for at in 0..HEADER_BYTES {
            let mut bad = frame.clone();
            bad[at] ^= 0x80;
            assert!(read_from::<StreamRequest>(&mut bad.as_slice()).is_err(), "{at}");
        }
        Ok(())
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_anything_is_allocated() {
        let frame = [0xff, 0xff, 0xff, 0x7f, 1, 1];
        let read = read_from::<NodeMessage>(&mut frame.as_slice());
        assert!(matches!(read, Err(WireError::TooLong { .. })));
    }

    #[test]
    fn random_payloads_never_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut body = vec![0; 2 + (state % 60) as usize];
            for byte in &mut body {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state as u8;
            }
            for kind in 1..=11 {
                body[0] = kind;
                body[1] = if kind == NodeMessage::KIND {
                    NodeMessage::VERSION
                } else {
                    1
                };
                let _ = decode_body::<NodeMessage>(&body);
                let _ = decode_body::<StreamRequest>(&body);
                let _ = decode_body::<EngineCommand>(&body);
                let _ = decode_body::<EngineEvent>(&body);
                let _ = decode_body::<JoinRequest>(&body);
                let _ = decode_body::<JoinAnswer>(&body);
                let _ = decode_body::<WeightsRequest>(&body);
                let _ = decode_body::<Manifest>(&body);
            }
        }
    }
}
