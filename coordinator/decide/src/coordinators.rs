//! Which coordinators there are, and which of them vote: learners first, voters in odd numbers,
//! one step at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use pomona_common::spending::EntryId;
use pomona_common::{KeyPrint, NodeId, limits};
use serde::{Deserialize, Serialize};

use crate::command::Reply;
use crate::keys;
use crate::membership::printable;
use crate::state::ClusterState;

/// A coordinator as the cluster knows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorRecord {
    /// What people call its machine.
    pub name: String,
    /// Where the others reach it; `None` until it has said so.
    pub address: Option<SocketAddr>,
    /// Whether it is a machine that a person carries about.
    pub laptop: bool,
    /// Id and key that its machine joined with, by which a lost answer is asked for again;
    /// `None` for the one that founded the cluster.
    pub joined_as: Option<(NodeId, KeyPrint)>,
}

/// What Raft's members are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Those that vote.
    pub voters: BTreeSet<u64>,
    /// Those that only follow, and by how many entries each is behind; `None` when the leader has
    /// not heard of it.
    pub learners: BTreeMap<u64, Option<u64>>,
    /// While a change of voters is half done (joint consensus): those that vote after it.
    pub changing_to: Option<BTreeSet<u64>>,
}

impl Members {
    /// Whether a coordinator votes or follows.
    pub fn contains(&self, number: u64) -> bool {
        self.voters.contains(&number) || self.learners.contains_key(&number)
    }
}

/// The next step of the members toward the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// Let a new coordinator follow.
    AddLearner(u64),
    /// Let exactly these vote.
    SetVoters(BTreeSet<u64>),
    /// Forget one that neither votes nor is known.
    RemoveLearner(u64),
}

/// A learner that is behind by no more than this may vote: it catches up within a heartbeat.
const CAUGHT_UP: u64 = 16;

/// The next step, and why; `None` when there is nothing to do. A vote of one that is no longer
/// known is taken first, so that a coordinator lost for good holds up a quorum no longer than it
/// must; the last voter goes once somebody who has caught up can take its place.
pub fn next_member_change(
    records: &BTreeMap<u64, CoordinatorRecord>,
    members: &Members,
) -> Option<(MemberChange, &'static str)> {
    let known: BTreeSet<u64> = members
        .voters
        .iter()
        .copied()
        .filter(|n| records.contains_key(n))
        .collect();
    let ready: Vec<u64> = members
        .learners
        .iter()
        .filter(|(n, behind)| records.contains_key(n) && behind.is_some_and(|behind| behind <= CAUGHT_UP))
        .map(|(n, _)| *n)
        .collect();
    if let Some(goal) = &members.changing_to {
        // Whoever began it may be gone: until it ends, both the old and the new ones are needed.
        return Some((
            MemberChange::SetVoters(goal.clone()),
            "a change of voters is half done",
        ));
    }
    if known != members.voters && !known.is_empty() {
        return Some((
            MemberChange::SetVoters(known),
            "a voter was removed from the cluster",
        ));
    }
    if known.is_empty()
        && let Some(others) = odd_addition(0, ready.len())
    {
        let voters = ready.into_iter().take(others).collect();
        return Some((
            MemberChange::SetVoters(voters),
            "the last voter was removed, and they take its place",
        ));
    }
    if let Some(gone) = members.learners.keys().find(|n| !records.contains_key(n)) {
        return Some((
            MemberChange::RemoveLearner(*gone),
            "it was removed from the cluster",
        ));
    }
    let mut reachable = records.iter().filter(|(_, record)| record.address.is_some());
    if let Some((new, _)) = reachable.find(|(n, _)| !members.contains(**n)) {
        return Some((
            MemberChange::AddLearner(*new),
            "it has joined and said where it is",
        ));
    }
    let more = odd_addition(members.voters.len(), ready.len())?;
    let voters = members
        .voters
        .iter()
        .copied()
        .chain(ready.into_iter().take(more))
        .collect();
    Some((
        MemberChange::SetVoters(voters),
        "they have caught up and make the number of voters odd",
    ))
}

