//! Updating a cluster one coordinator after the other. Everything that is stored or sent says which
//! version of the program is needed to read it, by what is in it; nothing that some coordinator cannot
//! read is written while it is there.

use pomona_common::{Fallbacks, Rung};

use crate::audit::AuditBook;
use crate::clouds::CloudBook;
use crate::command::Command;
use crate::gates::GateBook;
use crate::keys::KeyBook;
use crate::lease::Leases;
use crate::offload::{Offload, Relieved};
use crate::placement::Placement;
use crate::sets::{Made, Sets};
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
            Command::Relieve { seen, relieved, .. } if (*seen).max(relieved.relief.rung) == Rung::Unload => {
                12
            }
            Command::Relieve { .. }
            | Command::SetComfort { .. }
            | Command::SetKnobs(_)
            | Command::PassGate(_)
            | Command::CountKills { .. }
            | Command::CloseTicket(_)
            | Command::ForgiveKills { .. } => 7,
            Command::MakeKey { .. }
            | Command::RotateKey { .. }
            | Command::ChangeKey { .. }
            | Command::RevokeKey(_)
            | Command::ChargeKeys { .. } => 8,
            Command::Audited(audited) => audited.command.since().max(9),
            Command::SetFallbacks(made) if made.set.name_clouds() => 11,
            Command::SetFallbacks(_) => 10,
            Command::ApproveCloud { .. }
            | Command::RevokeCloud(_)
            | Command::SetPrivate { .. }
            | Command::SetBudget { .. }
            | Command::ReserveSpill(_)
            | Command::SettleSpill { .. } => 11,
            Command::SetSlos(_) | Command::Unload { .. } => 12,
        }
    }
}

impl ClusterState {
    /// Version that is needed to read it: one that has never seen a lease is read by a program that
    /// knows none.
    pub fn since(&self) -> u8 {
        let gates = GateBook::default();
        let names_clouds = |made: &Made<Fallbacks>| made.set.name_clouds();
        let unloads = |relieved: &Relieved| relieved.relief.rung == Rung::Unload;
        if self.slos != Sets::default() || self.offload.relieved.values().any(unloads) {
            12
        } else if self.clouds != CloudBook::default() || self.fallbacks.0.iter().any(names_clouds) {
            11
        } else if self.fallbacks != Sets::default() {
            10
        } else if self.audit != AuditBook::default() {
            9
        } else if self.keys != KeyBook::default() {
            8
        } else if self.offload != Offload::default() || self.knobs != Sets::default() || self.gates != gates {
            7
        } else if !self.late.is_empty() {
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

/// Why a command is not written yet: another coordinator would not be able to read it. `others` are
/// numbers and what these coordinators said of themselves last, if they ever did. A state that needs as new
/// a program already keeps nobody out who is not kept out anyway.
pub fn too_new(
    command: &Command,
    state: &ClusterState,
    others: impl IntoIterator<Item = (u64, Option<u16>)>,
) -> Option<String> {
    if state.since() >= command.since() {
        return None;
    }
    let since = u16::from(command.since());
    let version = |told: Option<u16>| told.unwrap_or_default().max(UNTOLD.into());
    let (number, told) = others.into_iter().find(|(_, told)| version(*told) < since)?;
    Some(match told {
        Some(_) => {
            format!("coordinator {number} runs an older program that does not know this: update it first")
        }
        None => format!(
            "coordinator {number} was not seen since this one was started, and may run an older program that does not know this: start it, or remove it with `pomona coordinator remove`"
        ),
    })
}

#[cfg(test)]
mod tests {
    use pomona_common::NodeId;

    use super::*;

    #[test]
    fn a_new_command_waits_for_the_last_coordinator() {
        let new = Command::DoubtNode(NodeId::from_bits(1));
        let mut state = ClusterState::default();
        assert_eq!(too_new(&new, &state, [(2, Some(6)), (3, Some(7))]), None);
        for (told, what) in [(Some(1), "runs an older program"), (None, "was not seen")] {
            let refused = too_new(&new, &state, [(2, Some(6)), (3, told)]);
            let refused = refused.unwrap_or_default();
            assert!(
                refused.contains("coordinator 3") && refused.contains(what),
                "{refused}"
            );
        }
        let old = Command::ApproveNode(NodeId::from_bits(1));
        assert_eq!(too_new(&old, &state, [(2, Some(1)), (3, None)]), None);
        state.late.insert(NodeId::from_bits(2));
        assert_eq!(too_new(&new, &state, [(2, Some(6)), (3, None)]), None);
    }
}
