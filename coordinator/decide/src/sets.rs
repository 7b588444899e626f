//! What a cluster agrees on, version by version, with who made each. Replicated; the newest is in force.

use std::collections::VecDeque;

use pomona_common::Versioned;
use serde::{Deserialize, Serialize};

use crate::command::Reply;

/// Sets that are remembered.
const REMEMBERED: usize = 16;
/// Longest name of whoever made a set, in characters.
const BY_CHARS: usize = 64;

/// See the module's documentation; the newest last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sets<T>(pub VecDeque<Made<T>>);

/// A set, and who made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made<T> {
    /// The set.
    pub set: T,
    /// Who made it, as they call themselves.
    pub by: String,
    /// When, in seconds since 1970.
    pub at_s: u64,
}

impl<T> Default for Sets<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Versioned> Sets<T> {
    /// The set in force; none as long as nobody has made one.
    pub fn current(&self) -> Option<&T> {
        self.0.back().map(|made| &made.set)
    }

    /// That, or what programs come with.
    pub fn in_force(&self) -> T
    where
        T: Default,
    {
        self.current().cloned().unwrap_or_default()
    }

    /// A set of before, or the one in force.
    pub fn get(&self, version: u64) -> Option<&T> {
        let mut sets = self.0.iter().map(|made| &made.set);
        sets.find(|set| set.version() == version)
    }

    /// The version of the one that comes next.
    pub fn next(&self) -> u64 {
        self.current().map_or(0, T::version) + 1
    }

    /// Whoever writes it has looked at its problems: what a program calls one may change, and a log means the
    /// same for ever.
    pub(crate) fn add(&mut self, made: &Made<T>) -> Reply {
        if self.0.back() == Some(made) {
            return Reply::Unchanged;
        }
        let next = self.next();
        if made.set.version() != next {
            return Reply::Refused(format!(
                "it was changed meanwhile, to version {}: see `pomona {} show`, and try again",
                next - 1,
                T::NAME
            ));
        }
        self.0.push_back(Made {
            by: made
                .by
                .chars()
                .filter(|c| !c.is_control())
                .take(BY_CHARS)
                .collect(),
            ..made.clone()
        });
        let surplus = self.0.len().saturating_sub(REMEMBERED);
        self.0.drain(..surplus);
        Reply::Done
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::Fallbacks;

    use super::*;

    fn made(version: u64) -> Made<Fallbacks> {
        Made {
            set: Fallbacks {
                version,
                ..Fallbacks::default()
            },
            by: "anna".into(),
            at_s: version,
        }
    }

    #[test]
    fn sets_follow_each_other() {
        let mut sets = Sets::default();
        assert_eq!(sets.add(&made(1)), Reply::Done);
        assert_eq!(sets.add(&made(1)), Reply::Unchanged);
        let other = Made { at_s: 7, ..made(1) };
        for bad in [other, made(3)] {
            assert!(matches!(sets.add(&bad), Reply::Refused(why) if why.contains("version 1")));
        }
        for version in 2..40 {
            assert_eq!(sets.add(&made(version)), Reply::Done);
        }
        assert_eq!(sets.0.len(), REMEMBERED);
        assert!(sets.get(39).is_some() && sets.get(1).is_none());
    }
}
