//! Answers over sessions: asking a peer for one, keeping it going when that peer is lost, and
//! serving one to a peer. The shell around `pomona_decide`'s relay that coordinators and nodes
//! share; who is asked in which order is theirs ([`Places`]).
#![forbid(unsafe_code)]

mod carry;
mod hold;
mod promise;
mod serve;
mod spill;

pub use carry::{Places, generate, is_last_word, moves};
pub use hold::{Waiting, hopeful};
pub use promise::{Promise, ask, fetch_text};
pub use serve::{send_last, serve};
pub use spill::{SPILL, ask_cloud};
