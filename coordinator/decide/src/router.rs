//! Where a request goes: a decision over a snapshot of the nodes that hold its model.

use pomona_common::NodeId;

use crate::heard::Heard;

/// A node that has the model loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its last report.
    pub heard: Heard,
    /// Sequences waiting and running there, by the last report.
    pub queued: u32,
    /// Sequences this router has sent there and not seen end.
    pub in_flight: u32,
    /// Whether it is being drained: it gets new work only where nobody else can.
    pub draining: bool,
    /// Whether it is spared work of this class, likewise.
    pub spared: bool,
    /// Whether a person's own machine is the wrong place for it as long as others have a free slot.
    pub shunned: bool,
    /// Whether all slots of its class are taken there.
    pub full: bool,
}

impl Candidate {
    fn load(&self) -> u32 {
        self.in_flight.max(self.queued)
    }
}

/// One place to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The node.
    pub node: NodeId,
    /// Why here.
    pub reason: &'static str,
}

/// Orders the candidates, the best first: drained nodes last, before them spared ones, fresh before stale, free
/// before full, machines in a rack before laptops where that matters, then the least loaded; ties by id
/// so that the order is one. The node has the last word: a refusal goes to the next.
pub fn route(candidates: &[Candidate]) -> Vec<Route> {
    let mut order: Vec<&Candidate> = candidates.iter().collect();
    order.sort_by_key(|c| {
        let last = (c.draining, c.spared, c.heard.is_late());
        (last, (c.full, c.shunned), c.load(), c.node)
    });
    let alone = order.len() == 1;
    order
        .into_iter()
        .map(|candidate| Route {
            node: candidate.node,
            reason: match (alone, candidate.heard.is_late()) {
                (true, _) => "the only replica",
                _ if candidate.spared => "others refused, and this one is spared",
                _ if candidate.draining => "others refused, and this one is drained",
                (false, false) => "least loaded replica",
                (false, true) => "its last report is stale",
            },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_and_idle_nodes_come_first() {
        let node = |id, age_ms, queued, in_flight| Candidate {
            node: NodeId::from_bits(id),
            heard: Heard { age_ms, ..Heard::NOW },
            queued,
            in_flight,
            draining: id == 5,
            spared: id == 6,
            shunned: id == 7 || id == 8,
            full: id == 8 || id == 9,
        };
        let order: Vec<u128> = route(&[
            node(1, 100, 5, 0),
            node(2, 9000, 0, 0),
            node(3, 100, 0, 2),
            node(4, 100, 1, 0),
            node(5, 0, 0, 0),
            node(6, 0, 0, 0),
            node(7, 0, 0, 0),
            node(8, 0, 0, 0),
            node(9, 0, 8, 0),
        ])
        .into_iter()
        .map(|route| route.node.bits())
        .collect();
        assert_eq!(order, [4, 3, 1, 7, 9, 8, 2, 6, 5]);
    }
}
