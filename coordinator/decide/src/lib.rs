//! The pure decisions of the coordinator: what a command does to the replicated state, which
//! model belongs on which node, and where a request goes. No clock, no network, no Raft: time
//! and observations are parameters, and every decision returns its reason.
#![forbid(unsafe_code)]

pub mod apply;
pub mod command;
mod membership;
pub mod planner;
pub mod router;
pub mod state;

pub use apply::apply;
pub use command::{Command, Reply};
pub use planner::{Inventory, NodeInventory, PlanOutcome, plan};
pub use router::{Candidate, Route, route};
pub use state::{ClusterState, NodeRecord, RevokedNode, TokenRecord};
