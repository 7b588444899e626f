//! How soon a node answers what its person asks, and whether it leaves that to others.

use std::collections::BTreeSet;
use std::time::Duration;

use pomona_common::generation::GenerationEvent;
use pomona_common::{Generation, Slo};
use pomona_decide::{EntryPlace, Strain};

use super::Node;

/// How long steps count while the Mac says that it is warm, in milliseconds: as README says.
const SLOW_STEPS: u64 = 300_000;
/// How late a probe says that a build is over, in milliseconds.
const TOLD: u64 = 12_000;
/// What slowing adds to a prompt that may leave, in milliseconds: half of the budget of 800. The node, which knows of it
/// only by steps that differ by themselves, asks for nine tenths.
const SLOWED_MS: f64 = 400.0;

impl Node {
    /// What its engine has computed of people's prompts.
    pub(super) fn note_prompts(&mut self, now: u64) {
        let at = Duration::from_millis(self.machine.running(now));
        for step in self.engine.take_prompts() {
            self.promptness.note_step(&step, at);
        }
    }

    /// Notes the end of an answer that came to its endpoint.
    pub(super) fn note_end(&mut self, number: u64, event: &GenerationEvent, now: u64) {
        let at = Duration::from_millis(self.machine.running(now));
        if let (GenerationEvent::Finished { accounting, .. }, Some(asked)) =
            (event, self.answers.asked(number))
            && self.answers.is_whole(number, accounting)
        {
            self.promptness.note_answer(asked, accounting, at);
        }
    }

    /// Whether what its person asks may be asked for elsewhere although it is awake and has the model: by its Mac's own
    /// truth what has to be computed of it takes longer by half of what is promised, now or when the steps ran that it
    /// goes by.
    pub(super) fn may_leave(&self, asked: &Generation, now: u64) -> bool {
        let running = self.machine.running(now);
        let counts = if Strain::of(&self.mac.report()).is_warm {
            SLOW_STEPS
        } else {
            TOLD
        };
        let lately = self.slowed.filter(|(at, _)| running - at <= counts);
        let times = lately.map_or(1.0, |(_, times)| times).max(self.mac.times());
        let record = self.engine.models().find(|record| record.name == asked.model);
        let kept = self.engine.kept(asked);
        let tokens = (asked.prompt.len() as u32).saturating_sub(kept);
        let usual_ms = record.map_or(0.0, |record| self.mac.usual_ms(record.weight_bytes, tokens));
        usual_ms * (times - 1.0) > SLOWED_MS
    }

    /// Answers that were begun here, and come late.
    pub(super) fn late(&self, now: u64) -> BTreeSet<u64> {
        let asked = self.answers.not_begun(EntryPlace::Here);
        let late = asked.filter(|(_, asked, at)| self.is_late(asked, now - at, now));
        late.map(|(number, ..)| number).collect()
    }

    /// Whether what is asked comes late here because the machine is slowed down.
    pub(super) fn is_late(&self, asked: &Generation, waited: u64, now: u64) -> bool {
        let at = Duration::from_millis(self.machine.running(now));
        let slo = Slo::of(asked.class);
        self.leaves_late
            && self
                .promptness
                .is_late((asked, Duration::from_millis(waited)), &slo, at)
    }
}
