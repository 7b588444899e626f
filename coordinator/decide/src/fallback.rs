//! Which nodes a request may go to by the list of its class and the pools of its key, and in which order.

use std::borrow::Cow;

use pomona_common::{Class, Fallback, MachineRole, ModelName, NodeId, Pools};

use crate::state::ClusterState;

impl ClusterState {
    /// The list of a class that is in force.
    pub fn fallback(&self, class: Class) -> Cow<'_, Fallback> {
        Fallback::in_force(self.fallbacks.current(), class)
    }

    /// Whether a key's requests for a model may be answered by a node: those for private ones by none that is
    /// rented, and not by one that is not known here yet, unless they may go anywhere.
    pub fn reaches(&self, model: &ModelName, pools: &Pools, node: NodeId) -> bool {
        let is_private = self.clouds.is_private(model);
        match self.nodes.get(&node) {
            Some(record) => pools.allow(record.role) && !(is_private && record.role == MachineRole::Rented),
            None => pools.is_any() && !is_private,
        }
    }

    /// A node's place in a list; none where it must not be asked, whatever happens. One that is not known here
    /// yet comes last, where the list names every kind of machine.
    pub fn rank(&self, list: &Fallback, (model, pools): (&ModelName, &Pools), node: NodeId) -> Option<usize> {
        if !self.reaches(model, pools, node) {
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
        let model: ModelName = "org/a".parse().map_err(|error| format!("{error}"))?;
        let ranks = |state: &ClusterState, pools: &Pools| {
            let list = state.fallback(Class::Batch);
            [laptop, rack, rented, unknown].map(|node| state.rank(&list, (&model, pools), node))
        };
        let any = Pools::default();
        assert_eq!(ranks(&state, &any), [Some(2), Some(0), Some(1), Some(5)]);
        let private = Pools::only([MachineRole::Laptop, MachineRole::Rack]);
        assert_eq!(ranks(&state, &private), [Some(2), Some(0), None, None]);
        state.clouds.private.insert(model.clone());
        assert_eq!(ranks(&state, &any), [Some(2), Some(0), None, None]);
        let only_rented = Pools::only([MachineRole::Rented]);
        assert_eq!(ranks(&state, &only_rented), [None; 4]);
        state.clouds.private.clear();
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
