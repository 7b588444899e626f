//! What the cluster agrees on version by version, as operators see and change it.

use std::collections::BTreeMap;

use pomona_common::Versioned;
use pomona_decide::Sets;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, bad};

/// What is changed: some of it by name, on top of what is in force or of an earlier version.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, bound = "V: Deserialize<'de>")]
pub(super) struct Change<V> {
    pub(super) set: BTreeMap<String, V>,
    pub(super) to_version: Option<u64>,
    pub(super) by: String,
}

impl<V> Default for Change<V> {
    fn default() -> Self {
        Self {
            set: BTreeMap::new(),
            to_version: None,
            by: String::new(),
        }
    }
}

/// Who made which version when, the newest last.
pub(super) fn history<T: Versioned>(sets: &Sets<T>) -> Vec<Value> {
    let made = sets.0.iter();
    made.map(|made| json!({ "version": made.set.version(), "by": made.by, "at_s": made.at_s }))
        .collect()
}

/// What a change begins with: an earlier version where one is asked for, of which 0 is what programs come with.
pub(super) fn begun_with<T: Versioned + Default>(
    sets: &Sets<T>,
    to_version: Option<u64>,
) -> Result<T, Answer> {
    match to_version {
        None => Ok(sets.in_force()),
        Some(0) => Ok(T::default()),
        Some(version) => sets.get(version).cloned().ok_or_else(|| {
            bad(format!(
                "version {version} is not remembered: see `pomona {} show`",
                T::NAME
            ))
        }),
    }
}

/// Refuses a set that contradicts itself.
pub(super) fn sound(problems: &[String]) -> Result<(), Answer> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(bad(problems.join("; ")))
}
