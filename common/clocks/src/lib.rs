//! The clocks of this machine, and the moment at which it wakes.
//!
//! `Instant` stands still while a machine sleeps, on macOS (`CLOCK_UPTIME_RAW`) and on Linux
//! (`CLOCK_MONOTONIC`); another clock counts that time (`CLOCK_MONOTONIC` and `CLOCK_BOOTTIME`).
//! The difference of the two is the time slept. A process that is stopped with a signal sees both go
//! on, and has stalled, not slept.
//!
//! A script can move the clocks of a process, for tests: a file with the seconds that the machine
//! is to have slept.
#![forbid(unsafe_code)]

mod sleep;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use sleep::{SleepWatch, next_wake};

/// Two readings that are no further apart are of one moment.
const SAME: Duration = Duration::from_millis(50);
/// The file of a script, if there is one.
static SCRIPT: OnceLock<PathBuf> = OnceLock::new();
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Both clocks that never go backwards, at one moment; their zeros differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Time that the machine was awake.
    pub awake: Duration,
    /// The same with the time that it slept.
    pub boot: Duration,
}

/// From now on the clocks of this process follow a script, a file with the seconds that the machine
/// is to have slept (0 while it is missing or says nothing). The first call counts.
pub fn follow_script(file: PathBuf) {
    let _ = SCRIPT.set(file);
}

/// Both clocks now.
pub fn read() -> Reading {
    let awake = || BEGAN.get_or_init(Instant::now).elapsed();
    let both = || {
        let (before, boot) = (awake(), since_boot() + scripted_sleep());
        (before, boot, awake())
    };
    let mut reading = both();
    // A process that stalls between the two has not slept: it reads them again.
    for _ in 0..3 {
        if reading.2 - reading.0 < SAME {
            break;
        }
        reading = both();
    }
    Reading {
        awake: reading.0,
        boot: reading.1,
    }
}

/// The wall clock, which anybody may set.
pub fn wall() -> SystemTime {
    SystemTime::now() + scripted_sleep()
}

/// The wall clock in seconds since 1970.
pub fn wall_s() -> u64 {
    since_1970().as_secs()
}

/// The wall clock in milliseconds since 1970.
pub fn wall_ms() -> u64 {
    since_1970().as_millis() as u64
}

fn since_1970() -> Duration {
    wall().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn scripted_sleep() -> Duration {
    let text = SCRIPT.get().and_then(|file| std::fs::read_to_string(file).ok());
    let seconds = text.and_then(|text| text.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    // Goes on while a Mac sleeps, see clock_gettime(3) there.
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_moves_what_counts_sleep_and_nothing_else() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("slept");
        follow_script(file.clone());
        let (before, wall_before) = (read(), wall_s());
        std::fs::write(&file, "7200\n")?;
        let (after, wall_after) = (read(), wall_s());
        assert!(after.boot - before.boot >= Duration::from_secs(7199));
        assert!(after.awake - before.awake < Duration::from_secs(60));
        assert!((7200..7260).contains(&(wall_after - wall_before)));
        let mut watch = SleepWatch::default();
        assert_eq!(watch.look(before), None);
        assert!(
            watch
                .look(after)
                .is_some_and(|slept| slept.as_secs().abs_diff(7200) <= 1)
        );
        Ok(())
    }
}
