//! A node's watch over its engine, as `node/src/supervisor/watched.rs`.

use pomona_decide::watchdog::{Seen, Verdict, may_stand};

use super::{Node, Wish};
use crate::engine::Wedged;

/// The number of every canary: it makes its token at once, or never.
const CANARY: u64 = 1;

impl Node {
    /// Once a second; an engine that is wedged is killed and started anew.
    pub(super) fn watch(&mut self, now: u64) -> Vec<Wish> {
        if self.engine.speaks() {
            self.watchdog.heard();
            self.watchdog.progress(self.engine.steps);
        }
        if !self.engine.is_wedged() && self.watchdog.is_canary(CANARY) {
            self.watchdog.answered();
        }
        let (rung, is_short) = (self.relief.1.rung, self.is_short_of_memory());
        let mut asked = self.engine.asked();
        let seen = Seen {
            works: asked.any(|(_, one)| !may_stand(one.class, rung, self.pace, is_short)),
            loads: !self.loading.is_empty(),
            can_sing: self.engine.models().next().is_some(),
        };
        drop(asked);
        match self.watchdog.tick(seen) {
            Verdict::Fine => Vec::new(),
            Verdict::SendCanary => {
                self.watchdog.sent(CANARY);
                Vec::new()
            }
            Verdict::Wedged(_) => {
                self.wedged += 1;
                self.crash(now)
            }
        }
    }

    /// The engine does nothing from now on, or goes on.
    pub fn wedge(&mut self, wedged: Option<Wedged>, now: u64) -> Vec<Wish> {
        let mut wishes = self.catch_up(now);
        if let Some(wedged) = wedged {
            self.engine.wedge(wedged);
            return wishes;
        }
        let out = self.engine.unwedge(self.machine.running(now) * 1000);
        wishes.extend(self.pass_on(out, now));
        // What it was told meanwhile.
        self.engine.set_knobs(self.knobs.relieved(self.relief.1));
        wishes.extend(self.follow_target(now));
        wishes
    }
}
