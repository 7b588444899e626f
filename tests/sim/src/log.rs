//! The log, idealised: one list, a leader that reaches a majority, nothing lost. openraft itself is
//! tested with real processes (`tests/cluster`).

use pomona_decide::{Command, Proposal};

use pomona_tests::Random;

/// Time without a leader after one is lost, in milliseconds.
const ELECTION: u64 = 700;

#[derive(Debug, Default)]
pub struct Log {
    pub entries: Vec<Proposal>,
    pub leader: Option<u64>,
    /// How often one was elected.
    pub elections: u64,
    leaderless_since: Option<u64>,
}

impl Log {
    /// `able` are the coordinators that reach a majority, the lowest first.
    pub fn elect(&mut self, now: u64, able: &[u64]) {
        if self.leader.is_some_and(|leader| able.contains(&leader)) {
            return;
        }
        self.leader = None;
        let since = *self.leaderless_since.get_or_insert(now);
        if now >= since + ELECTION
            && let Some(first) = able.first()
        {
            self.leader = Some(*first);
            self.elections += 1;
            self.leaderless_since = None;
        }
    }

    /// Commits a command, and now and then a second attempt of it as well.
    pub fn commit(&mut self, command: Command, random: &mut Random) {
        let proposal = Proposal {
            id: u128::from(random.draw()),
            seen: self.entries.len() as u64,
            command,
        };
        if random.one_in(8) {
            self.entries.push(proposal.clone());
        }
        self.entries.push(proposal);
    }
}
