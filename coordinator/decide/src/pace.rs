//! How much of the time a machine works on batch, so that its person finds it comfortable: as much as its power
//! leaves room for. Decided by the node itself, every second, from its own sensors. The offload ladder comes after
//! that: it moves work off a machine that is too warm whatever batch does.

use std::time::Duration;

use pomona_common::Watts;

/// Share of what is comfortable that is aimed at: below what the ladder calls calm (`COMFORT_LEFT`), so that a node
/// that was relieved once is let go while it works at its pace, and its person's own answers have room above it.
const AIM: f32 = 0.7;
/// Points a second by which the pace changes where power is off by all that is comfortable. Sensors are some seconds
/// late, and full pace draws two or three times as much as is comfortable: twice as fast it would swing.
const GAIN: f32 = 5.0;
/// Pace of batch work that has just come, percent: what comes of it is not known yet.
const BEGIN: f32 = 20.0;
/// The slowest, percent: an answer is still done within the time that a request may take. Where even that is more
/// than is comfortable, the ladder has it moved.
const SLOWEST: f32 = 10.0;
/// What a reading says is taken to have been so for no longer than this.
const GAP: Duration = Duration::from_secs(5);
/// Readings that fail for so long have failed for good: what cannot be read is not kept to.
const HOLD: Duration = Duration::from_secs(10);

/// What a node sees of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Warmth {
    /// Power of the whole machine, if it can be read.
    pub watts: Option<Watts>,
    /// What is comfortable; none where nobody minds, or nobody is there.
    pub comfort: Option<Watts>,
    /// Whether batch sequences are in slots.
    pub works: bool,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Pacer {
    percent: f32,
    looked: Option<Duration>,
}

impl Default for Pacer {
    fn default() -> Self {
        Self {
            percent: BEGIN,
            looked: None,
        }
    }
}

impl Pacer {
    /// The pace from now on, percent of the time. `at` is when the machine was read, by any clock that does not run
    /// while it sleeps: looking at one reading twice changes nothing.
    pub fn look(&mut self, warmth: Warmth, at: Duration) -> u32 {
        let Some(comfort) = warmth.comfort else {
            *self = Self::default();
            return 100;
        };
        let Some(watts) = warmth.watts else {
            let is_fresh = |looked: Duration| at.saturating_sub(looked) < HOLD;
            if self.looked.is_some_and(is_fresh) {
                return self.percent.round() as u32;
            }
            *self = Self::default();
            return 100;
        };
        let before = self.looked.replace(at);
        let passed = before.map_or(Duration::ZERO, |before| at.saturating_sub(before));
        if warmth.works {
            let off = (AIM * comfort.get() - watts.get()) / comfort.get().max(1.0);
            let seconds = passed.min(GAP).as_secs_f32();
            // A reading that cannot be must not keep it from ever working again.
            let off = if off.is_finite() {
                off.clamp(-3.0, 1.0)
            } else {
                0.0
            };
            self.percent = (self.percent + GAIN * seconds * off).clamp(SLOWEST, 100.0);
        } else {
            self.percent = self.percent.min(BEGIN);
        }
        self.percent.round() as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A machine whose sensors follow in three seconds, and what a pace makes of it.
    fn settled(idle: f32, full: f32, comfort: f32, seconds: u64) -> Vec<f32> {
        let (mut pacer, mut watts, mut seen) = (Pacer::default(), idle, Vec::new());
        for second in 0..seconds {
            let warmth = Warmth {
                watts: Some(Watts(watts)),
                comfort: Some(Watts(comfort)),
                works: true,
            };
            let pace = pacer.look(warmth, Duration::from_secs(second)) as f32;
            let towards = idle + (full - idle) * pace / 100.0;
            watts += (towards - watts) * (1.0 - (-1.0f32 / 3.0).exp());
            seen.push(watts);
        }
        seen
    }

    #[test]
    fn machines_settle_at_what_is_comfortable() {
        // Idle, all the time, comfortable: a MacBook Pro, one with a Max, an Air.
        for (idle, full, comfort) in [(5.0, 65.0, 35.0), (7.5, 120.0, 45.0), (3.5, 24.0, 12.0)] {
            let seen = settled(idle, full, comfort, 300);
            assert!(seen.iter().all(|watts| *watts <= comfort), "{seen:?}");
            let last = &seen[100..];
            assert!(
                last.iter().all(|watts| (watts / comfort - AIM).abs() < 0.03),
                "{last:?}"
            );
        }
        // What is comfortable anyhow is not held back.
        assert!(*settled(4.0, 20.0, 45.0, 100).last().unwrap_or(&0.0) > 19.5);
    }

    #[test]
    fn it_slows_down_for_a_person_and_picks_up_again() {
        let mut pacer = Pacer::default();
        let warmth = |watts, works| Warmth {
            watts: Some(Watts(watts)),
            comfort: Some(Watts(35.0)),
            works,
        };
        let at = Duration::from_secs;
        let before = pacer.look(warmth(20.0, true), at(0));
        for second in 1..20 {
            pacer.look(warmth(60.0, true), at(second));
        }
        assert_eq!(pacer.look(warmth(60.0, true), at(20)), 10);
        for second in 21..60 {
            pacer.look(warmth(15.0, true), at(second));
        }
        assert!(pacer.look(warmth(15.0, true), at(60)) > before);
        // Work that comes anew begins slowly; where nobody minds there is no pace.
        assert_eq!(pacer.look(warmth(5.0, false), at(61)), 20);
        let nobody = Warmth {
            comfort: None,
            ..warmth(90.0, true)
        };
        assert_eq!(pacer.look(nobody, at(62)), 100);
    }

    #[test]
    fn a_reading_counts_once_and_one_that_fails_is_waited_for() {
        let mut pacer = Pacer::default();
        let at = Duration::from_secs;
        let read = |watts: Option<f32>| Warmth {
            watts: watts.map(Watts),
            comfort: Some(Watts(35.0)),
            works: true,
        };
        pacer.look(read(Some(10.0)), at(0));
        let pace = pacer.look(read(Some(10.0)), at(1));
        for _ in 0..60 {
            assert_eq!(pacer.look(read(Some(10.0)), at(1)), pace);
        }
        assert_eq!(pacer.look(read(None), at(2)), pace);
        assert_eq!(pacer.look(read(None), at(10)), pace);
        assert_eq!(pacer.look(read(None), at(11)), 100);
        // It begins anew, and one reading a minute is worth some seconds of it.
        assert_eq!(pacer.look(read(Some(60.0)), at(12)), 20);
        assert_eq!(pacer.look(read(Some(60.0)), at(72)), 10);
    }

    proptest! {
        #[test]
        fn it_is_always_a_share_that_batch_can_live_with(
            readings in proptest::collection::vec((any::<f32>(), any::<f32>(), any::<bool>(), 0u64..100), 1..50)
        ) {
            let mut pacer = Pacer::default();
            let mut now = Duration::ZERO;
            for (watts, comfort, works, passed) in readings {
                now += Duration::from_secs(passed);
                let warmth = Warmth { watts: Some(Watts(watts)), comfort: Some(Watts(comfort)), works };
                let pace = pacer.look(warmth, now);
                prop_assert!((10..=100).contains(&pace), "{pace}");
            }
            // It recovers from readings that cannot be.
            for _ in 0..60 {
                now += Duration::from_secs(1);
                let warmth = Warmth { watts: Some(Watts(5.0)), comfort: Some(Watts(35.0)), works: true };
                pacer.look(warmth, now);
            }
            prop_assert!(pacer.percent > 90.0, "{}", pacer.percent);
        }
    }
}
