//! How soon a node answers what its person asks, and whether it leaves that to others.

use std::collections::BTreeSet;
use std::time::Duration;

use pomona_common::generation::GenerationEvent;
use pomona_common::{Generation, Slo};
use pomona_decide::{EntryPlace, Strain};

use super::Node;

/// How long steps count that ran while nothing was known to slow them down, in milliseconds: as README says.
const SLOW_STEPS: u64 = 300_000;

impl Node {
    /// What its engine has computed of people's prompts.
    pub(super) fn note_prompts(&mut self, now: u64) {
        let at = Duration::from_millis(self.machine.running(now));
        for step in self.engine.take_prompts() {
            let strain = Strain::of(&self.mac.report());
            self.promptness.note_step(&step, strain, at);
        }
    }

    /// Notes the end of an answer that came to its endpoint.
    pub(super) fn note_end(&mut self, number: u64, event: &GenerationEvent, now: u64) {
        let at = Duration::from_millis(self.machine.running(now));
        if let (GenerationEvent::Finished { accounting, .. }, Some(asked)) =
            (event, self.answers.asked(number))
        {
            self.promptness.note_answer(asked, accounting, at);
        }
    }

    /// Whether its person's prompts may be asked for elsewhere although it is awake and has the model: its Mac is slowed
    /// down, or was when the steps ran that it goes by.
    pub(super) fn was_slowed(&self, now: u64) -> bool {
        let running = self.machine.running(now);
        self.mac.is_slowed() || self.slowed.is_some_and(|at| running - at <= SLOW_STEPS)
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
        let (slo, strain) = (Slo::of(asked.class), Strain::of(&self.mac.report()));
        self.leaves_late
            && self
                .promptness
                .is_late((asked, Duration::from_millis(waited)), &slo, strain, at)
    }
}
