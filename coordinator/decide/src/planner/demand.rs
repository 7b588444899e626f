//! Models that are asked for take the place of ones that are not.

use pomona_common::{ModelName, ModelRecord};

use crate::placement::{Keep, ModelPolicy, Replicas, USE_STEP_S};
use crate::planner::fit::Site;
use crate::planner::{MOVES, Planning};

/// A model that was asked for so lately, in seconds, may push out others.
const DEMAND_S: u64 = 120;
/// One that was in use so lately, in seconds, is not pushed out: two that do not fit together must
/// not chase each other. What is written down of use may be a step old.
const SETTLED_S: u64 = 2 * USE_STEP_S;

impl<'a> Planning<'a> {
    /// A model that was just asked for and is nowhere takes the place of ones that were not asked
    /// for in a while: on the node where that is longest ago.
    pub(super) fn push_out_others(&mut self, model: &'a ModelRecord, policy: &ModelPolicy) {
        let used_s = self.state.placement.used_s(&model.name);
        if self.now_s.saturating_sub(used_s) > DEMAND_S || policy.replicas == Replicas::Count(0) {
            return;
        }
        let places = self
            .sites
            .values()
            .filter(|site| site.may_take(model, policy).is_ok());
        let best = places
            .filter_map(|site| {
                let victims = self.victims(site, model)?;
                let newest = victims.iter().map(|name| self.state.placement.used_s(name)).max();
                Some((newest, victims.len(), site.id, victims))
            })
            .min();
        let Some((_, _, id, victims)) = best else {
            return;
        };
        if self.moves.len() + victims.len() >= MOVES {
            return;
        }
        for name in victims {
            self.unload(
                id,
                &name,
                format!("`{}` was asked for and needs the place", model.name),
            );
        }
        self.load(id, model, "asked for, and others were not for longer".into());
    }

    /// What would have to go from a node so that a model fits; `None` when nothing helps.
    fn victims(&self, site: &Site<'a>, model: &ModelRecord) -> Option<Vec<ModelName>> {
        let placement = &self.state.placement;
        let mut held: Vec<(u64, &ModelName)> = site
            .holds
            .iter()
            .filter(|name| {
                let policy = placement.policy(name);
                let settled = self.now_s.saturating_sub(placement.used_s(name)) >= SETTLED_S;
                let free = policy.keep != Keep::Always && !policy.pins.contains(&site.id);
                settled && free && !site.node.busy.contains(**name)
            })
            .map(|name| (placement.used_s(name), *name))
            .collect();
        held.sort_unstable();
        let mut victims: Vec<&ModelRecord> = Vec::new();
        for (_, name) in held {
            victims.extend(self.state.catalogue.get(name));
            if site.fits(model, &victims).is_ok() {
                return Some(victims.into_iter().map(|victim| victim.name.clone()).collect());
            }
        }
        None
    }
}
