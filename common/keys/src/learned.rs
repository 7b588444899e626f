//! What a node has learned of keys. Several coordinators tell it, each as far as it knows the log: of two that
//! say something of the same thing, the one that knows more is right.

use std::collections::BTreeMap;

use pomona_common::key::KeyRecord;
use pomona_common::spending::{Account, Charged, Windows};
use pomona_common::{KeyId, MachineRole};
use serde::{Deserialize, Serialize};

use crate::ring::KeyRing;

/// See the module's documentation. It survives on disk, but for what was spent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// Index of the log of whoever said which keys there are.
    applied: u64,
    /// What the node is to the cluster, as far as it was told.
    pub role: Option<MachineRole>,
    /// The keys there are; what they are good for, once that was told, and the index of who said so.
    keys: BTreeMap<KeyId, Option<(u64, KeyRecord)>>,
    #[serde(skip)]
    spending: Spending,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Spending {
    applied: u64,
    spent: BTreeMap<Account, Windows>,
    charged: Option<Charged>,
}

impl Learned {
    /// Which keys there are, and what the node is; whether that changes anything.
    pub fn learn_keys(&mut self, applied: u64, ids: &[KeyId], role: MachineRole) -> bool {
        if applied < self.applied {
            return false;
        }
        self.applied = applied;
        let is_new = self.role != Some(role) || !self.keys.keys().eq(ids);
        if is_new {
            self.role = Some(role);
            let mut before = std::mem::take(&mut self.keys);
            let keys = ids.iter().map(|id| (*id, before.remove(id).flatten()));
            self.keys = keys.collect();
            let keys = &self.keys;
            let spent = &mut self.spending.spent;
            spent.retain(|account, _| keys.contains_key(&account.key));
        }
        is_new
    }

    /// What one of them is good for; whether that changes anything.
    pub fn learn_key(&mut self, applied: u64, id: KeyId, record: KeyRecord) -> bool {
        // One that there is no more was told of by somebody who lags behind.
        let Some(known) = self.keys.get_mut(&id) else {
            return false;
        };
        if known.as_ref().is_some_and(|(at, _)| applied < *at) {
            return false;
        }
        let is_new = known.as_ref().is_none_or(|(_, known)| *known != record);
        *known = Some((applied, record));
        is_new
    }

    /// What they took, as far as that is news to the teller.
    pub fn learn_spent(
        &mut self,
        applied: u64,
        spent: Vec<(Account, Windows)>,
        charged: Option<Charged>,
        now_s: u64,
    ) {
        let own = &mut self.spending;
        if applied < own.applied {
            return;
        }
        own.applied = applied;
        own.charged = charged;
        let spent = spent.into_iter();
        let known = spent.filter(|(account, _)| self.keys.contains_key(&account.key));
        own.spent.extend(known);
        own.spent.retain(|_, windows| !windows.is_over(now_s));
    }

    /// Writes it into an entry's ring.
    pub fn fill(&self, ring: &mut KeyRing) {
        let told = self.keys.iter();
        ring.keys = told
            .filter_map(|(id, key)| Some((*id, key.as_ref()?.1.clone())))
            .collect();
        self.fill_spent(ring);
    }

    /// Writes one key into an entry's ring.
    pub fn fill_key(&self, ring: &mut KeyRing, id: KeyId) {
        match self.keys.get(&id) {
            Some(Some((_, record))) => ring.keys.insert(id, record.clone()),
            Some(None) | None => ring.keys.remove(&id),
        };
    }

    /// Writes only what was spent into an entry's ring.
    pub fn fill_spent(&self, ring: &mut KeyRing) {
        ring.spent.clone_from(&self.spending.spent);
        ring.charged = self.spending.charged;
    }

    /// Whether it knows of any key.
    pub fn has_keys(&self) -> bool {
        self.keys.values().any(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::key::KeyHash;

    use super::*;

    const KEY: KeyId = KeyId::from_bits(1);

    fn record(name: &str) -> KeyRecord {
        KeyRecord::new(name, KeyHash([1; 32]), 0)
    }

    #[test]
    fn whoever_lags_behind_brings_nothing_back() {
        let mut learned = Learned::default();
        assert!(learned.learn_keys(5, &[KEY], MachineRole::Laptop));
        assert!(!learned.has_keys(), "not told yet what it is good for");
        assert!(learned.learn_key(5, KEY, record("new")));
        assert!(!learned.learn_key(4, KEY, record("old")));
        assert!(learned.learn_keys(7, &[], MachineRole::Laptop), "revoked");
        assert!(!learned.learn_keys(6, &[KEY], MachineRole::Laptop));
        assert!(!learned.learn_key(6, KEY, record("new")));
        assert!(!learned.has_keys());
    }

    #[test]
    fn a_node_that_is_rented_from_now_on_forgets_them() {
        let mut learned = Learned::default();
        learned.learn_keys(5, &[KEY], MachineRole::Rack);
        learned.learn_key(5, KEY, record("ci"));
        assert!(learned.learn_keys(6, &[], MachineRole::Rented));
        let mut ring = KeyRing::default();
        learned.fill(&mut ring);
        assert!(ring.keys.is_empty() && learned.role == Some(MachineRole::Rented));
    }
}
