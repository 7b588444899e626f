//! What a node's Mac draws, and the pace that its engine keeps for that.

use std::time::Duration;

use pomona_common::{Class, Rung, Watts};
use pomona_decide::{Strain, Warmth};

use super::Node;

/// Aggregate work that ran so lately, in milliseconds, counts as why a machine is hot: work that rests between its
/// turns is no less to blame than work that does not.
const BLAMED: u64 = 10_000;

impl Node {
    /// Heat, energy and memory of the time that went by.
    pub(super) fn pass(&mut self, now: u64) {
        let running = self.machine.running(now);
        let passed = running - std::mem::replace(&mut self.passed, running);
        if passed == 0 {
            return;
        }
        let (joules, batch_s) = self.engine.take_spent();
        self.joules += joules;
        self.busy_s += batch_s;
        let weights: u64 = self.engine.models().map(|record| record.weight_bytes).sum();
        self.mac.engine_bytes = (weights + self.engine.kv_bytes()) as f64;
        self.mac.pass(passed, joules);
        let times = self.mac.times();
        if times > 1.0 {
            self.slowed = Some((running, times));
        }
        if batch_s > 0.0 {
            self.worked = Some(running);
        }
        if self.comfort.is_some_and(|comfort| self.mac.watts > comfort) {
            let seconds = passed as f64 / 1000.0;
            let lately = self.worked.is_some_and(|at| running - at <= BLAMED);
            self.hot_s.0 += seconds;
            self.hot_s.1 += if lately { seconds } else { 0.0 };
        }
    }

    /// Batch works for as much of the time as is comfortable.
    pub(super) fn keep_pace(&mut self, now: u64) {
        let report = self.mac.report();
        let warmth = Warmth::of(&report);
        let comfort = self.comfort.filter(|_| self.is_paced);
        let comfort = comfort.map(|watts| Watts(watts as f32));
        let works = self.engine.running_of(Class::Batch) > 0 && self.relief.1.rung < Rung::Pause;
        let at = Duration::from_millis(self.machine.running(now));
        self.promptness.note_strain(Strain::of(&report), at);
        let pace = self.pacer.look(warmth, comfort, works, at);
        self.scarcity.look(Some(self.mac.pressure()), at);
        self.engine.set_short(self.is_short_of_memory());
        self.pace = pace;
        self.engine.set_pace(pace);
    }
}
