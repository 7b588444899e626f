//! The knobs that the cluster agrees on, set by set. Replicated; the newest is in force.

use std::collections::VecDeque;

use pomona_common::KnobSet;
use serde::{Deserialize, Serialize};

use crate::command::Reply;
use crate::gates::rules::Remedy;
use crate::state::ClusterState;

/// Sets that are remembered.
const REMEMBERED: usize = 16;
/// Longest name of whoever made a set, in characters.
const BY_CHARS: usize = 64;

/// See the module's documentation; the newest last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnobSets(pub VecDeque<MadeSet>);

/// A set, and who made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeSet {
    /// The set.
    pub set: KnobSet,
    /// Who made it, as they call themselves.
    pub by: String,
    /// When, in seconds since 1970.
    pub at_s: u64,
}

impl KnobSets {
    /// The set in force; none as long as nodes go by their configurations.
    pub fn current(&self) -> Option<&KnobSet> {
        self.0.back().map(|made| &made.set)
    }

    /// A set of before, or the one in force.
    pub fn get(&self, version: u64) -> Option<&KnobSet> {
        let mut sets = self.0.iter().map(|made| &made.set);
        sets.find(|set| set.version == version)
    }
}

/// Why a set must not follow the one before now, if so: a gate forbids it, and whoever forces it is recorded.
pub fn forbidden(state: &ClusterState, before: &KnobSet, after: &KnobSet) -> Option<String> {
    let larger = enlarges_batch(before, after)?;
    let (node, gate) = state.gates.forbids(Remedy::EnlargeBatch)?;
    let name = state.nodes.get(&node).map_or("a node", |record| &record.name);
    Some(format!(
        "{larger}: batch would get more while the {gate} gate of {name} has tripped (`pomona gates`); --force does it all the same, and is recorded"
    ))
}

/// The knobs by which a set gives batch more of a node than the one before, if it does.
fn enlarges_batch(before: &KnobSet, after: &KnobSet) -> Option<String> {
    let larger = |of: fn(&KnobSet) -> u32| of(after) > of(before);
    let smaller = |of: fn(&KnobSet) -> u32| of(after) < of(before);
    let knobs = [
        ("batch.window_ms", larger(|set| set.batch.window_ms)),
        ("batch.max_slots", larger(|set| set.batch.max_slots)),
        ("batch.reserved_slots", larger(|set| set.batch.reserved_slots)),
        ("batch.prefill_chunk", larger(|set| set.batch.prefill_chunk)),
        ("batch.step_share", larger(|set| set.batch.step_share)),
        ("slice_ms", larger(|set| set.slice_ms)),
        ("interactive.max_slots", smaller(|set| set.interactive.max_slots)),
        (
            "interactive.reserved_slots",
            smaller(|set| set.interactive.reserved_slots),
        ),
        (
            "interactive.step_share",
            smaller(|set| set.interactive.step_share),
        ),
    ];
    let changed = knobs.into_iter().filter(|(_, changed)| *changed);
    let names: Vec<&str> = changed.map(|(name, _)| name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Whoever writes it has looked at its [problems](KnobSet::problems): what a program calls one may change, and
/// a log means the same for ever.
pub(crate) fn set(state: &mut ClusterState, made: &MadeSet) -> Reply {
    let sets = &mut state.knobs.0;
    if sets.back() == Some(made) {
        return Reply::Unchanged;
    }
    let before = sets.back().map_or(0, |made| made.set.version);
    if made.set.version != before + 1 {
        return Reply::Refused(format!(
            "the knobs were changed meanwhile, to version {before}: see `pomona knobs show`, and try again"
        ));
    }
    sets.push_back(MadeSet {
        by: made
            .by
            .chars()
            .filter(|c| !c.is_control())
            .take(BY_CHARS)
            .collect(),
        ..made.clone()
    });
    let surplus = sets.len().saturating_sub(REMEMBERED);
    sets.drain(..surplus);
    Reply::Done
}

#[cfg(test)]
mod tests {
    use pomona_common::EngineKnobs;
    use pomona_common::gate::{Gate, Stage};

    use super::*;
    use crate::gates::Open;

    fn made(version: u64, window_ms: u32) -> MadeSet {
        let mut set = KnobSet::of(&EngineKnobs::default());
        set.version = version;
        set.batch.window_ms = window_ms;
        MadeSet {
            set,
            by: "anna".into(),
            at_s: version,
        }
    }

    #[test]
    fn batch_is_not_enlarged_while_a_tail_gate_has_tripped() {
        let mut state = ClusterState::default();
        let (before, larger) = (made(1, 50).set, made(2, 200).set);
        assert_eq!(forbidden(&state, &before, &larger), None);
        let open = Open {
            stage: Stage::Tripped,
            since_s: 1,
            reason: String::new(),
            relocates: None,
        };
        let node = pomona_common::NodeId::from_bits(1);
        state.gates.open.insert(node, [((Gate::Tail, None), open)].into());
        let why = forbidden(&state, &before, &larger);
        assert!(why.is_some_and(|why| why.starts_with("batch.window_ms: batch")));
        assert_eq!(forbidden(&state, &larger, &before), None);
    }

    #[test]
    fn sets_follow_each_other() {
        let mut state = ClusterState::default();
        assert_eq!(set(&mut state, &made(1, 60)), Reply::Done);
        assert_eq!(set(&mut state, &made(1, 60)), Reply::Unchanged);
        for bad in [made(1, 70), made(3, 70)] {
            assert!(matches!(set(&mut state, &bad), Reply::Refused(_)), "{bad:?}");
        }
        assert_eq!(state.knobs.current().map(|set| set.batch.window_ms), Some(60));
        for version in 2..40 {
            assert_eq!(set(&mut state, &made(version, 50)), Reply::Done);
        }
        assert_eq!(state.knobs.0.len(), REMEMBERED);
        assert!(state.knobs.get(39).is_some() && state.knobs.get(1).is_none());
    }
}
