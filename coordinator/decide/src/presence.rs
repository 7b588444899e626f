//! Whether a node is there. A laptop that is gone sleeps, as far as anybody knows: it is *away*, and
//! nobody is to be woken for it. A machine that does not sleep is *lost*.

use pomona_common::MachineRole;
use serde::Serialize;

use crate::heard::Heard;

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

/// Of a node with this role, by its last report in its session, if it has one. A session that has not
/// reported yet is as old as it is.
pub fn presence(role: MachineRole, session: Option<Heard>) -> Presence {
    match session {
        Some(heard) if !heard.is_late() => Presence::Here,
        Some(_) => Presence::Suspected,
        None if role == MachineRole::Laptop => Presence::Away,
        None => Presence::Lost,
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::Line;

    use super::*;

    #[test]
    fn laptops_go_away_and_others_are_lost() {
        for (role, gone) in [
            (MachineRole::Laptop, Presence::Away),
            (MachineRole::Rack, Presence::Lost),
            (MachineRole::Rented, Presence::Lost),
        ] {
            for line in [Line::Lan, Line::Wan] {
                let late = line.late().as_millis() as u64;
                let at = |age_ms| presence(role, Some(Heard { age_ms, line }));
                assert_eq!(at(0), Presence::Here);
                assert_eq!(at(late), Presence::Here);
                assert_eq!(at(late + 1), Presence::Suspected);
            }
            assert_eq!(presence(role, None), gone);
        }
    }
}