/// How many of those who are ready join the voters. An even number tolerates no more failures
/// than the odd one below it, and loses its quorum more easily: a pair is promoted at once, or
/// one that makes the number odd.
fn odd_addition(voters: usize, ready: usize) -> Option<usize> {
    let fits = |more: &usize| (voters + more) % 2 == 1 && voters + more <= limits::COORDINATORS;
    (1..=ready).rev().find(fits)
}

/// The one that founds the cluster needs no token.
pub(crate) fn found(state: &mut ClusterState) {
    state.last_coordinator = 1;
    state.coordinators.insert(1, CoordinatorRecord::default());
}

pub(crate) fn announce(
    state: &mut ClusterState,
    number: u64,
    name: &str,
    laptop: bool,
    address: SocketAddr,
) -> Reply {
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        return Reply::Refused(format!("{address} is no address that others can dial"));
    }
    let Some(record) = state.coordinators.get_mut(&number) else {
        return Reply::Refused(format!("coordinator {number} does not belong to this cluster"));
    };
    // The token's name, or the first one that the machine had, stays.
    let name = match record.name.as_str() {
        "" => printable(name),
        known => known.to_owned(),
    };
    let named = CoordinatorRecord {
        name,
        address: Some(address),
        laptop,
        joined_as: record.joined_as,
    };
    if *record == named {
        return Reply::Unchanged;
    }
    *record = named;
    Reply::Done
}

/// Gives the machine that shows a coordinator's token a number.
pub(crate) fn admit(state: &mut ClusterState, name: &str, joined_as: (NodeId, KeyPrint)) -> Reply {
    if state.coordinators.len() >= limits::COORDINATORS {
        return Reply::Refused(format!(
            "the cluster has {} coordinators, the limit; remove one with `pomona coordinator remove`",
            limits::COORDINATORS
        ));
    }
    state.last_coordinator += 1;
    let record = CoordinatorRecord {
        name: printable(name),
        joined_as: Some(joined_as),
        ..CoordinatorRecord::default()
    };
    state.coordinators.insert(state.last_coordinator, record);
    Reply::Done
}

pub(crate) fn remove(state: &mut ClusterState, number: u64) -> Reply {
    if !state.coordinators.contains_key(&number) {
        let was = (1..=state.last_coordinator).contains(&number);
        return if was {
            Reply::Unchanged
        } else {
            Reply::Refused(format!(
                "there is no coordinator {number}; see `pomona coordinator list`"
            ))
        };
    }
    if state.coordinators.len() == 1 {
        return Reply::Refused(
            "it is the only coordinator; add another first, with `pomona coordinator add`".into(),
        );
    }
    state.coordinators.remove(&number);
    keys::forget_entry(state, EntryId::Coordinator(number));
    Reply::Done
}

impl ClusterState {
    /// Whether this coordinator was removed. One with a number that is not known here yet may
    /// have been admitted a moment ago: only the authority's own key makes its certificate.
    pub fn has_removed_coordinator(&self, number: u64) -> bool {
        number <= self.last_coordinator && !self.coordinators.contains_key(&number)
    }

    /// The number that a machine got when it joined as a coordinator.
    pub fn coordinator_joined_as(&self, joined_as: (NodeId, KeyPrint)) -> Option<u64> {
        let mut records = self.coordinators.iter();
        records
            .find(|(_, record)| record.joined_as == Some(joined_as))
            .map(|(number, _)| *number)
    }

