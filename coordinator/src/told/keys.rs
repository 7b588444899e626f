//! What a node has been told of API keys. The whole book is larger than a frame: it is told which keys there
//! are, then one key at a time, then what they took, some accounts at a time.

use std::sync::Arc;

use pomona_common::control::CoordinatorMessage;
use pomona_common::spending::{Account, Charged, EntryId, Windows};
use pomona_common::{KeyId, MachineRole, NodeId, limits};
use pomona_decide::{ClusterState, KeyBook};

/// See the module's documentation.
#[derive(Default)]
pub(super) struct KeysTold(Option<Arc<ClusterState>>);

impl KeysTold {
    /// What the node does not know yet of this state.
    pub(super) fn news(
        &mut self,
        state: &Arc<ClusterState>,
        node: NodeId,
        applied: u64,
    ) -> Vec<CoordinatorMessage> {
        let Some(role) = state.nodes.get(&node).map(|record| record.role) else {
            return Vec::new();
        };
        let before = self.0.replace(state.clone());
        let before = before.as_deref();
        // Most looks are for other reasons than a new state.
        if before.is_some_and(|before| std::ptr::eq(before, &**state)) {
            return Vec::new();
        }
        let mut news = Vec::new();
        let had = before.map(|before| keys_and_role(before, node));
        let has = keys_and_role(state, node);
        if had.as_ref() != Some(&has) {
            let ids = has.0;
            news.push(CoordinatorMessage::Keys { applied, ids, role });
        }
        if let Some(book) = state.keys_for(node) {
            let known = before.and_then(|before| before.keys_for(node));
            for (id, record) in &book.keys {
                if known.and_then(|known| known.keys.get(id)) != Some(record) {
                    let (id, record) = (*id, Box::new(record.clone()));
                    news.push(CoordinatorMessage::Key { applied, id, record });
                }
            }
            news.extend(spent(known, book, node, applied));
        }
        news
    }
}

fn keys_and_role(state: &ClusterState, node: NodeId) -> (Vec<KeyId>, Option<MachineRole>) {
    let keys = state.keys_for(node).into_iter();
    let ids = keys.flat_map(|book| book.keys.keys().copied()).collect();
    (ids, state.nodes.get(&node).map(|record| record.role))
}

