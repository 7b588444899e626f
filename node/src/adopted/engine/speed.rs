//! How fast servers' answers come, of how fast like ones came: a chip that throttles shows here as it does in the node's
//! own engine.
//!
//! Timed are stretches of texts of one answer in which the same answers are made and none begins: what a new prompt takes
//! is nobody's slowness. A stretch has several texts, since they come as the network delivers them.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::{Class, ModelName};
use pomona_sched::Steadiness;

use super::{Adapter, Running};

/// Texts of a stretch.
const STRETCH: u32 = 16;

/// See the module's documentation. Times are since some fixed moment.
#[derive(Debug, Default)]
pub(super) struct Speed {
    steadiness: Steadiness,
    /// Of each answer, when its stretch began, and the texts since.
    stretches: BTreeMap<u64, (Duration, u32)>,
}

impl Speed {
    /// An answer begins or ends, or somebody else asks a server.
    pub(super) fn breaks_off(&mut self) {
        self.stretches.clear();
    }

    /// A text of an answer has come, one of so many that are made, with so many tokens before it.
    pub(super) fn text(
        &mut self,
        sequence: u64,
        model: &ModelName,
        (answers, context): (usize, u64),
        now: Duration,
    ) {
        let (began, texts) = self.stretches.entry(sequence).or_insert((now, 0));
        if *texts == STRETCH {
            let took = now.saturating_sub(*began);
            (*began, *texts) = (now, 0);
            // Servers know no classes.
            let of = (model, Class::Interactive);
            self.steadiness.note_decoding(of, answers, context, took, now);
        }
        *texts += 1;
    }

    /// As [`Steadiness::percent`].
    pub(super) fn percent(&mut self, now: Duration) -> Option<u32> {
        self.steadiness.percent(now)
    }
}

impl Adapter {
    /// A text has come: how long a stretch of them took says something where nothing else went on.
    pub(super) fn time(&mut self, sequence: u64, is_first: bool) {
        let is_quiet = self.running.values().all(|one| one.job.texts > 0)
            && self.servers.values().all(|server| server.others.count() == 0);
        if is_first || !is_quiet {
            return self.speed.breaks_off();
        }
        let tokens = |one: &Running| u64::from(one.job.text.prompt_tokens) + u64::from(one.job.texts);
        let context = self.running.values().map(tokens).sum();
        if let Some(running) = self.running.get(&sequence) {
            let model = &running.job.generation.model;
            self.speed.text(
                sequence,
                model,
                (self.running.len(), context),
                self.began.elapsed(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many texts of one answer in bursts of four, each a token of so many milliseconds.
    fn run(speed: &mut Speed, model: &ModelName, texts: u64, ms: u64, now: &mut Duration) -> Option<u32> {
        for i in 0..texts {
            if i % 4 == 0 {
                *now += Duration::from_millis(4 * ms);
            }
            speed.text(7, model, (1, 1000), *now);
        }
        speed.percent(*now)
    }

    #[test]
    fn a_chip_that_slows_down_is_seen_and_a_prompt_between_is_not() {
        let model: ModelName = "m".parse().unwrap_or_else(|error| panic!("{error}"));
        let (mut speed, mut now) = (Speed::default(), Duration::ZERO);
        let told = run(&mut speed, &model, 2_000, 20, &mut now);
        assert!(told.is_some_and(|percent| percent > 95), "{told:?}");
        for _ in 0..20 {
            speed.breaks_off();
            now += Duration::from_millis(900);
            speed.breaks_off();
            run(&mut speed, &model, 40, 20, &mut now);
        }
        let told = speed.percent(now);
        assert!(told.is_some_and(|percent| percent > 95), "{told:?}");
        let told = run(&mut speed, &model, 1_000, 32, &mut now);
        assert!(told.is_some_and(|percent| percent < 70), "{told:?}");
    }
}
