//! A cluster of one, end to end: real processes, the real model, real clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    reason = "a test"
)]

mod adopted;
mod alone;
mod api;
mod clients;
mod cloud;
mod command;
mod coordinators;
mod crash;
mod destinations;
mod disk_full;
mod fallback;
mod gates;
mod golden;
mod join;
mod keys;
mod lease;
mod litellm;
mod offload;
mod placement;
mod resume;
mod roles;
mod service;
mod sleep;
mod slo;
mod stand_ins;
mod sticky;
mod telemetry;
mod weights;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tests that load the model, or start many processes, run one after the other: they share two
/// cores, and nodes whose reports are late get no work.
fn engine_lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}
