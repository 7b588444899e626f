//! The vocabulary of Pomona: ids, units, limits, classes, knobs, reports, plans, messages and
//! failures. No I/O, no async, no clock.
#![forbid(unsafe_code)]

pub mod catalogue;
pub mod class;
pub mod cloud;
pub mod conditions;
pub mod control;
pub mod engine;
pub mod failure;
pub mod fallback;
pub mod gate;
pub mod generation;
pub mod histogram;
pub mod id;
pub mod join;
pub mod key;
pub mod knobs;
pub mod limits;
pub mod line;
pub mod machine;
pub mod plan;
pub mod plausible;
pub mod relief;
pub mod renew;
pub mod report;
pub mod sampling;
pub mod signs;
mod slo;
pub mod spending;
mod store_key;
pub mod text_ask;
mod turnover;
pub mod unit;
mod versioned;
pub mod weights;

pub use catalogue::{ModelDigests, ModelRecord};
pub use class::{Class, ClassReason};
pub use cloud::{CloudName, Money, Prices, ServerAddress};
pub use failure::Failure;
pub use fallback::{Fallback, Fallbacks};
pub use generation::{Accounting, Chunk, Energy, FinishReason, Generation, GenerationEvent, Maker, Seek};
pub use histogram::Histogram;
pub use id::{ClusterId, KeyId, ModelName, NodeId, RequestId, TokenId};
pub use join::{KeyPrint, REVOKED, TokenVerifier};
pub use knobs::{ClassKnobs, EngineKnobs, KnobSet};
pub use line::Line;
pub use machine::{MachineRole, Pools};
pub use relief::{Relief, Rung};
pub use sampling::Sampling;
pub use slo::{SLO_NAMES, Slo, SloSet};
pub use store_key::StoreKey;
pub use text_ask::{TextAsk, TextPrompt, Usage};
pub use turnover::Turnover;
pub use unit::{Bytes, Millis, Percent, Tokens, Watts};
pub use versioned::Versioned;
