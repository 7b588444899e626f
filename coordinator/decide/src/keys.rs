//! API keys, and what they took at all entries together.

use std::collections::BTreeMap;

use pomona_common::key::{KeyHash, KeyRecord, KeyTerms};
use pomona_common::spending::{Account, Batch, Charged, EntryId, Windows};
use pomona_common::{KeyId, MachineRole, NodeId, limits};
use serde::{Deserialize, Serialize};

use crate::clouds;
use crate::command::Reply;
use crate::membership::bad_name;
use crate::state::ClusterState;

/// See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBook {
    /// The keys.
    pub keys: BTreeMap<KeyId, KeyRecord>,
    /// What was spent lately.
    pub spent: BTreeMap<Account, Windows>,
    /// What is in `spent` of each entry.
    pub charged: BTreeMap<EntryId, Counted>,
}

/// Which batches of an entry were counted: they may come again, from the same leader or the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// The latest.
    pub latest: Charged,
    /// The process before that one: nothing more of it counts.
    pub before: Option<u64>,
}

impl Counted {
    fn has(&self, batch: &Batch) -> bool {
        batch.is_in(self.latest) || self.before == Some(batch.instance)
    }
}

impl KeyBook {
    /// Whether a batch of an entry was counted.
    pub fn has_counted(&self, entry: EntryId, batch: &Batch) -> bool {
        self.charged.get(&entry).is_some_and(|counted| counted.has(batch))
    }

    /// A key by its name or id.
    pub fn find(&self, text: &str) -> Option<KeyId> {
        let by_name = self.keys.iter().find(|(_, record)| record.name == text);
        let by_id = || self.keys.keys().find(|id| id.to_string() == text).copied();
        by_name.map(|(id, _)| *id).or_else(by_id)
    }
}

impl ClusterState {
    /// The keys that a node may know: somebody else's machine holds not even their hashes.
    pub fn keys_for(&self, node: NodeId) -> Option<&KeyBook> {
        let record = self.nodes.get(&node)?;
        (record.role != MachineRole::Rented).then_some(&self.keys)
    }
}

fn unknown(id: KeyId) -> Reply {
    Reply::Refused(format!("no key {id}; see `pomona key list`"))
}

pub(crate) fn make(state: &mut ClusterState, id: KeyId, record: &KeyRecord) -> Reply {
    if state.cluster.is_none() {
        return Reply::Refused("the cluster is not founded yet, try again in a moment".into());
    }
    if let Some(why) = bad_name(&record.name).or_else(|| record.terms.problem()) {
        return Reply::Refused(why);
    }
    let keys = &mut state.keys.keys;
    match keys.get(&id) {
        Some(own) if own == record => return Reply::Unchanged,
        Some(_) => return Reply::Refused("this key exists".into()),
        None => {}
    }
    if keys.values().any(|other| other.name == record.name) {
        return Reply::Refused(format!(
            "another key is called `{}`: rotate or revoke that one, or take another name",
            record.name
        ));
    }
    if keys.len() >= limits::KEYS {
        return Reply::Refused(format!("the cluster has {} keys, the limit", limits::KEYS));
    }
    keys.insert(id, record.clone());
    Reply::Done
}

pub(crate) fn rotate(
    state: &mut ClusterState,
    id: KeyId,
    secret: KeyHash,
    grace_until_s: u64,
    now_s: u64,
) -> Reply {
    let Some(record) = state.keys.keys.get_mut(&id) else {
        return unknown(id);
    };
    if record.secret == secret {
        return Reply::Unchanged;
    }
    // The one before that ends now: at most two open a key.
    let longest_s = now_s.saturating_add(limits::KEY_GRACE_MAX.as_secs());
    record.before = Some((record.secret, grace_until_s.min(longest_s)));
    record.secret = secret;
    Reply::Done
}

