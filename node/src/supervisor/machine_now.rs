//! What the engine's owner goes by of the machine, as it was read last.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pomona_common::report::MachineReport;
use pomona_decide::Warmth;
use pomona_decide::planner::PRESSURE_MAX;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct MachineNow {
    began: Instant,
    read: Mutex<Read>,
}

#[derive(Debug, Default)]
struct Read {
    at: Duration,
    short_of_memory: bool,
    warmth: Warmth,
    started: Vec<u32>,
}

impl MachineNow {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            read: Mutex::default(),
        }
    }

    /// It was read, and these are the processes that the engine's server has started.
    pub(super) fn note(&self, machine: &MachineReport, started: Vec<u32>) {
        let pressure = machine.pressure.value();
        *self.read() = Read {
            at: self.began.elapsed(),
            short_of_memory: pressure.is_some_and(|pressure| pressure.get() > PRESSURE_MAX),
            warmth: Warmth::of(machine),
            started,
        };
    }

    /// When it was, since this began.
    pub(super) fn read_at(&self) -> Duration {
        self.read().at
    }

    /// Whether the system is, whatever the engine itself takes.
    pub(super) fn is_short_of_memory(&self) -> bool {
        self.read().short_of_memory
    }

    /// How warm it was.
    pub(super) fn warmth(&self) -> Warmth {
        self.read().warmth
    }

    /// Processes that the engine's server had started.
    pub(super) fn started(&self) -> Vec<u32> {
        self.read().started.clone()
    }

    fn read(&self) -> MutexGuard<'_, Read> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
