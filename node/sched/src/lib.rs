//! The step arbiter of the engine: given who waits and who runs, it decides who takes part in
//! the next step and where their KV cache lies. Pure: no MLX, no clock, no I/O.
//!
//! ```text
//! submit ─▶ waiting ─admit─▶ prefill ─chunks─▶ decode ─finish─▶ gone
//!              ▲                 └──── preempted ────┘
//!              └───────────────────────────┘
//! ```
//!
//! **The bound.** Every step carries at most `total_slots` decoding rows and one class's prefill
//! chunk, the most urgent that has any. So a request of the interactive class that finds a free
//! slot waits for at most the step that is running before its own prompt is worked on, and a
//! decoding row waits for at most one chunk between two of its tokens. Property tests hold both.
#![forbid(unsafe_code)]

mod admission;
mod compose;
pub mod kv_pool;
pub mod scheduler;
pub mod sequence;

pub use kv_pool::{KvOp, KvPool, RowPlace};
pub use scheduler::{Decision, Refusal, RowWork, Scheduler, Step};
pub use sequence::{NewSequence, SequenceId};

/// Revision of the scheduling rules; reported with every engine.
pub const REVISION: &str = "sched-1";
