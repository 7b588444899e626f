//! Which nodes a request may go to by the list of its class and the pools of its key, and in which order.

use std::borrow::Cow;

use pomona_common::{Class, Fallback, MachineRole, NodeId, Pools};

use crate::state::ClusterState;

impl ClusterState {
    /// The list of a class that is in force.
    pub fn fallback(&self, class: Class) -> Cow<'_, Fallback> {
        Fallback::in_force(self.fallbacks.current(), class)
    }

    /// Whether a key's requests may be answered by a node: not by one that is not known here yet, unless they
    /// may go anywhere.
    pub fn reaches(&self, pools: &Pools, node: NodeId) -> bool {
        let record = self.nodes.get(&node);
        pools.is_any() || record.is_some_and(|record| pools.allow(record.role))
    }

    /// A node's place in a list; none where it must not be asked, whatever happens. One that is not known here
    /// yet comes last, where the list names every kind of machine.
    pub fn rank(&self, list: &Fallback, pools: &Pools, node: NodeId) -> Option<usize> {
        if !self.reaches(pools, node) {
            return None;
        }
        let names_all = || MachineRole::ALL.iter().all(|role| list.rank(*role).is_some());
        match self.nodes.get(&node) {
            Some(record) => list.rank(record.role),
            None => names_all().then_some(list.0.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::Fallbacks;

    use super::*;
    use crate::sets::Made;
    use crate::state::NodeRecord;

    #[test]
    fn lists_and_keys_both_say_where_requests_may_go() -> Result<(), String> {
        let mut state = ClusterState::default();
        let [laptop, rack, rented, unknown] = [1, 2, 3, 4].map(NodeId::from_bits);
        for (node, role) in [laptop, rack, rented].into_iter().zip(MachineRole::ALL) {
            let record = NodeRecord {
                role,
                ..NodeRecord::default()
            };
            state.nodes.insert(node, record);
        }
        let ranks = |state: &ClusterState, pools: &Pools| {
            let list = state.fallback(Class::Batch);
            [laptop, rack, rented, unknown].map(|node| state.rank(&list, pools, node))
        };
        let any = Pools::default();
        assert_eq!(ranks(&state, &any), [Some(2), Some(0), Some(1), Some(5)]);
        let private = Pools::only([MachineRole::Laptop, MachineRole::Rack]);
        assert_eq!(ranks(&state, &private), [Some(2), Some(0), None, None]);
        let mut set = Fallbacks {
            version: 1,
            ..Fallbacks::default()
        };
        set.set(Class::Batch, "rented, rack".parse()?);
        let made = Made {
            set,
            by: String::new(),
            at_s: 1,
        };
        state.fallbacks.add(&made);
        assert_eq!(ranks(&state, &any), [None, Some(1), Some(0), None]);
        assert_eq!(ranks(&state, &private), [None, Some(1), None, None]);
        Ok(())
    }
}
