//! API keys at an entry: their text, who opens what, and how much they have left. Pure: time and
//! randomness come in.
//!
//! Limits are enforced by each entry on its own, from what all entries have told the cluster (some seconds
//! old) and what it has seen itself since. So entries that are asked at the same moment may together let
//! through what each of them may have under way; no entry forgets or repeats anything when the leader changes.
#![forbid(unsafe_code)]

mod denied;
mod learned;
mod meter;
mod ring;
mod secret;

pub use denied::{Bound, Denied};
pub use learned::Learned;
pub use meter::{Meter, Reserved};
pub use ring::KeyRing;
pub use secret::{KeySecret, PREFIX};
