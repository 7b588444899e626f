//! Where a node's own endpoint asks.

use std::collections::BTreeSet;

use pomona_common::{Fallback, Generation, ModelName, Rung};
use pomona_decide::{EntryPlace, Here, Reachable, entry};

use crate::answers::Places;

/// Milliseconds in which a place promises or refuses: the engine here at once, a coordinator when it has asked
/// three nodes.
const GRANT: u64 = 16_000;

/// What its endpoint goes by.
pub(super) struct View {
    pub(super) rung: Rung,
    pub(super) loaded: BTreeSet<ModelName>,
    pub(super) expected: BTreeSet<ModelName>,
    pub(super) reachable: Vec<u64>,
}

impl View {
    fn places(&self, generation: &Generation, avoid: &[EntryPlace]) -> Vec<EntryPlace> {
        let here = match &generation.model {
            model if self.loaded.contains(model) => Here::Loaded,
            model if self.expected.contains(model) => Here::Expected,
            _ => Here::Absent,
        };
        let reachable: Vec<Reachable> = self
            .reachable
            .iter()
            .map(|number| Reachable {
                number: *number,
                rtt_us: 0,
            })
            .collect();
        let list = Fallback::of(generation.class);
        let order = entry(generation.class, (here, self.rung), &list, &reachable, avoid);
        order.into_iter().map(|(place, _)| place).collect()
    }
}

impl Places<EntryPlace> for View {
    fn order(&self, generation: &Generation, avoid: &[EntryPlace]) -> Vec<EntryPlace> {
        self.places(generation, avoid)
    }

    fn rung(&self, place: EntryPlace) -> Rung {
        match place {
            EntryPlace::Here => self.rung,
            // It moves its answers itself.
            EntryPlace::Coordinator(_) => Rung::Normal,
        }
    }

    fn better(&self, generation: &Generation, than: EntryPlace) -> Option<EntryPlace> {
        let others = self.places(generation, &[than]);
        others.into_iter().find(|place| *place != than)
    }

    fn grant(&self) -> u64 {
        GRANT
    }
}
