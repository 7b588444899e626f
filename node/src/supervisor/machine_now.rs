//! What the engine's owner goes by of the machine, as it was read last.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pomona_common::Energy;
use pomona_common::report::MachineReport;
use pomona_common::unit::Percent;
use pomona_decide::{Scarcity, Warmth};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct MachineNow {
    began: Instant,
    read: Mutex<Read>,
}

#[derive(Debug, Default)]
struct Read {
    at: Duration,
    scarcity: Scarcity,
    warmth: Warmth,
    /// Watts, and what they were read from.
    power: Option<(f64, String)>,
    family: Family,
}

/// A server that works in the engine's place, and what it has started, the largest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Family {
    /// The server's process; 0 for none.
    pub(crate) server: u32,
    /// The others.
    pub(crate) started: Vec<u32>,
}

impl MachineNow {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            read: Mutex::default(),
        }
    }

    /// It was read, and what works in the engine's place.
    pub(super) fn note(&self, machine: &MachineReport, family: Family) {
        let (pressure, power) = (machine.pressure.value(), machine.power.value());
        let (mut read, at) = (self.read(), self.began.elapsed());
        let mut scarcity = read.scarcity;
        scarcity.look(pressure.map(Percent::get), at);
        *read = Read {
            at,
            scarcity,
            warmth: Warmth::of(machine),
            power: power.map(|watts| (watts.get().into(), machine.power_source.clone())),
            family,
        };
    }

    /// When it was, since this began.
    pub(super) fn read_at(&self) -> Duration {
        self.read().at
    }

    /// Whether the system is, whatever the engine itself takes.
    pub(super) fn is_short_of_memory(&self) -> bool {
        self.read().scarcity.is_short()
    }

    /// How warm it was.
    pub(super) fn warmth(&self) -> Warmth {
        self.read().warmth
    }

    /// What it draws for an answer for which the engine worked so many milliseconds, if both are known.
    pub(super) fn energy(&self, milliseconds: f64) -> Option<Energy> {
        let (watts, source) = self.read().power.clone().filter(|_| milliseconds > 0.0)?;
        let joules = watts * milliseconds / 1e3;
        Some(Energy { joules, source })
    }

    /// What worked in the engine's place.
    pub(super) fn family(&self) -> Family {
        self.read().family.clone()
    }

    fn read(&self) -> MutexGuard<'_, Read> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::unit::{Reading, Watts};

    use super::*;

    #[test]
    fn an_answer_draws_its_share_of_the_time() {
        let now = MachineNow::new();
        assert_eq!(now.energy(200.0), None, "nobody has looked");
        let machine = MachineReport {
            power: Reading::Measured(Watts(10.0)),
            power_source: "rails".into(),
            ..MachineReport::default()
        };
        now.note(&machine, Family::default());
        let energy = now.energy(200.0).map(|energy| (energy.joules, energy.source));
        assert_eq!(energy, Some((2.0, "rails".to_owned())));
        assert_eq!(now.energy(0.0), None);
    }
}
