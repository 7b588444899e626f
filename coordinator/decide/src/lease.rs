//! Rented machines leave before their lease ends: drained, then told to destroy what they hold, then
//! shut out.

use std::collections::BTreeMap;

use pomona_common::{MachineRole, NodeId, TokenId};
use serde::{Deserialize, Serialize};

use crate::command::{Command, Reply};
use crate::membership;
use crate::placement::Availability;
use crate::state::{Admits, ClusterState, NodeRecord};

/// How long before its end a lease is drained, unless it says otherwise, in seconds.
pub const DRAIN_S: u64 = 600;
/// Of that, the part after which what is left is taken away: destroying takes time as well.
const EVICT_SHARE: u64 = 5;
/// Longest lease, in seconds: ten years.
const LONGEST_S: u64 = 10 * 365 * 24 * 3600;

/// The time for which a machine is rented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its end, in seconds since 1970.
    pub ends_s: u64,
    /// How long before that the machine is drained, in seconds.
    pub drain_s: u64,
    /// Whether the machine has been told to destroy what it holds: nothing takes that back.
    pub evicting: bool,
}

/// Where a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It serves.
    Running,
    /// It gives up what it has, until this time in seconds since 1970.
    Draining {
        /// The time.
        until_s: u64,
    },
    /// It is to destroy what it holds.
    Evicting,
    /// Its time is over: it is shut out, whatever it has done.
    Over,
}

impl Lease {
    /// A lease up to `ends_s`, in seconds since 1970.
    pub fn until(ends_s: u64, drain_s: u64) -> Self {
        Self {
            ends_s,
            drain_s,
            evicting: false,
        }
    }

    /// Where it stands at `now_s`.
    pub fn phase(&self, now_s: u64) -> Phase {
        let evict_s = self.ends_s.saturating_sub((self.drain_s / EVICT_SHARE).max(1));
        match now_s {
            _ if now_s >= self.ends_s => Phase::Over,
            _ if self.evicting || now_s >= evict_s => Phase::Evicting,
            _ if now_s >= self.ends_s.saturating_sub(self.drain_s) => Phase::Draining { until_s: evict_s },
            _ => Phase::Running,
        }
    }
}

/// The leases of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// What a machine gets that joins with a token.
    pub of_tokens: BTreeMap<TokenId, Lease>,
    /// By node.
    pub of_nodes: BTreeMap<NodeId, Lease>,
}

impl ClusterState {
    /// Where the lease of a node stands, if it has one.
    pub fn lease_phase(&self, node: NodeId, now_s: u64) -> Option<Phase> {
        self.leases.of_nodes.get(&node).map(|lease| lease.phase(now_s))
    }

    /// Whether a node takes replicas: by what an operator said and by its lease, the stricter.
    pub fn availability(&self, node: NodeId, now_s: u64) -> Availability {
        let said = self.placement.availability(node);
        let leaves_s = match self.lease_phase(node, now_s) {
            None | Some(Phase::Running) => return said,
            Some(Phase::Draining { until_s }) => until_s,
            Some(Phase::Evicting | Phase::Over) => now_s,
        };
        match said {
            Availability::Draining { until_s } => Availability::Draining {
                until_s: until_s.min(leaves_s),
            },
            _ => Availability::Draining { until_s: leaves_s },
        }
    }
}

/// What the leader has to do about leases now.
pub fn due(state: &ClusterState, now_s: u64) -> Vec<Command> {
    let leases = state.leases.of_nodes.iter();
    let command = |(node, lease): (&NodeId, &Lease)| match lease.phase(now_s) {
        Phase::Running | Phase::Draining { .. } => None,
        Phase::Evicting => (!lease.evicting).then_some(Command::Evict {
            node: *node,
            seen: Some(*lease),
            now_s,
        }),
        Phase::Over => Some(Command::EndLease {
            node: *node,
            seen: *lease,
            now_s,
        }),
    };
    leases.filter_map(command).collect()
}

