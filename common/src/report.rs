//! What a node says about itself every second.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::conditions::Conditions;
use crate::histogram::Histogram;
use crate::id::ModelName;
use crate::knobs::EngineKnobs;
use crate::unit::{Bytes, Percent, Reading, Watts};

/// Version of the report's meaning, apart from the frame's.
pub const REPORT_VERSION: u16 = 2;

/// The state of a node at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// [`REPORT_VERSION`] of the sender.
    pub version: u16,
    /// Wall clock of the node, milliseconds since 1970.
    pub wall_ms: u64,
    /// Counts reports of this process; a gap is a lost report.
    pub sequence: u64,
    /// The machine.
    pub machine: MachineReport,
    /// The engine; `None` while it is not running.
    pub engine: Option<EngineReport>,
    /// Milliseconds that clients of the node's own endpoint waited for the first SSE byte.
    pub first_byte_ms: BTreeMap<Class, Histogram>,
    /// Whether the node's engine turns all weights into 32-bit floats, running or not.
    pub dequantizes: bool,
    /// KV budget of the node's engine in bytes, running or not.
    pub kv_budget_bytes: u64,
    /// Engine exits by signal or abort since the node started.
    pub engine_kills: u64,
    /// Generation of the target the node has reached.
    pub reached_generation: u64,
    /// Why it has not reached a newer one, if so.
    pub blocked: Option<String>,
    /// Models of the target that could not be loaded.
    pub failed: Vec<ModelName>,
}

/// Readings of the machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineReport {
    /// Power of the whole package or system, as the source defines it.
    pub power: Reading<Watts>,
    /// What `power` was read from (`rapl`, `macmon`, `scripted`); empty when unavailable.
    pub power_source: String,
    /// Swap in use.
    pub swap_used: Reading<Bytes>,
    /// Physical memory.
    pub memory_total: Reading<Bytes>,
    /// Physical memory that can be had without swapping.
    pub memory_available: Reading<Bytes>,
    /// Memory pressure.
    pub pressure: Reading<Percent>,
    /// Thermal state.
    pub thermal: Reading<Thermal>,
    /// The agent itself.
    pub agent: ProcessReport,
    /// The engine process.
    pub engine: ProcessReport,
    /// Chip or processor name.
    pub chip: String,
    /// Operating system and build.
    pub os: String,
    /// What feeds it, and what else happens on it.
    pub conditions: Conditions,
}

/// Memory of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessReport {
    /// Resident set size.
    pub rss: Reading<Bytes>,
    /// `phys_footprint` of macOS: what jetsam counts, Metal memory included.
    pub footprint: Reading<Bytes>,
}

/// Thermal state as macOS names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Thermal {
    /// No throttling.
    Nominal,
    /// Slightly elevated.
    Fair,
    /// High; the system throttles.
    Serious,
    /// As high as it gets.
    Critical,
}

impl std::fmt::Display for Thermal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Thermal::Nominal => "nominal",
            Thermal::Fair => "fair",
            Thermal::Serious => "serious",
            Thermal::Critical => "critical",
        })
    }
}

/// [`EngineBuild::backend`] where a server of another program does the work.
pub const ADOPTED_BACKEND: &str = "adopted";

/// What the engine is built from and runs on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineBuild {
    /// Version of MLX.
    pub mlx_version: String,
    /// Hash over MLX library, engine version and back end: equal hashes give equal answers.
    pub build: String,
    /// `cpu`, `metal`, `cuda`, `echo` or [`ADOPTED_BACKEND`].
    pub backend: String,
    /// Number type of weights and activations.
    pub precision: String,
    /// BLAS threads of the CPU back end; 0 elsewhere.
    pub threads: u32,
    /// BLAS library of the CPU back end; empty elsewhere.
    pub blas: String,
    /// Revision of the scheduler.
    pub scheduler: String,
}

/// State and counters of the engine since it started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineReport {
    /// What answers.
    pub build: EngineBuild,
    /// Knobs in force.
    pub knobs: EngineKnobs,
    /// Loaded models.
    pub models: BTreeMap<ModelName, LoadedModel>,
    /// By class.
    pub classes: BTreeMap<Class, ClassReport>,
    /// Bytes of KV cache in slabs.
    pub kv_used: u64,
    /// Steps done.
    pub steps: u64,
    /// Milliseconds of a step.
    pub step_ms: Option<Histogram>,
}

/// One loaded model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadedModel {
    /// Sequences running.
    pub running: u32,
    /// Sequences waiting.
    pub waiting: u32,
    /// Tokens emitted.
    pub tokens: u64,
    /// Bytes of weights as loaded.
    pub weight_bytes: u64,
}

/// One class of load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassReport {
    /// Sequences waiting for a slot.
    pub waiting: u32,
    /// Sequences in a slot.
    pub running: u32,
    /// Of those, paused in favour of a more urgent class.
    pub paused: u32,
    /// Sequences finished.
    pub finished: u64,
    /// Sequences cancelled.
    pub cancelled: u64,
    /// Tokens emitted.
    pub tokens: u64,
    /// Batches: groups admitted together.
    pub batches: u64,
    /// Milliseconds that the window held the first of a group.
    pub window_ms: Histogram,
    /// Rows of the class in a step.
    pub batch_size: Histogram,
    /// Milliseconds from arrival at the engine to the first token.
    pub ttft_ms: Histogram,
    /// Tokens per second of one slot, over a whole answer.
    pub slot_tok_s: Histogram,
}

impl Default for ClassReport {
    fn default() -> Self {
        Self {
            waiting: 0,
            running: 0,
            paused: 0,
            finished: 0,
            cancelled: 0,
            tokens: 0,
            batches: 0,
            window_ms: Histogram::for_millis(),
            batch_size: Histogram::for_counts(),
            ttft_ms: Histogram::for_millis(),
            slot_tok_s: Histogram::for_counts(),
        }
    }
}
