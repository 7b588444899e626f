//! When the knobs that the cluster agrees on may not be changed.

use pomona_common::KnobSet;

use crate::gates::rules::Remedy;
use crate::state::ClusterState;

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

#[cfg(test)]
mod tests {
    use pomona_common::EngineKnobs;
    use pomona_common::gate::{Gate, Stage};

    use super::*;
    use crate::gates::Open;

    fn knobs(window_ms: u32) -> KnobSet {
        let mut set = KnobSet::of(&EngineKnobs::default());
        set.batch.window_ms = window_ms;
        set
    }

    #[test]
    fn batch_is_not_enlarged_while_a_tail_gate_has_tripped() {
        let mut state = ClusterState::default();
        let (before, larger) = (knobs(50), knobs(200));
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
}
