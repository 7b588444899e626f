//! What the engine's owner does as coordinators say: the knobs, and the batch work that it refuses.

use pomona_common::engine::EngineCommand;
use pomona_common::{Class, EngineKnobs, Failure, Generation, Rung};

use crate::supervisor::actor::Actor;

/// Who is refused because the machine is spared may ask again after so many seconds: sooner nobody is let
/// go.
const SPARED_RETRY_S: u32 = 60;

impl Actor {
    /// What the configuration says, or the cluster, as relief leaves it.
    pub(super) fn knobs_now(&mut self) -> EngineKnobs {
        let now = self.instructions.borrow_and_update();
        let agreed = now.knobs.as_ref().map(|set| self.knobs.with(set));
        agreed.as_ref().unwrap_or(&self.knobs).relieved(now.relief)
    }

    /// Tells the engine its knobs.
    pub(super) fn set_knobs(&mut self) {
        let knobs = self.knobs_now();
        if let Some(engine) = &self.engine {
            engine.send(EngineCommand::Knobs(knobs));
        }
    }

    /// Why batch work is not taken now. What was begun elsewhere is, as long as it would not stand still.
    pub(super) fn spared(&self, generation: &Generation) -> Option<Failure> {
        let rung = self.instructions.borrow().relief.rung;
        let is_held = rung > Rung::Normal && (generation.resume.is_empty() || rung >= Rung::Pause);
        (generation.class == Class::Batch && is_held).then(|| Failure::Overloaded {
            detail: "this machine is spared batch work for now".into(),
            retry_after_s: SPARED_RETRY_S,
        })
    }
}
