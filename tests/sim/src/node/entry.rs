//! Where a node's own endpoint asks.

use std::collections::BTreeSet;

use pomona_common::{Fallback, Generation, ModelName, Rung, Seek};
use pomona_decide::{Ask, EntryPlace, Here, Reachable, entry};

use crate::answers::Places;

/// Milliseconds in which a place promises or refuses: the engine here at once, a coordinator when it has asked
/// three nodes.
const GRANT: u64 = 16_000;

/// As that, of who is asked whether it is sooner.
const SOONER: u64 = 300;

/// What its endpoint goes by.
pub(super) struct View {
    pub(super) rung: Rung,
    pub(super) loaded: BTreeSet<ModelName>,
    pub(super) expected: BTreeSet<ModelName>,
    pub(super) reachable: Vec<u64>,
    /// Whether the answer that is asked for comes late here.
    pub(super) is_late: bool,
    /// Answers that were begun here, and come late.
    pub(super) late: BTreeSet<u64>,
}

impl View {
    fn places(&self, generation: &Generation, avoid: &[EntryPlace]) -> Vec<Ask> {
        let here = match &generation.model {
            model if self.loaded.contains(model) && self.is_late => Here::Late,
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
        entry(generation.class, (here, self.rung), &list, &reachable, avoid)
    }
}

impl Places<EntryPlace> for View {
    fn order(&self, generation: &Generation, avoid: &[EntryPlace]) -> Vec<(EntryPlace, Seek)> {
        let asks = self.places(generation, avoid).into_iter();
        asks.map(|ask| (ask.place, ask.seek)).collect()
    }

    fn rung(&self, place: EntryPlace) -> Rung {
        match place {
            EntryPlace::Here => self.rung,
            // It moves its answers itself.
            EntryPlace::Coordinator(_) => Rung::Normal,
        }
    }

    fn comes_late(&self, number: u64) -> bool {
        self.late.contains(&number)
    }

    fn better(&self, generation: &Generation, than: EntryPlace) -> Option<EntryPlace> {
        let others = self.places(generation, &[than]);
        others
            .into_iter()
            .map(|ask| ask.place)
            .find(|place| *place != than)
    }

    fn grant(&self, seek: Seek) -> u64 {
        match seek {
            Seek::Any => GRANT,
            Seek::Better => SOONER,
        }
    }
}