pub(crate) fn change(state: &mut ClusterState, id: KeyId, terms: &KeyTerms) -> Reply {
    if let Some(why) = terms.problem() {
        return Reply::Refused(why);
    }
    match state.keys.keys.get_mut(&id) {
        None => unknown(id),
        Some(record) if record.terms == *terms => Reply::Unchanged,
        Some(record) => {
            record.terms = terms.clone();
            Reply::Done
        }
    }
}

pub(crate) fn revoke(state: &mut ClusterState, id: KeyId) -> Reply {
    if state.keys.keys.remove(&id).is_none() {
        return unknown(id);
    }
    state.keys.spent.retain(|account, _| account.key != id);
    clouds::forget_key(state, id);
    Reply::Done
}

/// Counts what entries tell, each batch once. Nobody is charged who has no key any more, or by machines that
/// know of none.
pub(crate) fn charge(state: &mut ClusterState, charges: &[(EntryId, Batch)], now_s: u64) -> Reply {
    let mut reply = Reply::Unchanged;
    for (entry, batch) in charges {
        let has_keys = match entry {
            EntryId::Coordinator(number) => state.coordinators.contains_key(number),
            EntryId::Node(node) => state.keys_for(*node).is_some(),
        };
        let book = &mut state.keys;
        if !has_keys || book.has_counted(*entry, batch) {
            continue;
        }
        let before = match book.charged.get(entry) {
            Some(counted) if counted.latest.0 != batch.instance => Some(counted.latest.0),
            Some(counted) => counted.before,
            None => None,
        };
        let latest = (batch.instance, batch.number);
        book.charged.insert(*entry, Counted { latest, before });
        for one in batch.spent.iter().take(limits::BATCH_ENTRIES) {
            if is_account(&book.keys, &one.account) {
                let windows = book.spent.entry(one.account.clone()).or_default();
                windows.add(one.at_s, now_s, one.amount);
            }
        }
        reply = Reply::Done;
    }
    // Not at once: one coordinator's clock may be wrong, and the others' counts are not its to end.
    state.keys.spent.retain(|_, windows| !windows.is_long_over(now_s));
    reply
}

/// Whether something is counted under it, so that accounts are bounded whatever entries tell.
fn is_account(keys: &BTreeMap<KeyId, KeyRecord>, account: &Account) -> bool {
    let terms = keys.get(&account.key).map(|record| &record.terms);
    terms.is_some_and(|terms| {
        let model = account.model.as_ref();
        model.is_none_or(|model| terms.of_models.contains_key(model))
    })
}

pub(crate) fn forget_entry(state: &mut ClusterState, entry: EntryId) {
    state.keys.charged.remove(&entry);
}

#[cfg(test)]
mod tests {
    use pomona_common::ClusterId;
    use pomona_common::spending::{Amount, Spent};

    use super::*;
    use crate::state::NodeRecord;

    const KEY: KeyId = KeyId::from_bits(1);
    const NODE: NodeId = NodeId::from_bits(7);

    fn record(name: &str) -> KeyRecord {
        KeyRecord::new(name, KeyHash([1; 32]), 5)
    }

    fn cluster() -> ClusterState {
        let mut state = ClusterState {
            cluster: Some(ClusterId::from_bits(1)),
            nodes: [(NODE, NodeRecord::default())].into(),
            ..ClusterState::default()
        };
        assert_eq!(make(&mut state, KEY, &record("ci")), Reply::Done);
        state
    }

    #[test]
    fn keys_have_names_of_their_own_and_end_at_once() {
        let mut state = cluster();
        assert_eq!(make(&mut state, KEY, &record("ci")), Reply::Unchanged);
        let other = KeyId::from_bits(2);
        for bad in ["ci", "", "a\nb"] {
            let reply = make(&mut state, other, &record(bad));
            assert!(matches!(reply, Reply::Refused(_)), "{bad:?}");
        }
        assert_eq!(make(&mut state, other, &record("dev")), Reply::Done);
        assert_eq!(state.keys.find("dev"), Some(other));
        assert_eq!(state.keys.find(&other.to_string()), Some(other));
        assert_eq!(revoke(&mut state, other), Reply::Done);
        assert!(matches!(revoke(&mut state, other), Reply::Refused(_)));
    }

