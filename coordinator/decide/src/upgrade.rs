//! Updating a cluster one coordinator after the other. Everything that is stored or sent says which
//! version of the program is needed to read it, by what is in it; nothing that some coordinator cannot
//! read is written while it is there.

use crate::command::Command;
use crate::lease::Leases;
use crate::placement::Placement;
use crate::state::ClusterState;

/// Oldest version of stored values.
const FIRST: u8 = 3;
/// Version that coordinators have which were written before they told it.
const UNTOLD: u8 = 5;

impl Command {
    /// Version that is needed to read it.
    pub fn since(&self) -> u8 {
        match self {
            Command::Found(_)
            | Command::AdmitNode { .. }
            | Command::MakeToken { .. }
            | Command::RevokeToken(_)
            | Command::ConsumeToken { .. }
            | Command::ApproveNode(_)
            | Command::RevokeNode { .. }
            | Command::RenameNode { .. }
            | Command::AddModel(_)
            | Command::RemoveModel(_)
            | Command::SetPlan(_)
            | Command::RecordKills { .. }
            | Command::AnnounceCoordinator { .. }
            | Command::RemoveCoordinator(_) => FIRST,
            Command::Replan { .. }
            | Command::SetPolicy { .. }
            | Command::SetAvailability { .. }
            | Command::UseModels { .. } => 4,
            Command::OpenToken { .. }
            | Command::SetLease { .. }
            | Command::Evict { .. }
            | Command::EndLease { .. } => 5,
            Command::DoubtNode(_) | Command::TrustNode(_) => 6,
        }
    }
}

impl ClusterState {
    /// Version that is needed to read it: one that has never seen a lease is read by a program that
    /// knows none.
    pub fn since(&self) -> u8 {
        if !self.late.is_empty() {
            6
        } else if self.leases != Leases::default() {
            5
        } else if self.placement != Placement::default() {
            4
        } else {
            FIRST
        }
    }
}

/// Why a command is not written yet: a coordinator of the cluster would not be able to read it.
/// `members` are numbers and versions, as far as they are known.
pub fn too_new(command: &Command, members: impl IntoIterator<Item = (u64, u16)>) -> Option<String> {
    let since = u16::from(command.since());
    let version = |told: u16| told.max(UNTOLD.into());
    let older = members.into_iter().find(|(_, told)| version(*told) < since);
    older.map(|(number, _)| {
        format!("coordinator {number} runs an older program that does not know this: update it first")
    })
}

#[cfg(test)]
mod tests {
    use pomona_common::NodeId;

    use super::*;

    #[test]
    fn a_new_command_waits_for_the_last_coordinator() {
        let new = Command::DoubtNode(NodeId::from_bits(1));
        assert_eq!(too_new(&new, [(2, 6), (3, 7)]), None);
        let refused = too_new(&new, [(2, 6), (3, 1)]);
        assert!(refused.is_some_and(|why| why.contains("coordinator 3")));
        let old = Command::ApproveNode(NodeId::from_bits(1));
        assert_eq!(too_new(&old, [(2, 1)]), None);
    }
}
