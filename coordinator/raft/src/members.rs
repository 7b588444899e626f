//! Who belongs to the Raft group, and how that changes.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{ChangeMembers, EmptyNode};
use pomona_decide::{MemberChange, Members};

use crate::replica::{RaftError, Replica};

impl Replica {
    /// The members, as this replica knows them; how far learners are behind is known to the
    /// leader alone.
    pub fn members(&self) -> Members {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let last = metrics.last_log_index.unwrap_or(0);
        let behind = |n: u64| {
            let matched = metrics.replication.as_ref()?.get(&n)?.as_ref()?;
            Some(last.saturating_sub(matched.index))
        };
        let learners: BTreeMap<u64, Option<u64>> = membership.learner_ids().map(|n| (n, behind(n))).collect();
        let configs = membership.get_joint_config();
        let changing_to = configs.last().filter(|_| configs.len() > 1).cloned();
        Members {
            voters,
            learners,
            changing_to,
        }
    }

    /// Whether this replica belongs to the cluster. One that is removed while it leads belongs to
    /// it until the others have committed to go on without it; others learn of their removal from
    /// the state, and of nothing after it.
    pub async fn belongs(&self) -> bool {
        let id = self.config.id;
        if !self.is_leader() {
            return !self.known().has_removed_coordinator(id);
        }
        let committed = self.raft.with_raft_state(move |state| {
            let membership = state.membership_state.committed().membership().clone();
            membership.get_node(&id).is_some()
        });
        committed.await.unwrap_or(false)
    }

    /// Carries out one change of the members. Only the leader can.
    ///
    /// # Errors
    /// This replica does not lead, or another change is under way.
    pub async fn change_members(&self, change: MemberChange) -> Result<(), RaftError> {
        let outcome = match change {
            MemberChange::AddLearner(n) => self.raft.add_learner(n, EmptyNode::new(), false).await,
            MemberChange::SetVoters(voters) => {
                let voters = ChangeMembers::ReplaceAllVoters(voters);
                self.raft.change_membership(voters, false).await
            }
            MemberChange::RemoveLearner(n) => {
                let gone = ChangeMembers::RemoveNodes([n].into());
                self.raft.change_membership(gone, true).await
            }
        };
        outcome.map_err(|error| match error.forward_to_leader::<EmptyNode>() {
            Some(forward) => RaftError::NotLeader(forward.leader_id),
            None => RaftError::Stopped(error.to_string()),
        })?;
        Ok(())
    }
}
