//! How much of the time a machine works on batch, so that its person finds it comfortable: as much as its power
//! leaves room for, and none at all while a build takes more than that. Decided by the node itself, every second,
//! from its own sensors. The offload ladder comes after that: it moves work off a machine that stays too warm.

use std::time::Duration;

use pomona_common::Watts;
use pomona_common::report::{MachineReport, Thermal};

use crate::ladder::is_alone;

/// Share of what is comfortable that is aimed at: below what the ladder calls calm (`COMFORT_LEFT`), so that a node
/// that was relieved once is let go while it works at its pace, and its person's own answers have room above it.
const AIM: f32 = 0.82;
/// As that, where less is comfortable: who talks hears the fans first, and a chip that is warm already slows down
/// for its person as well.
const AIM_DELICATE: f32 = 0.7;
/// Points a second by which the pace changes where power is off by all that is comfortable. Sensors are some seconds
/// late, and full pace draws two or three times as much as is comfortable: twice as fast it would swing.
const GAIN: f32 = 5.0;
/// Pace of batch work that has just come, percent: what comes of it is not known yet.
const BEGIN: f32 = 20.0;
/// The slowest, percent, of a machine that draws no more than is comfortable: nobody would relieve it of what stands
/// still there.
const SLOWEST: f32 = 5.0;
/// Where batch rests since more than is comfortable was drawn, it does until no more than this share of it is, or until
/// it was not more for so long: a person who draws just so would have it begin and end each second.
const COOL_AGAIN: f32 = 0.95;
const COOLS: Duration = Duration::from_secs(10);
/// What a reading says is taken to have been so for no longer than this.
const GAP: Duration = Duration::from_secs(5);
/// Readings that fail for so long have failed for good: what cannot be read is not kept to.
const HOLD: Duration = Duration::from_secs(10);

/// What a node sees of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Warmth {
    /// Power of the whole machine, if it can be read.
    pub watts: Option<Watts>,
    /// Whether it is known that nobody is there who would mind.
    pub is_alone: bool,
    /// Whether less is comfortable now: its person is in a call, or the chip is warm.
    pub is_delicate: bool,
}

impl Warmth {
    /// What a machine says of itself.
    pub fn of(machine: &MachineReport) -> Self {
        let activity = &machine.conditions.activity;
        let in_call = [activity.video, activity.capture];
        let in_call = in_call.iter().any(|reading| reading.value() == Some(true));
        let thermal = machine.thermal.value();
        Self {
            watts: machine.power.value(),
            is_alone: is_alone(activity),
            is_delicate: in_call || thermal.is_some_and(|thermal| thermal >= Thermal::Fair),
        }
    }
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Pacer {
    percent: f32,
    /// When more than is comfortable was drawn last, while it rests for that.
    above: Option<Duration>,
    looked: Option<Duration>,
}

impl Default for Pacer {
    fn default() -> Self {
        Self {
            percent: BEGIN,
            above: None,
            looked: None,
        }
    }
}

impl Pacer {
    /// The pace from now on, percent of the time, where so much is `comfort`able (none: nobody minds) and batch
    /// sequences are in slots, or not. `at` is when the machine was read, by any clock that does not run while it
    /// sleeps: looking at one reading twice changes nothing.
    pub fn look(&mut self, warmth: Warmth, comfort: Option<Watts>, works: bool, at: Duration) -> u32 {
        let Some(comfort) = comfort.filter(|_| !warmth.is_alone) else {
            *self = Self::default();
            return 100;
        };
        let Some(watts) = warmth.watts else {
            let is_fresh = |looked: Duration| at.saturating_sub(looked) < HOLD;
            if self.looked.is_some_and(is_fresh) {
                return self.pace();
            }
            *self = Self::default();
            return 100;
        };
        let before = self.looked.replace(at);
        let passed = before.map_or(Duration::ZERO, |before| at.saturating_sub(before));
        let aim = if warmth.is_delicate { AIM_DELICATE } else { AIM };
        let off = (aim * comfort.get() - watts.get()) / comfort.get().max(1.0);
        let seconds = passed.min(GAP).as_secs_f32();
        // A reading that cannot be must not keep it from ever working again.
        let off = if off.is_finite() {
            off.clamp(-3.0, 1.0)
        } else {
            0.0
        };
        let most = if works { 100.0 } else { BEGIN };
        self.percent = (self.percent + GAIN * seconds * off).clamp(SLOWEST, most);
        // Above it batch rests at once, whoever draws that.
        let draws = |share: f32| watts.get() > share * comfort.get();
        self.above = match self.above {
            _ if draws(1.0) => Some(at),
            above => above.filter(|above| draws(COOL_AGAIN) && at.saturating_sub(*above) < COOLS),
        };
        self.pace()
    }

