//! Batch works for a share of the time only: a machine that is to stay cool rests after each turn of it, for as long
//! as the share says. More urgent work is not in this at all.

use std::time::Duration;

/// While it stands still, batch is looked at so often.
const LOOK: Duration = Duration::from_secs(1);
/// The longest rest of batch that does not stand still: no watchdog is to take it for wedged.
const REST: Duration = Duration::from_secs(20);

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Percent of the time.
    percent: u32,
    /// When the turn began that runs, if it is of batch.
    turn: Option<Duration>,
    /// When the last turn of batch ended, and how long it was.
    ended: (Duration, Duration),
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            percent: 100,
            turn: None,
            ended: Default::default(),
        }
    }
}

impl Pace {
    pub(crate) fn set(&mut self, percent: u32) {
        self.percent = percent.min(100);
    }

    /// Percent of batch's slots that who comes now may enter. In all of them each answer would take as much longer as the
    /// machine rests, and be far from done when its person needs the machine; but eight rows of a step take less power
    /// than two steps of four, so that it is half of what the pace would leave out. A machine that hardly works has no
    /// more than twice its share: nobody is to wait for its slots. Nothing begins while batch stands still.
    pub(crate) fn slots(&self) -> u32 {
        u32::midpoint(100, self.percent).min(2 * self.percent)
    }

    /// A turn of batch begins.
    pub(crate) fn begin(&mut self, now: Duration) {
        self.turn = Some(now);
    }

    /// The engine asks what to do next: whatever ran is over.
    pub(crate) fn end(&mut self, now: Duration) {
        if let Some(began) = self.turn.take() {
            self.ended = (now, now.saturating_sub(began));
        }
    }

    /// Until when batch rests, if it does: at the present pace, whatever it was when the rest began.
    pub(crate) fn rest(&self, now: Duration) -> Option<Duration> {
        if self.percent == 0 {
            return Some(now + LOOK);
        }
        let (ended, took) = self.ended;
        let rest = took * (100 - self.percent) / self.percent;
        let until = ended + rest.min(REST);
        (until > now).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::{Class, EngineKnobs};
    use proptest::prelude::*;

    use super::*;
    use crate::{Decision, NewSequence, Scheduler};

    fn scheduler(percent: u32) -> Result<Scheduler, TestCaseError> {
        let mut scheduler = Scheduler::new(EngineKnobs::default());
        let model = "m"
            .parse()
            .map_err(|error| TestCaseError::fail(format!("{error}")))?;
        scheduler.add_model(model, 1, 8192);
        scheduler.set_pace(percent);
        Ok(scheduler)
    }

    fn submit(scheduler: &mut Scheduler, id: u64, class: Class, now: Duration) -> Result<(), TestCaseError> {
        let new = NewSequence {
            id,
            model: "m"
                .parse()
                .map_err(|error| TestCaseError::fail(format!("{error}")))?,
            class,
            prompt: 300,
            max_new: 4000,
            begun: false,
            kept: 0,
        };
        scheduler
            .submit(new, now)
            .map_err(|refusal| TestCaseError::fail(refusal.to_string()))
    }

    proptest! {
        /// Alone, batch works for as much of the time as its pace says, in no more slots than
        /// half of what it leaves out allows, and in few where it is slow.
        #[test]
        fn batch_works_for_its_share_of_the_time(percent in 1u32..=100, step_ms in 5u64..400) {
            let mut scheduler = scheduler(percent)?;
            let (mut now, mut busy) = (Duration::ZERO, Duration::ZERO);
            for id in 0..20 {
                submit(&mut scheduler, id, Class::Batch, now)?;
            }
            let takes = Duration::from_millis(step_ms);
            let mut most = 0;
            for _ in 0..400 {
                scheduler.admit(now);
                most = most.max(scheduler.population(Some(Class::Batch), None).1);
                match scheduler.compose(now) {
                    Decision::Begin(step) | Decision::Resume(step) => {
                        (now, busy) = (now + takes, busy + takes);
                        scheduler.complete(&step);
                    }
                    Decision::WaitUntil(at, _) => now = at,
                    Decision::Idle => prop_assert!(false, "there is work"),
                }
            }
            prop_assert!(most >= (10 * percent).div_ceil(100), "{most}");
            prop_assert!(most <= (20 * percent).div_ceil(100).min((500 + 5 * percent).div_ceil(100)), "{most}");
            // The longest rest bounds how slow it gets.
            let slowest = takes.as_secs_f64() / (takes + REST).as_secs_f64();
            let wanted = (f64::from(percent) / 100.0).max(slowest);
            let share = busy.as_secs_f64() / now.as_secs_f64();
            prop_assert!((share / wanted - 1.0).abs() < 0.1, "{share} of {wanted}");
        }

        /// A rest is as long as the present pace says: one that began when the machine was too warm ends soon
        /// after it is not any more.
        #[test]
        fn a_rest_ends_when_the_pace_rises(slow in 1u32..20, fast in 50u32..=100, took_ms in 1u64..3000) {
            let took = Duration::from_millis(took_ms);
            let mut pace = Pace::default();
            pace.set(slow);
            pace.begin(Duration::ZERO);
            pace.end(took);
            let rests = pace.rest(took);
            prop_assert!(rests.is_some_and(|until| until - took >= 4 * took), "{rests:?}");
            pace.set(0);
            prop_assert!(pace.rest(1000 * took).is_some());
            pace.set(fast);
            prop_assert!(pace.rest(2 * took).is_none());
        }

        /// What a person waits for takes no notice of it.
        #[test]
        fn a_person_waits_for_no_rest(percent in 1u32..=100) {
            let mut scheduler = scheduler(percent)?;
            let mut now = Duration::ZERO;
            submit(&mut scheduler, 1, Class::Batch, now)?;
            submit(&mut scheduler, 2, Class::Interactive, now)?;
            for _ in 0..50 {
                scheduler.admit(now);
                match scheduler.compose(now) {
                    Decision::Begin(step) | Decision::Resume(step) => {
                        now += Duration::from_millis(20);
                        scheduler.complete(&step);
                    }
                    other => prop_assert!(false, "an interactive answer waits: {other:?}"),
                }
            }
        }
    }
}
