//! The actor's watch over its engine: what the watchdog sees, its canaries, and the end of one that is wedged.

use pomona_common::engine::EngineCommand;
use pomona_common::generation::GenerationEvent;
use pomona_common::{Failure, Generation};
use pomona_decide::watchdog::{Seen, Verdict, may_stand};

use crate::supervisor::actor::Actor;

impl Actor {
    /// Looks whether the engine is wedged; one that is ends, which the end of its pipe tells.
    pub(super) fn watch(&mut self) {
        let rung = self.instructions.borrow().relief.rung;
        let seen = Seen {
            works: self
                .sequences
                .are_with_engine(|class| !may_stand(class, rung, self.pace, self.is_short)),
            loads: !self.view.loading.is_empty(),
            can_sing: !self.view.loaded.is_empty(),
        };
        match self.watchdog.tick(seen) {
            Verdict::Fine => {}
            Verdict::SendCanary => self.send_canary(),
            Verdict::Wedged(why) => self.end_wedged(&why),
        }
    }

    /// One token of one model after the other.
    fn send_canary(&mut self) {
        let sequence = self.sequences.next_number();
        let nth = sequence as usize % self.view.loaded.len().max(1);
        let (Some(model), Some(engine)) = (self.view.loaded.iter().nth(nth), &self.engine) else {
            return;
        };
        let generation = Box::new(Generation::canary(model.clone()));
        if engine.send(EngineCommand::Start { sequence, generation }) {
            self.watchdog.sent(sequence);
        }
    }

    pub(super) fn on_canary(&mut self, event: &GenerationEvent) {
        match event {
            GenerationEvent::Granted
            | GenerationEvent::GrantedBy(_)
            | GenerationEvent::GrantedByCloud(_)
            | GenerationEvent::Text(_)
            | GenerationEvent::Energy(_)
            | GenerationEvent::Chunk(_) => {}
            GenerationEvent::Failed(failure @ (Failure::Internal { .. } | Failure::EngineLost)) => {
                self.end_wedged(&format!("it makes no token: {failure}"));
            }
            // A refusal is a decision: the model was unloaded, or has no room. The engine lives.
            GenerationEvent::Finished { .. } | GenerationEvent::Failed(_) => self.watchdog.answered(),
        }
    }

    fn end_wedged(&mut self, why: &str) {
        if let Some(engine) = &mut self.engine {
            tracing::error!(why, "the engine is wedged and is started anew");
            engine.kill();
            self.wedged = true;
        }
    }
}