    fn pace(&self) -> u32 {
        if self.above.is_some() {
            0
        } else {
            self.percent.round() as u32
        }
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::unit::Reading;
    use proptest::prelude::*;

    use super::*;

    const COMFORT: Option<Watts> = Some(Watts(35.0));

    fn draws(watts: f32) -> Warmth {
        Warmth {
            watts: Some(Watts(watts)),
            ..Warmth::default()
        }
    }

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    /// A machine whose sensors follow in three seconds, and what a pace makes of it.
    fn settled(idle: f32, full: f32, comfort: f32, is_delicate: bool) -> Vec<f32> {
        let (mut pacer, mut watts, mut seen) = (Pacer::default(), idle, Vec::new());
        for second in 0..300 {
            let warmth = Warmth {
                is_delicate,
                ..draws(watts)
            };
            let pace = pacer.look(warmth, Some(Watts(comfort)), true, at(second)) as f32;
            let towards = idle + (full - idle) * pace / 100.0;
            watts += (towards - watts) * (1.0 - (-1.0f32 / 3.0).exp());
            seen.push(watts);
        }
        seen
    }

    #[test]
    fn machines_settle_at_what_is_comfortable() {
        // Idle, all the time, comfortable: a MacBook Pro, one with a Max, an Air.
        for (idle, full, comfort) in [(5.0, 65.0, 35.0), (7.5, 120.0, 45.0), (3.5, 24.0, 8.0)] {
            for (is_delicate, aim) in [(false, AIM), (true, AIM_DELICATE)] {
                let seen = settled(idle, full, comfort, is_delicate);
                assert!(seen.iter().all(|watts| *watts <= comfort), "{seen:?}");
                let last = &seen[100..];
                assert!(
                    last.iter().all(|watts| (watts / comfort - aim).abs() < 0.03),
                    "{last:?}"
                );
            }
        }
        // What is comfortable anyhow is not held back.
        assert!(*settled(4.0, 20.0, 45.0, false).last().unwrap_or(&0.0) > 19.5);
    }

    #[test]
    fn it_stops_for_a_build_and_picks_up_again() {
        let mut pacer = Pacer::default();
        let before = pacer.look(draws(20.0), COMFORT, true, at(0));
        for second in 1..=10 {
            assert_eq!(pacer.look(draws(60.0), COMFORT, true, at(second)), 0, "at once");
        }
        // It does so whether or not anything has been waiting in a slot: nothing enters one meanwhile.
        let mut idle = pacer.clone();
        for second in 11..30 {
            pacer.look(draws(15.0), COMFORT, true, at(second));
            idle.look(draws(15.0), COMFORT, false, at(second));
        }
        assert!(pacer.look(draws(15.0), COMFORT, true, at(30)) > before);
        assert_eq!(idle.look(draws(15.0), COMFORT, false, at(30)), 20);
        // Work that comes anew begins slowly; where nobody minds, or nobody is, there is no pace.
        assert_eq!(pacer.look(draws(5.0), COMFORT, false, at(31)), 20);
        assert_eq!(pacer.look(draws(90.0), None, true, at(32)), 100);
        let alone = Warmth {
            is_alone: true,
            ..draws(90.0)
        };
        assert_eq!(pacer.look(alone, COMFORT, true, at(33)), 100);
    }

    /// Between what is aimed at and what is too much, where the ladder does nothing, batch goes on.
    #[test]
    fn what_is_comfortable_just_so_stops_nothing() {
        let mut pacer = Pacer::default();
        for second in 0..60 {
            pacer.look(draws(34.0), COMFORT, true, at(second));
        }
        assert_eq!(pacer.look(draws(34.0), COMFORT, true, at(60)), 5);
        // What is too much does, until it is a little less than comfortable, and while nothing can be read.
        for (watts, second, pace) in [(36.0, 61, 0), (34.0, 62, 0), (33.0, 63, 5), (36.0, 64, 0)] {
            assert_eq!(
                pacer.look(draws(watts), COMFORT, true, at(second)),
                pace,
                "{watts} W"
            );
        }
        assert_eq!(pacer.look(Warmth::default(), COMFORT, true, at(65)), 0);
        for (second, pace) in [(66, 0), (73, 0), (74, 5), (75, 5)] {
            assert_eq!(
                pacer.look(draws(34.0), COMFORT, true, at(second)),
                pace,
                "{second}"
            );
        }
    }

    #[test]
    fn calls_and_warm_chips_leave_less_and_unread_sensors_do_not() {
        let with = |change: fn(&mut MachineReport)| {
            let mut machine = MachineReport::default();
            change(&mut machine);
            Warmth::of(&machine)
        };
        let nothing = with(|_| {});
        assert_eq!(nothing, Warmth::default());
        assert!(with(|machine| machine.conditions.activity.capture = Reading::Measured(true)).is_delicate);
        assert!(with(|machine| machine.conditions.activity.video = Reading::Measured(true)).is_delicate);
        assert!(with(|machine| machine.thermal = Reading::Measured(Thermal::Fair)).is_delicate);
        assert!(!with(|machine| machine.thermal = Reading::Measured(Thermal::Nominal)).is_delicate);
        assert!(!with(|machine| machine.conditions.activity.indexing = Reading::Measured(true)).is_delicate);
    }

    #[test]
    fn a_reading_counts_once_and_one_that_fails_is_waited_for() {
        let mut pacer = Pacer::default();
        let mut look = |warmth, second| pacer.look(warmth, COMFORT, true, at(second));
        look(draws(10.0), 0);
        let pace = look(draws(10.0), 1);
        for _ in 0..60 {
            assert_eq!(look(draws(10.0), 1), pace);
        }
        assert_eq!(look(Warmth::default(), 2), pace);
        assert_eq!(look(Warmth::default(), 10), pace);
        assert_eq!(look(Warmth::default(), 11), 100);
        // It begins anew, and one reading a minute is worth some seconds of it.
        assert_eq!(look(draws(33.0), 12), 20);
        assert_eq!(look(draws(33.0), 72), 17);
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
                let pace = pacer.look(draws(watts), Some(Watts(comfort)), works, now);
                prop_assert!((0..=100).contains(&pace), "{pace}");
            }
            // It recovers from readings that cannot be.
            for _ in 0..60 {
                now += Duration::from_secs(1);
                pacer.look(draws(5.0), COMFORT, true, now);
            }
            prop_assert!(pacer.percent > 90.0, "{}", pacer.percent);
        }
    }
}
