//! Commands that are carried out once, however often they are sent: a leader may die after it
//! committed a command and before it said so, and the sender asks the next one (Ongaro, Raft,
//! §6.3).

use std::collections::VecDeque;

use pomona_common::limits;
use serde::{Deserialize, Serialize};

use crate::apply;
use crate::command::{Command, Reply};
use crate::state::ClusterState;

/// Why a proposal is refused that is so late that nobody remembers whether it was applied before.
pub const TOO_LATE: &str = "this command was on its way for too long; look whether it is needed";

/// A command under a name of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Drawn at random by the sender, the same in every attempt.
    pub id: u128,
    /// Index that was committed before the first attempt: the leader's read index.
    pub seen: u64,
    /// What to do.
    pub command: Command,
}

/// The latest proposals, by which one that comes again is known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recent(VecDeque<Done>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Done {
    index: u64,
    id: u128,
    reply: Reply,
}

impl Recent {
    /// Index of the log up to which a state is, as far as commands go: of two states the one with the higher
    /// index is the newer one, and with the same they are the same.
    pub fn index(&self) -> u64 {
        self.0.back().map_or(0, |last| last.index)
    }
}

/// Applies a proposal at this index of the log, unless it was applied before: then its reply is
/// given again. One that is so late that nobody remembers whether it was is refused as [`TOO_LATE`].
pub fn apply_proposal(state: &mut ClusterState, index: u64, proposal: &Proposal) -> Reply {
    if let Some(done) = state.recent.0.iter().find(|done| done.id == proposal.id) {
        return done.reply.clone();
    }
    if index.saturating_sub(proposal.seen) > limits::RAFT_RECENT {
        return Reply::Refused(TOO_LATE.into());
    }
    let reply = apply(state, &proposal.command);
    state.recent.0.push_back(Done {
        index,
        id: proposal.id,
        reply: reply.clone(),
    });
    // By index, not by number: what is forgotten is what would be refused.
    while state
        .recent
        .0
        .front()
        .is_some_and(|done| index - done.index > limits::RAFT_RECENT)
    {
        state.recent.0.pop_front();
    }
    reply
}

#[cfg(test)]
mod tests {
    use pomona_common::{ClusterId, NodeId};
    use proptest::prelude::*;

    use super::*;

    fn admit(node: u128) -> Command {
        Command::AdmitNode {
            id: NodeId::from_bits(node),
            name: "n".into(),
            now_s: 0,
        }
    }

    #[test]
    fn a_proposal_that_comes_again_gives_its_first_reply() {
        let mut state = ClusterState::default();
        let found = |id, cluster| Proposal {
            id,
            seen: 0,
            command: Command::Found(ClusterId::from_bits(cluster)),
        };
        assert_eq!(apply_proposal(&mut state, 1, &found(7, 1)), Reply::Done);
        assert_eq!(apply_proposal(&mut state, 2, &found(7, 1)), Reply::Done);
        assert_eq!(apply_proposal(&mut state, 3, &found(8, 1)), Reply::Unchanged);
    }

    proptest! {
        /// However often and late attempts of proposals are committed, each command acts at most
        /// once, and memory stays bounded.
        #[test]
        fn every_command_acts_at_most_once(
            attempts in prop::collection::vec((0..40u64, 1..120u64), 1..400),
        ) {
            let mut state = ClusterState::default();
            let mut index = 0;
            let mut first_seen = std::collections::BTreeMap::new();
            let mut changes = std::collections::BTreeMap::new();
            for (which, gap) in attempts {
                index += gap;
                let seen = *first_seen.entry(which).or_insert(index - 1);
                // Renaming back and forth shows a second effect, which admission alone hides.
                let before = state.nodes.len();
                let node = NodeId::from_bits(which.into());
                state.nodes.remove(&node);
                let there = before - state.nodes.len();
                let proposal = Proposal { id: which.into(), seen, command: admit(which.into()) };
                let reply = apply_proposal(&mut state, index, &proposal);
                if state.nodes.contains_key(&node) {
                    *changes.entry(which).or_insert(0) += 1;
                    prop_assert_eq!(reply, Reply::Done);
                }
                prop_assert!(there <= 1);
                prop_assert!(state.recent.0.len() as u64 <= limits::RAFT_RECENT + 1);
            }
            prop_assert!(changes.values().all(|acted| *acted == 1), "{:?}", changes);
        }
    }
}