pub(crate) fn of_token(
    state: &mut ClusterState,
    token: TokenId,
    admits: Admits,
    lease: Option<Lease>,
    now_s: u64,
) -> Reply {
    let Some(lease) = lease else {
        return Reply::Done;
    };
    if admits != Admits::Node(MachineRole::Rented) {
        return Reply::Refused("only a rented machine has a lease".into());
    }
    if let Some(why) = bad(lease, now_s) {
        return Reply::Refused(why);
    }
    let Leases { of_tokens, .. } = &mut state.leases;
    of_tokens.retain(|id, _| state.tokens.contains_key(id));
    of_tokens.insert(token, lease);
    Reply::Done
}

/// Why nobody joins with a token any more, if its lease says so.
pub(crate) fn refuses(state: &ClusterState, token: TokenId, now_s: u64) -> Option<&'static str> {
    let lease = state.leases.of_tokens.get(&token)?;
    (lease.phase(now_s) != Phase::Running).then_some("the lease that comes with this token is nearly over")
}

/// The machine that joined with a token has its lease from now on. One that was a member before stays
/// what it was: a rack machine has no lease, and what is being evicted goes.
pub(crate) fn begin(state: &mut ClusterState, token: TokenId, node: NodeId) {
    let is_rented = |record: &NodeRecord| record.role == MachineRole::Rented;
    let goes = |lease: &Lease| lease.evicting;
    if let Some(lease) = state.leases.of_tokens.get(&token)
        && state.nodes.get(&node).is_some_and(is_rented)
        && !state.leases.of_nodes.get(&node).is_some_and(goes)
    {
        state.leases.of_nodes.insert(node, *lease);
    }
}

pub(crate) fn set(state: &mut ClusterState, node: NodeId, lease: Option<Lease>, now_s: u64) -> Reply {
    let Some(record) = state.nodes.get(&node) else {
        return Reply::Refused(format!("no node {node}"));
    };
    let own = state.leases.of_nodes.get(&node);
    if own.is_some_and(|own| own.evicting) {
        return Reply::Refused("the node is being evicted, which cannot be taken back".into());
    }
    let Some(lease) = lease else {
        let had = state.leases.of_nodes.remove(&node).is_some();
        return if had { Reply::Done } else { Reply::Unchanged };
    };
    if record.role != MachineRole::Rented {
        return Reply::Refused(format!(
            "{} is not rented: only rented machines have leases",
            record.name
        ));
    }
    if let Some(why) = bad(lease, now_s) {
        return Reply::Refused(why);
    }
    if own == Some(&lease) {
        return Reply::Unchanged;
    }
    state.leases.of_nodes.insert(node, lease);
    Reply::Done
}

/// The node is told to destroy what it holds.
pub(crate) fn evict(state: &mut ClusterState, node: NodeId, seen: Option<Lease>, now_s: u64) -> Reply {
    if seen.is_some() && state.leases.of_nodes.get(&node) != seen.as_ref() {
        return Reply::Unchanged;
    }
    match state.leases.of_nodes.get_mut(&node) {
        None => Reply::Refused("the node has no lease; `pomona node revoke` shuts it out".into()),
        Some(lease) if lease.evicting => Reply::Unchanged,
        Some(lease) => {
            lease.evicting = true;
            // Whether it says that it has left or not, it is out then.
            lease.ends_s = lease.ends_s.min(now_s.saturating_add(DRAIN_S));
            Reply::Done
        }
    }
}

/// The lease is over: the node is shut out, whatever it has done.
pub(crate) fn end(state: &mut ClusterState, node: NodeId, seen: Lease, now_s: u64) -> Reply {
    if state.leases.of_nodes.get(&node) != Some(&seen) || seen.phase(now_s) != Phase::Over {
        return Reply::Unchanged;
    }
    membership::revoke_node(state, node, now_s)
}

/// Why a lease is refused, if it is.
fn bad(lease: Lease, now_s: u64) -> Option<String> {
    if lease.evicting || lease.ends_s <= now_s {
        return Some("a lease ends in the future".into());
    }
    (lease.ends_s - now_s > LONGEST_S || lease.drain_s > LONGEST_S)
        .then(|| "a lease ends within ten years".into())
}

#[cfg(test)]
mod tests {
    use pomona_common::{KeyPrint, TokenVerifier};

    use super::*;
    use crate::apply;
    use crate::state::TokenRecord;

    const NODE: NodeId = NodeId::from_bits(1);

