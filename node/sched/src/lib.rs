//! The step arbiter of the engine: given who waits and who runs, it decides who takes part in
//! the next step and where their KV cache lies. Pure: no MLX, no clock, no I/O.
//!
//! ```text
//! submit ─▶ waiting ─admit─▶ prefill ─chunks─▶ decode ─finish─▶ gone
//!              ▲                 └──── preempted ────┘
//!              └───────────────────────────┘
//! ```
//!
//! **Slices.** A step without interactive rows may be interrupted between two layers, so it can
//! carry a prefill chunk of an efficient size without making anybody wait for the whole of it:
//! the engine stops after a slice, and more urgent steps pass ([`Scheduler::interrupt`]).
//!
//! **The bound.** An interactive request that finds a free slot waits for at most the slice, or
//! the interactive step, that is running before its own prompt is worked on; a prompt longer than
//! half a chunk also waits for those admitted before it. Steps for first tokens pass another
//! class or model at most four times in a row. Between two tokens of an interactive row lie at
//! most one prefill chunk of its own class, one slice of each less urgent class, and the steps of
//! other models in their turn. Less urgent classes get the turns that their knobs name. Property
//! tests hold this. A part of a model that is being loaded comes on top, see the engine.
#![forbid(unsafe_code)]

mod admission;
mod compose;
pub mod kv_pool;
mod pace;
mod prefixes;
pub mod scheduler;
pub mod sequence;
mod steadiness;
mod turns;

pub use kv_pool::{KvOp, KvPool, RowPlace};
pub use prefixes::{Kin, Prefixes, goes_on, with_prefix_share};
pub use scheduler::{Decision, Refusal, RowWork, Scheduler, Step};
pub use sequence::{NewSequence, SequenceId};
pub use steadiness::Steadiness;

/// Revision of the scheduling rules; reported with every engine.
pub const REVISION: &str = "sched-2";
