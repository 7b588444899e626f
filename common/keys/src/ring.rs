//! The keys that an entry knows, and what the cluster has counted of them.

use std::collections::BTreeMap;

use pomona_common::KeyId;
use pomona_common::key::KeyRecord;
use pomona_common::spending::{Account, Charged, Windows};

use crate::denied::Denied;
use crate::secret::{KeySecret, is_same};

/// See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeyRing {
    /// The keys.
    pub keys: BTreeMap<KeyId, KeyRecord>,
    /// What all entries have told of spending.
    pub spent: BTreeMap<Account, Windows>,
    /// The latest batch of this entry that is in it.
    pub charged: Option<Charged>,
}

impl KeyRing {
    /// The record of a key that is good now.
    ///
    /// # Errors
    /// [`Denied::Invalid`], whatever is wrong with it.
    pub fn open(&self, key: &KeySecret, now_s: u64) -> Result<&KeyRecord, Denied> {
        let record = self.keys.get(&key.id()).ok_or(Denied::Invalid)?;
        let shown = key.hash();
        let is_present = is_same(&shown, &record.secret);
        let is_before = record
            .before
            .is_some_and(|(hash, until_s)| is_same(&shown, &hash) && now_s < until_s);
        let has_ended = record.expires_s.is_some_and(|end_s| end_s <= now_s);
        if (is_present || is_before) && !has_ended {
            Ok(record)
        } else {
            Err(Denied::Invalid)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_until_its_end_and_the_one_before_for_its_grace() {
        let id = KeyId::from_bits(1);
        let [old, new, wrong] = [1, 2, 3].map(|secret| KeySecret::new(id, secret));
        let mut ring = KeyRing::default();
        assert_eq!(ring.open(&new, 0), Err(Denied::Invalid));
        let record = KeyRecord {
            before: Some((old.hash(), 100)),
            expires_s: Some(1000),
            ..KeyRecord::new("ci", new.hash(), 0)
        };
        ring.keys.insert(id, record);
        let opens = |key, now_s| ring.open(key, now_s).is_ok();
        assert!(opens(&new, 0) && opens(&new, 999) && !opens(&new, 1000));
        assert!(opens(&old, 99) && !opens(&old, 100));
        assert!(!opens(&wrong, 0));
        assert!(!opens(&KeySecret::new(KeyId::from_bits(2), 2), 0));
    }
}