/// The last message says what of the node's own is in it: until then it counts that itself, and would rather
/// count it twice for a moment than not at all.
fn spent(known: Option<&KeyBook>, book: &KeyBook, node: NodeId, applied: u64) -> Vec<CoordinatorMessage> {
    let entry = EntryId::Node(node);
    let charged_in = |book: &KeyBook| book.charged.get(&entry).map(|counted| counted.latest);
    let is_new = |account: &Account, windows: &Windows| {
        known.and_then(|known| known.spent.get(account)) != Some(windows)
    };
    let new: Vec<(Account, Windows)> = book
        .spent
        .iter()
        .filter(|(account, windows)| is_new(account, windows))
        .map(|(account, windows)| (account.clone(), *windows))
        .collect();
    let (had, has): (Option<Charged>, Option<Charged>) = (known.and_then(charged_in), charged_in(book));
    if new.is_empty() && had == has {
        return Vec::new();
    }
    let mut parts: Vec<Vec<_>> = new.chunks(limits::BATCH_ENTRIES).map(<[_]>::to_vec).collect();
    let last = parts.pop().unwrap_or_default();
    let told = |(spent, charged)| CoordinatorMessage::Spent {
        applied,
        spent,
        charged,
    };
    let parts = parts.into_iter().map(|part| (part, had));
    parts.chain([(last, has)]).map(told).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pomona_common::ClusterId;
    use pomona_common::key::{KeyHash, KeyRecord};
    use pomona_common::spending::{Amount, Batch, Spent};
    use pomona_decide::{Command, NodeRecord, apply};
    use pomona_keys::{KeyRing, Learned};
    use proptest::prelude::*;

    use super::*;

    const NODE: NodeId = NodeId::from_bits(7);
    /// Within one minute, so that no window moves on.
    const NOW_S: u64 = 600;

    /// What happens, by small numbers.
    fn command((kind, key, number): (u8, u8, u64)) -> Command {
        let id = KeyId::from_bits(u128::from(key));
        let secret = KeyHash([number as u8; 32]);
        match kind {
            0 => Command::MakeKey {
                id,
                record: Box::new(KeyRecord::new(&format!("key {key}"), secret, 0)),
            },
            1 => Command::RotateKey {
                id,
                secret,
                grace_until_s: NOW_S,
                now_s: NOW_S,
            },
            2 => Command::RevokeKey(id),
            _ => charge(id, number),
        }
    }

    fn charge(key: KeyId, number: u64) -> Command {
        let entry = if number.is_multiple_of(2) {
            EntryId::Node(NODE)
        } else {
            EntryId::Coordinator(1)
        };
        let spent = Spent {
            account: Account { key, model: None },
            at_s: NOW_S,
            amount: Amount {
                requests: 1,
                tokens: number,
            },
        };
        let batch = Batch {
            instance: 1,
            number,
            spent: vec![spent],
        };
        Command::ChargeKeys {
            charges: vec![(entry, batch)],
            now_s: NOW_S,
        }
    }

    fn hear(learned: &mut Learned, message: CoordinatorMessage) {
        match message {
            CoordinatorMessage::Keys { applied, ids, role } => {
                learned.learn_keys(applied, &ids, role);
            }
            CoordinatorMessage::Key { applied, id, record } => {
                learned.learn_key(applied, id, *record);
            }
            CoordinatorMessage::Spent {
                applied,
                spent,
                charged,
            } => learned.learn_spent(applied, spent, charged, NOW_S),
            _ => {}
        }
    }

    proptest! {
        /// Two coordinators tell one node, each as far as it is, and one is started anew at times. When both
        /// know everything, so does the node.
        #[test]
        fn a_node_that_is_told_by_two_ends_up_with_the_book(
            happens in proptest::collection::vec((0u8..5, 0u8..4, 0u64..9), 1..40),
            looks in proptest::collection::vec((0usize..2, 0usize..4, proptest::bool::weighted(0.1)), 0..60),
            becomes_rented in proptest::option::weighted(0.1, 0usize..40),
        ) {
            let mut state = ClusterState {
                cluster: Some(ClusterId::from_bits(1)),
                nodes: [(NODE, NodeRecord::default())].into(),
                ..ClusterState::default()
            };
            let mut states = vec![Arc::new(state.clone())];
            let mut revoked = BTreeSet::new();
            for (at, (kind, key, number)) in happens.into_iter().enumerate() {
                // Names are drawn: none comes back.
                if kind != 0 || !revoked.contains(&key) {
                    apply(&mut state, &command((kind, key, number)));
                }
                if kind == 2 {
                    revoked.insert(key);
                }
                if becomes_rented == Some(at) && let Some(node) = state.nodes.get_mut(&NODE) {
                    node.role = MachineRole::Rented;
                }
                states.push(Arc::new(state.clone()));
            }
            let last = states.len() - 1;
            let mut learned = Learned::default();
            let mut tellers = [(0, KeysTold::default()), (0, KeysTold::default())];
            let ends = [(0, last, false), (1, last, false)];
            for (who, steps, is_new) in looks.into_iter().chain(ends) {
                let (at, told) = &mut tellers[who];
                *at = (*at + steps).min(last);
                if is_new {
                    *told = KeysTold::default();
                }
                for message in told.news(&states[*at], NODE, *at as u64) {
                    hear(&mut learned, message);
                }
            }
            let mut ring = KeyRing::default();
            learned.fill(&mut ring);
            let expected = state.keys_for(NODE).cloned().unwrap_or_default();
            prop_assert_eq!(&ring.keys, &expected.keys);
            prop_assert_eq!(&ring.spent, &expected.spent);
            if let Some(book) = state.keys_for(NODE) {
                let charged = book.charged.get(&EntryId::Node(NODE)).map(|counted| counted.latest);
                prop_assert_eq!(ring.charged, charged);
            }
            prop_assert_eq!(learned.role, state.nodes.get(&NODE).map(|node| node.role));
        }
    }
}
