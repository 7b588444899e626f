//! Nodes of the cluster that were seen on the LAN, and give weights there. A coordinator far away
//! sees them behind one address, and cannot say where they are near. Hints: whoever answers there
//! proves that it is a node of the cluster, and what it gives is checked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use pomona_common::NodeId;
use tokio::sync::watch;

/// Nodes that are remembered, the latest ones.
const NODES: usize = 64;
/// Addresses of one node that are remembered, the latest ones.
const ADDRESSES: usize = 4;
/// Addresses that are asked for a model.
const ASKED: usize = 16;

/// See the module's documentation. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Neighbours {
    own: NodeId,
    /// Nodes of the cluster, as coordinators say.
    members: watch::Receiver<Arc<BTreeSet<NodeId>>>,
    seen: Arc<Mutex<BTreeMap<NodeId, VecDeque<SocketAddr>>>>,
}

impl Neighbours {
    pub(crate) fn new(own: NodeId, members: watch::Receiver<Arc<BTreeSet<NodeId>>>) -> Self {
        Self {
            own,
            members,
            seen: Arc::default(),
        }
    }

    /// Somebody on the LAN says that a node is there.
    pub(crate) fn hint(&self, node: NodeId, address: SocketAddr) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |seen: &BTreeMap<NodeId, _>| seen.len() >= NODES && !seen.contains_key(&node);
        if is_full(&seen) {
            // Those that do not belong to the cluster make room.
            let members = self.members.borrow();
            seen.retain(|node, _| members.contains(node));
        }
        if node == self.own || is_full(&seen) {
            return;
        }
        if !seen.contains_key(&node) {
            tracing::debug!(%node, %address, "a node was seen on the LAN");
        }
        let addresses = seen.entry(node).or_default();
        addresses.retain(|known| *known != address);
        addresses.push_front(address);
        addresses.truncate(ADDRESSES);
    }

    /// Where nodes of the cluster are near, the latest address of each first.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let members = self.members.borrow();
        let nodes = seen.iter().filter(|(node, _)| members.contains(node));
        let addresses = nodes.flat_map(|(_, addresses)| addresses.iter().enumerate());
        let mut addresses: Vec<(usize, SocketAddr)> = addresses.map(|(rank, at)| (rank, *at)).collect();
        addresses.sort_by_key(|(rank, _)| *rank);
        addresses
            .into_iter()
            .take(ASKED)
            .map(|(_, address)| address)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u64) -> SocketAddr {
        (std::net::Ipv4Addr::from(0x0a00_0000 + n as u32), 7713).into()
    }

    #[test]
    fn members_are_remembered_and_a_flood_of_others_takes_no_room() {
        let ids = |n: std::ops::Range<u128>| n.map(NodeId::from_bits).collect::<BTreeSet<_>>();
        let (_members, reader) = watch::channel(Arc::new(ids(1..4)));
        let neighbours = Neighbours::new(NodeId::from_bits(1), reader);
        neighbours.hint(NodeId::from_bits(2), at(2));
        for n in 0..10_000 {
            neighbours.hint(NodeId::from_bits(u128::from(n) + 100), at(n + 100));
        }
        neighbours.hint(NodeId::from_bits(1), at(1));
        neighbours.hint(NodeId::from_bits(3), at(3));
        for n in [20, 21, 22, 23, 24] {
            neighbours.hint(NodeId::from_bits(2), at(n));
        }
        // The latest of each first, four of one at most, and not this node itself.
        assert_eq!(neighbours.addresses(), [24, 3, 23, 22, 21].map(at));
        assert!(neighbours.seen.lock().map(|seen| seen.len()).unwrap_or(0) <= NODES);
    }
}
