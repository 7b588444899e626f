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
//! the interactive step, that is running before its own prompt is worked on. Steps for first
//! tokens pass others at most four times in a row; an interactive decoding row otherwise waits
//! for at most one prefill chunk of its own class and one slice between two of its tokens.
//! Less urgent classes get the share of turns that their knobs name. Property tests hold this.
#![forbid(unsafe_code)]

mod admission;
mod compose;
pub mod kv_pool;
pub mod scheduler;
pub mod sequence;
mod turns;

pub use kv_pool::{KvOp, KvPool, RowPlace};
pub use scheduler::{Decision, Refusal, RowWork, Scheduler, Step};
pub use sequence::{NewSequence, SequenceId};

/// Revision of the scheduling rules; reported with every engine.
pub const REVISION: &str = "sched-2";
