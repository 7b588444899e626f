//! Whether a node is there. A laptop that is gone sleeps, as far as anybody knows: it is *away*, and
//! nobody is to be woken for it. A machine that does not sleep is *lost*.

use pomona_common::MachineRole;
use serde::Serialize;

use crate::router::STALE_MS;

/// What a node is to this coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It reports.
    Here,
    /// It is connected, and its report is late: it gets no new work.
    Suspected,
    /// A laptop without a session.
    Away,
    /// Another machine without a session.
    Lost,
}

/// Of a node with this role, by the age of its last report in its session, if it has one. A session
/// that has not reported yet is as old as it is.
pub fn presence(role: MachineRole, session_age_ms: Option<u64>) -> Presence {
    match session_age_ms {
        Some(age_ms) if age_ms <= STALE_MS => Presence::Here,
        Some(_) => Presence::Suspected,
        None if role == MachineRole::Laptop => Presence::Away,
        None => Presence::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laptops_go_away_and_others_are_lost() {
        for (role, gone) in [
            (MachineRole::Laptop, Presence::Away),
            (MachineRole::Rack, Presence::Lost),
            (MachineRole::Rented, Presence::Lost),
        ] {
            assert_eq!(presence(role, Some(0)), Presence::Here);
            assert_eq!(presence(role, Some(STALE_MS)), Presence::Here);
            assert_eq!(presence(role, Some(STALE_MS + 1)), Presence::Suspected);
            assert_eq!(presence(role, None), gone);
        }
    }
}
