//! The pure decisions of the coordinator: what a command does to the replicated state, which
//! model belongs on which node, where a request goes, and how its answer survives a lost node. No clock, no network, no Raft: time
//! and observations are parameters, and every decision returns its reason.
#![forbid(unsafe_code)]

pub mod apply;
pub mod command;
mod membership;
pub mod planner;
pub mod relay;
pub mod router;
pub mod state;

pub use apply::apply;
pub use command::{Command, Reply};
pub use planner::{Inventory, NodeInventory, PlanOutcome, plan};
pub use relay::{Next, Relay};
pub use router::{Candidate, Route, route};
pub use state::{ClusterState, NodeRecord, RevokedNode, TokenRecord};
