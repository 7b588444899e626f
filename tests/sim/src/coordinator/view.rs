//! Where a coordinator's answers may go.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::{Generation, NodeId, Rung, Seek};
use pomona_decide::{Candidate, Marks, Warm, route};

use super::{Connected, Coordinator, heard_ago};
use crate::answers::Places;
use crate::policy::Seen;

/// A place promises or refuses within this time, in milliseconds.
const GRANT: u64 = 5_000;
/// What a coordinator's answers go by.
pub(super) struct View<'a> {
    pub(super) coordinator: &'a Coordinator,
    pub(super) in_flight: RefCell<BTreeMap<NodeId, u32>>,
    pub(super) now: u64,
    pub(super) now_s: u64,
}

impl View<'_> {
    /// Tokens of the prompt's beginning that nodes have.
    fn warm(&self, generation: &Generation) -> BTreeMap<NodeId, Warm> {
        let now = Duration::from_millis(self.now);
        self.coordinator.affinity.warm(&Marks::of(generation), now)
    }

    /// As `coordinator/src/dispatch.rs` has them.
    fn candidates(&self, generation: &Generation) -> Vec<Candidate> {
        let Coordinator {
            machine,
            state,
            prefills,
            ..
        } = self.coordinator;
        let awake = machine.awake(self.now);
        let list = state.fallback(generation.class);
        let warm = self.warm(generation);
        let of_node = |(id, connected): (&NodeId, &Connected)| {
            let (at, report) = connected.report.as_ref()?;
            let engine = report.engine.as_ref()?;
            let loaded = engine.models.get(&generation.model)?;
            let of_class = engine.classes.get(&generation.class);
            let of_class = of_class.map_or(0, |class| class.running + class.waiting);
            let rung = state.relief(*id).rung;
            let slots = engine.knobs.class(generation.class).max_slots;
            Some(Candidate {
                node: *id,
                heard: heard_ago(awake - at),
                queued: loaded.running + loaded.waiting,
                in_flight: self.in_flight.borrow().get(id).copied().unwrap_or(0),
                draining: state.availability(*id, self.now_s).is_draining()
                    || state.gates.relocates(*id, &generation.model, self.now_s),
                spared: rung.spares(generation.class),
                rank: state.rank(&list, (&generation.model, &generation.pools), *id)?,
                is_personal: state.is_personal(*id),
                slots,
                full: of_class >= slots,
                warm: Candidate::warmth(warm.get(id), generation.class, rung, of_class >= slots, slots),
                prefill_ms: prefills.ms_per_token(&generation.model, *id, Duration::from_millis(self.now)),
            })
        };
        self.coordinator.sessions.iter().filter_map(of_node).collect()
    }
}

impl View<'_> {
    /// What another router goes by: who has the model, who had the prompt, and what its person does.
    fn seen(&self, generation: &Generation) -> Vec<Seen> {
        let warm = self.warm(generation);
        let of_node = |(id, connected): (&NodeId, &Connected)| {
            let (_, report) = connected.report.as_ref()?;
            let has = report.engine.as_ref()?.models.contains_key(&generation.model);
            let activity = report.machine.conditions.activity;
            has.then(|| Seen {
                node: *id,
                calls: activity.capture.value() == Some(true),
                builds: activity.indexing.value() == Some(true),
                warm: warm.get(id).map_or(0, |warm| warm.tokens),
            })
        };
        self.coordinator.sessions.iter().filter_map(of_node).collect()
    }
}

impl Places<NodeId> for View<'_> {
    fn order(&self, generation: &Generation, avoid: &[NodeId]) -> Vec<(NodeId, Seek)> {
        if let Some(router) = &self.coordinator.router {
            let order = router.order(generation, &self.seen(generation)).into_iter();
            return order.map(|node| (node, Seek::Any)).collect();
        }
        let mut candidates = self.candidates(generation);
        if generation.seek == Seek::Better {
            candidates.retain(|one| one.is_better(generation.class));
        }
        let (others, fresh): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|candidate| avoid.contains(&candidate.node));
        let class = generation.class;
        let order = route(&fresh, class).into_iter().chain(route(&others, class));
        // The machines are chosen here.
        order.map(|route| (route.node, Seek::Any)).collect()
    }

    fn rung(&self, place: NodeId) -> Rung {
        self.coordinator.state.relief(place).rung
    }

    fn better(&self, generation: &Generation, than: NodeId) -> Option<NodeId> {
        let mut others = self.candidates(generation);
        others.retain(|one| one.node != than && one.is_better(generation.class));
        route(&others, generation.class).first().map(|route| route.node)
    }

    fn chosen(&self, place: NodeId) {
        *self.in_flight.borrow_mut().entry(place).or_default() += 1;
    }

    fn grant(&self, _seek: Seek) -> u64 {
        GRANT
    }
}
