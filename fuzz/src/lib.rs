//! Everything that reads bytes which others made, as functions that take any bytes. They must not
//! panic, hang, or take more memory than the limits say; where a value comes out of it, writing and
//! reading it again gives the same one.
//!
//! `corpus/TARGET` holds inputs that say something; `tests/replay.rs` runs them and thousands of
//! variations of them in every test run, on stable. `cargo xtask fuzz TARGET` lets libFuzzer look for
//! more.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a broken promise is a panic here"
)]

pub mod seeds;
mod targets;

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", targets::frame),
    ("cloud_events", targets::cloud_events),
    ("stored", targets::stored),
    ("command", targets::command),
    ("join_token", targets::join_token),
    ("request", targets::request),
    ("template", targets::template),
    ("model_config", targets::model_config),
    ("safetensors_header", targets::safetensors_header),
    ("gguf", targets::gguf),
    ("configuration", targets::configuration),
];

/// Calls a target by its name.
///
/// # Panics
/// There is none with this name, or it breaks a promise.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(own, _)| *own == name);
    let (_, target) = target.unwrap_or_else(|| panic!("no target `{name}`"));
    target(data);
}
