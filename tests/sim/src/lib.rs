//! The simulator: a whole cluster on one thread. The decisions of the product (planner, router, entry, relay,
//! ladder, gates, contacts, leases, patience, scheduler, clocks) over Macs, a network, people and clients that
//! are made up, and a log that is ideal. A seed decides everything, and gives the same history byte by byte.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a part of the tests")]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, reason = "a test"))]

pub mod actions;
pub mod answers;
pub mod client;
pub mod cluster;
pub mod coordinator;
pub mod day;
pub mod engine;
pub mod faults;
pub mod gates;
pub mod log;
pub mod mac;
pub mod machine;
pub mod node;
pub mod policy;
pub mod promises;
pub mod quotas;
pub mod side_by_side;
pub mod spills;
#[cfg(test)]
mod tests;
pub mod tokens;
pub mod trouble;
pub mod wire;
pub mod world;
