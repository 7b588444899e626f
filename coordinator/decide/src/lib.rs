//! The pure decisions of the coordinator: what a command does to the replicated state, which
//! model belongs on which node, which coordinators vote, where a request goes, and how its answer
//! survives a lost node. No clock, no network, no Raft: time and observations are parameters, and
//! every decision returns its reason.
#![forbid(unsafe_code)]

pub mod affinity;
pub mod apply;
pub mod audit;
pub mod clouds;
pub mod command;
pub mod coordinators;
pub mod entry;
mod fallback;
pub mod gates;
mod heard;
pub mod keys;
pub mod knob_sets;
pub mod ladder;
mod lasting;
mod latest;
pub mod lease;
mod membership;
pub mod offload;
pub mod pace;
pub mod patience;
pub mod placement;
pub mod planner;
pub mod prefills;
pub mod presence;
pub mod promptness;
pub mod proposal;
pub mod relay;
pub mod router;
pub mod scarcity;
pub mod sets;
mod smoothed;
pub mod state;
pub mod telemetry;
mod upgrade;
pub mod watchdog;

pub use affinity::{Affinity, Marks, Warm};
pub use apply::apply;
pub use audit::{AuditBook, AuditEntry, AuditHash, Audited, Deed};
pub use clouds::{Approval, CloudBook, Month, Reserved, Spill, SpillId, Took};
pub use command::{Command, Reply};
pub use coordinators::{CoordinatorRecord, MemberChange, Members, next_member_change};
pub use entry::{Ask, EntryPlace, Here, Reachable, entry};
pub use gates::{GateBook, GateWatch, Transition};
pub use heard::Heard;
pub use keys::{Counted, KeyBook};
pub use ladder::{Ladder, NodeSignals};
pub use lease::{Lease, Leases, Phase};
pub use offload::{Comfort, Offload, Relieved};
pub use pace::{Pacer, Warmth};
pub use patience::Patience;
pub use placement::{Availability, Keep, ModelPolicy, Move, Placement, PlanMoves, PlanStep, Replicas};
pub use planner::{
    Explanation, Inventory, NodeInventory, PlanOutcome, StoreInventory, Verdict, explain, plan,
};
pub use prefills::Prefills;
pub use presence::{Presence, presence};
pub use promptness::{Promptness, Strain};
pub use proposal::{Proposal, TOO_LATE, apply_proposal};
pub use relay::{Next, Relay};
pub use router::{Candidate, Route, route};
pub use scarcity::Scarcity;
pub use sets::{Made, Sets};
pub use state::{Admits, ClusterState, NodeRecord, RevokedNode, TokenRecord};
pub use telemetry::{Point, Series, Telemetry};
pub use upgrade::too_new;
pub use watchdog::Watchdog;