    fn rented() -> ClusterState {
        let mut state = ClusterState::default();
        let record = NodeRecord {
            role: MachineRole::Rented,
            approved: true,
            ..NodeRecord::default()
        };
        state.nodes.insert(NODE, record);
        state
    }

    #[test]
    fn a_lease_is_drained_then_evicted_then_over() {
        let lease = Lease::until(10_000, 600);
        assert_eq!(lease.phase(0), Phase::Running);
        assert_eq!(lease.phase(9_399), Phase::Running);
        assert_eq!(lease.phase(9_400), Phase::Draining { until_s: 9_880 });
        assert_eq!(lease.phase(9_880), Phase::Evicting);
        assert_eq!(lease.phase(10_000), Phase::Over);
    }

    #[test]
    fn what_is_due_is_done_once_and_ends_with_the_node_shut_out() {
        let mut state = rented();
        let lease = Some(Lease::until(10_000, 600));
        let set = Command::SetLease {
            node: NODE,
            lease,
            now_s: 5_000,
        };
        assert_eq!(apply(&mut state, &set), Reply::Done);
        assert!(due(&state, 9_500).is_empty());
        assert_eq!(
            state.availability(NODE, 9_500),
            Availability::Draining { until_s: 9_880 }
        );
        let evict = Command::Evict {
            node: NODE,
            seen: lease,
            now_s: 9_900,
        };
        assert_eq!(due(&state, 9_900), std::slice::from_ref(&evict));
        // Prolonged before that was committed.
        let mut prolonged = state.clone();
        prolonged.leases.of_nodes.insert(NODE, Lease::until(20_000, 600));
        assert_eq!(apply(&mut prolonged, &evict), Reply::Unchanged);
        assert_eq!(apply(&mut state, &evict), Reply::Done);
        assert!(due(&state, 9_950).is_empty());
        assert!(
            matches!(apply(&mut state, &set), Reply::Refused(_)),
            "not taken back"
        );
        let over = due(&state, 10_000);
        assert_eq!(over.len(), 1);
        assert_eq!(apply(&mut state, &over[0]), Reply::Done);
        assert!(state.leases.of_nodes.is_empty() && state.revoked.contains_key(&NODE));
        assert!(due(&state, 10_001).is_empty());
    }

    #[test]
    fn an_operator_may_drain_earlier_and_not_later() {
        let mut state = rented();
        state.leases.of_nodes.insert(NODE, Lease::until(10_000, 600));
        let mut drain = |until_s| {
            state
                .placement
                .availability
                .insert(NODE, Availability::Draining { until_s });
            state.availability(NODE, 9_500)
        };
        assert_eq!(drain(9_600), Availability::Draining { until_s: 9_600 });
        assert_eq!(drain(20_000), Availability::Draining { until_s: 9_880 });
    }

    #[test]
    fn a_token_gives_its_lease_to_the_machine_that_joins() {
        let mut state = ClusterState::default();
        apply(
            &mut state,
            &Command::Found(pomona_common::ClusterId::from_bits(9)),
        );
        let token = TokenId::from_bits(4);
        let open = |admits, ends_s| Command::OpenToken {
            id: token,
            token: TokenRecord {
                verifier: TokenVerifier([0; 32]),
                admits,
                name: String::new(),
                expires_s: 1_000,
                used_by: None,
            },
            lease: Some(Lease::until(ends_s, 600)),
            now_s: 500,
        };
        let rented = Admits::Node(MachineRole::Rented);
        for refused in [open(Admits::Node(MachineRole::Rack), 90_000), open(rented, 400)] {
            assert!(matches!(apply(&mut state, &refused), Reply::Refused(_)));
            assert!(state.tokens.is_empty(), "a token without its lease is not opened");
        }
        assert_eq!(apply(&mut state, &open(rented, 90_000)), Reply::Done);
        let consume = Command::ConsumeToken {
            token,
            node: NODE,
            name: "mini".into(),
            key: KeyPrint([1; 32]),
            approved: true,
            now_s: 600,
        };
        assert_eq!(apply(&mut state, &consume), Reply::Done);
        assert_eq!(state.leases.of_nodes[&NODE], Lease::until(90_000, 600));
    }
}
