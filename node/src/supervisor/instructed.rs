//! What the engine's owner does as coordinators say: the knobs, the service levels, and the batch work that
//! it refuses.

use pomona_common::engine::EngineCommand;
use pomona_common::{Class, EngineKnobs, Failure, Generation, Rung, SloSet};

use crate::supervisor::actor::Actor;

/// Who is refused because the machine is spared may ask again after so many seconds: sooner nobody is let
/// go.
const SPARED_RETRY_S: u32 = 30;

/// Likewise where memory is short: that is looked at every second, and lasts for some.
const SHORT_RETRY_S: u32 = 10;

impl Actor {
    /// What the configuration says, or the cluster, as relief leaves it.
    pub(super) fn knobs_now(&mut self) -> EngineKnobs {
        let now = self.instructions.borrow_and_update();
        let agreed = now.agreed.knobs.as_ref().map(|set| self.knobs.with(set));
        agreed.as_ref().unwrap_or(&self.knobs).relieved(now.relief)
    }

    /// What the configuration says of queues, or the cluster.
    fn slos_now(&self) -> SloSet {
        let now = self.instructions.borrow();
        now.agreed.slos.as_ref().unwrap_or(&self.slos).clone()
    }

    /// Tells the engine how to work.
    pub(super) fn instruct(&mut self) {
        let (knobs, slos) = (self.knobs_now(), self.slos_now());
        if let Some(engine) = &self.engine {
            engine.send(EngineCommand::Knobs(knobs));
            engine.send(EngineCommand::Slos(Box::new(slos)));
        }
    }

    /// Has the engine work on batch for as much of the time as is comfortable, by what the machine draws.
    pub(super) fn keep_pace(&mut self) {
        let batch = self
            .view
            .report
            .as_ref()
            .and_then(|report| report.classes.get(&Class::Batch));
        let (comfort, rung) = {
            let now = self.instructions.borrow();
            (now.comfort, now.relief.rung)
        };
        let works = batch.is_some_and(|batch| batch.running > 0) && rung < Rung::Pause;
        let machine = &self.machine;
        let pace = self
            .pacer
            .look(machine.warmth(), comfort, works, machine.read_at());
        if let Some(engine) = &self.engine
            && pace != self.pace
            && engine.send(EngineCommand::Pace(pace))
        {
            self.pace = pace;
        }
    }

    /// Has the engine begin nothing that no person waits for while the system is short of memory: what waits already may
    /// have come before it was.
    pub(super) fn spare_memory(&mut self) {
        let is_short = self.machine.is_short_of_memory();
        if let Some(engine) = &self.engine
            && is_short != self.is_short
            && engine.send(EngineCommand::Short(is_short))
        {
            self.is_short = is_short;
        }
    }

    /// Why work that no person waits for is not taken now. Batch work that was begun elsewhere is, as long as it
    /// would not stand still; where the system is short of memory nothing is, whatever the engine itself takes.
    pub(super) fn spared(&self, generation: &Generation) -> Option<Failure> {
        if generation.class != Class::Interactive && self.machine.is_short_of_memory() {
            return Some(Failure::Overloaded {
                detail: "this machine is short of memory, whoever takes it".into(),
                retry_after_s: SHORT_RETRY_S,
            });
        }
        let rung = self.instructions.borrow().relief.rung;
        let is_held = rung > Rung::Normal && (generation.resume.is_empty() || rung >= Rung::Pause);
        (generation.class == Class::Batch && is_held).then(|| Failure::Overloaded {
            detail: "this machine is spared batch work for now".into(),
            retry_after_s: SPARED_RETRY_S,
        })
    }
}