    #[test]
    fn a_rotation_keeps_one_secret_of_before() {
        let mut state = cluster();
        for (secret, until_s) in [([2; 32], 10), ([3; 32], 20)] {
            assert_eq!(rotate(&mut state, KEY, KeyHash(secret), until_s, 5), Reply::Done);
        }
        let record = &state.keys.keys[&KEY];
        assert_eq!(record.secret, KeyHash([3; 32]));
        assert_eq!(record.before, Some((KeyHash([2; 32]), 20)));
        // The same command once more, after its answer was lost.
        assert_eq!(rotate(&mut state, KEY, KeyHash([3; 32]), 20, 5), Reply::Unchanged);
        assert_eq!(
            rotate(&mut state, KEY, KeyHash([4; 32]), u64::MAX, 5),
            Reply::Done
        );
        let longest_s = 5 + limits::KEY_GRACE_MAX.as_secs();
        let before = state.keys.keys[&KEY].before.map(|(_, until_s)| until_s);
        assert_eq!(before, Some(longest_s));
    }

    #[test]
    fn a_rented_machine_is_told_of_no_key() {
        let mut state = cluster();
        assert!(state.keys_for(NODE).is_some_and(|book| book.keys.len() == 1));
        if let Some(node) = state.nodes.get_mut(&NODE) {
            node.role = MachineRole::Rented;
        }
        assert_eq!(state.keys_for(NODE), None);
        assert_eq!(state.keys_for(NodeId::from_bits(8)), None);
    }

    #[test]
    fn accounts_are_those_of_keys_and_batches_count_once() {
        let mut state = cluster();
        let amount = Amount {
            requests: 1,
            tokens: 10,
        };
        let of = |key, model: Option<&str>| Account {
            key,
            model: model.and_then(|model| model.parse().ok()),
        };
        let accounts = [
            of(KEY, None),
            of(KEY, Some("org/none")),
            of(KeyId::from_bits(9), None),
        ];
        let at_s = 60;
        let spent = accounts.map(|account| Spent {
            account,
            at_s,
            amount,
        });
        let batch = Batch {
            instance: 3,
            number: 1,
            spent: spent.into(),
        };
        let charges = [(EntryId::Node(NODE), batch)];
        assert_eq!(charge(&mut state, &charges, 60), Reply::Done);
        assert_eq!(charge(&mut state, &charges, 61), Reply::Unchanged);
        assert_eq!(state.keys.spent.len(), 1);
        assert_eq!(state.keys.spent[&of(KEY, None)].day(61), amount);
        let stranger = [(EntryId::Node(NodeId::from_bits(99)), charges[0].1.clone())];
        assert_eq!(charge(&mut state, &stranger, 61), Reply::Unchanged);
        // After the next process has told something, nothing more of this one counts.
        let of_instance = |instance, number| {
            let batch = Batch {
                instance,
                number,
                spent: Vec::new(),
            };
            [(EntryId::Node(NODE), batch)]
        };
        assert_eq!(charge(&mut state, &of_instance(4, 1), 61), Reply::Done);
        for old in [of_instance(3, 2), of_instance(4, 1)] {
            assert_eq!(charge(&mut state, &old, 61), Reply::Unchanged);
        }
        if let Some(node) = state.nodes.get_mut(&NODE) {
            node.role = MachineRole::Rented;
        }
        assert_eq!(charge(&mut state, &of_instance(4, 2), 61), Reply::Unchanged);
        // Some days later nothing is left of it.
        assert_eq!(charge(&mut state, &[], 2 * 86_400), Reply::Unchanged);
        assert_eq!(state.keys.spent.len(), 1);
        assert_eq!(charge(&mut state, &[], 3 * 86_400), Reply::Unchanged);
        assert!(state.keys.spent.is_empty());
    }
}