    /// Where the coordinators are, as far as they have said.
    pub fn coordinator_addresses(&self) -> Vec<(u64, SocketAddr)> {
        let records = self.coordinators.iter();
        records
            .filter_map(|(number, record)| Some((*number, record.address?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records(numbers: impl IntoIterator<Item = u64>) -> BTreeMap<u64, CoordinatorRecord> {
        let record = CoordinatorRecord {
            address: Some(([10, 0, 0, 1], 7712).into()),
            ..CoordinatorRecord::default()
        };
        numbers
            .into_iter()
            .map(|number| (number, record.clone()))
            .collect()
    }

    /// Carries a change out, as Raft would.
    fn carry_out(members: &mut Members, change: &MemberChange) {
        match change {
            MemberChange::AddLearner(n) => {
                members.learners.insert(*n, Some(0));
            }
            MemberChange::SetVoters(voters) => {
                // Who loses its vote is no member any more.
                members.learners.retain(|n, _| !voters.contains(n));
                members.voters.clone_from(voters);
            }
            MemberChange::RemoveLearner(n) => {
                members.learners.remove(n);
            }
        }
    }

    fn settle(records: &BTreeMap<u64, CoordinatorRecord>, members: &mut Members) -> usize {
        let mut steps = 0;
        while let Some((change, _)) = next_member_change(records, members) {
            carry_out(members, &change);
            steps += 1;
            assert!(steps < 50, "no rest: {members:?}");
        }
        steps
    }

    #[test]
    fn a_second_coordinator_follows_until_there_is_a_third() {
        let mut members = Members {
            voters: [1].into(),
            ..Members::default()
        };
        settle(&records([1, 2]), &mut members);
        assert_eq!(members.voters, [1].into());
        assert!(members.learners.contains_key(&2));
        settle(&records([1, 2, 3]), &mut members);
        assert_eq!(members.voters, [1, 2, 3].into());
        settle(&records([1, 2, 3, 4]), &mut members);
        assert_eq!(members.voters, [1, 2, 3].into());
        settle(&records([1, 2, 3, 4, 5]), &mut members);
        assert_eq!(members.voters, [1, 2, 3, 4, 5].into());
    }

    #[test]
    fn a_cluster_moves_off_its_first_coordinator() {
        let mut members = Members {
            voters: [1].into(),
            learners: [(2, None)].into(),
            ..Members::default()
        };
        assert_eq!(
            next_member_change(&records([2]), &members),
            None,
            "nobody has its state"
        );
        members.learners.insert(2, Some(0));
        settle(&records([2]), &mut members);
        assert_eq!(members.voters, [2].into());
        assert!(members.learners.is_empty());
    }

    #[test]
    fn the_only_voter_may_be_removed_before_its_successor_follows() {
        let mut members = Members {
            voters: [1].into(),
            ..Members::default()
        };
        settle(&records([2]), &mut members);
        assert_eq!(members.voters, [2].into());
    }

    #[test]
    fn a_change_that_somebody_left_half_done_is_finished_first() {
        let members = Members {
            voters: [1, 2, 3].into(),
            changing_to: Some([1, 2, 3].into()),
            ..Members::default()
        };
        let change = next_member_change(&records([1, 2, 3, 4]), &members).map(|(change, _)| change);
        assert_eq!(change, Some(MemberChange::SetVoters([1, 2, 3].into())));
    }

    #[test]
    fn a_learner_that_is_behind_does_not_vote() {
        let members = Members {
            voters: [1].into(),
            learners: [(2, Some(0)), (3, Some(5000))].into(),
            ..Members::default()
        };
        assert_eq!(next_member_change(&records([1, 2, 3]), &members), None);
    }

    proptest! {
        /// From any members, records that change at random: the steps end, nobody votes who is
        /// not known, voters are only taken away by removal, and some voter always stays.
        #[test]
        fn members_follow_the_records(
            wanted in prop::collection::vec(prop::collection::btree_set(1..9u64, 1..6), 1..12),
        ) {
            let mut members = Members { voters: [wanted[0].first().copied().unwrap_or(1)].into(), ..Members::default() };
            let mut records = records(wanted[0].clone());
            for mut numbers in wanted {
                if numbers.is_disjoint(&members.voters) && numbers.iter().all(|n| !records.contains_key(n)) {
                    // As `remove` does: somebody who knows the state stays.
                    numbers.extend(members.voters.first());
                }
                records = self::records(numbers.clone());
                let before = members.voters.clone();
                settle(&records, &mut members);
                prop_assert!(members.voters.is_subset(&numbers));
                prop_assert!(!members.voters.is_empty());
                for voter in before.intersection(&numbers) {
                    prop_assert!(members.voters.contains(voter), "{voter} lost its vote");
                }
                prop_assert_eq!(members.voters.len() + members.learners.len(), numbers.len());
                let spare = members.learners.len();
                prop_assert!(members.voters.len() >= limits::COORDINATORS || spare <= 1, "{:?}", members);
            }
        }
    }
}
