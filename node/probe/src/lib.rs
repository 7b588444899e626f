//! What a machine can tell about itself. What it cannot measure is *unavailable*, never zero,
//! and a script says that it is one.

mod kills;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as system;
#[cfg(any(test, target_os = "macos"))]
mod pmset;
mod processes;
mod script;

use std::path::{Path, PathBuf};

pub use kills::{KillCause, KillTally};
pub use processes::Watched;

use pomona_common::report::MachineReport;
use pomona_common::unit::{Bytes, Reading};
use processes::Processes;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Reads the machine; one owner, who calls [`Probe::sample`] at the rate of the configuration.
pub struct Probe {
    system: Option<System>,
    agent: Processes,
    engine: Processes,
    sensors: system::Sensors,
    chip: String,
    os: String,
    script: Option<PathBuf>,
}

impl Probe {
    /// A probe; `power` says whether power sensors are read, `script` replaces readings.
    pub fn new(power: bool, script: Option<PathBuf>) -> Self {
        let kinds = RefreshKind::nothing()
            .with_memory(MemoryRefreshKind::everything())
            .with_cpu(CpuRefreshKind::nothing());
        let mut system = System::new_with_specifics(kinds).ok();
        let mut chip = String::new();
        if let Some(system) = &mut system {
            system.refresh_cpu_list(CpuRefreshKind::nothing());
            let brand = system.cpus().first().map(|cpu| cpu.brand().trim().to_owned());
            chip = brand.unwrap_or_default();
        }
        let name = System::name().unwrap_or_default();
        let version = System::os_version().unwrap_or_default();
        let os = [name, version, system::os_build()]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        Self {
            system,
            agent: Processes::default(),
            engine: Processes::default(),
            sensors: system::Sensors::new(power),
            chip,
            os,
            script,
        }
    }

    /// One reading of everything, with the memory of what works as the engine. Takes well under a millisecond of
    /// processor time, and every ten seconds some milliseconds where its children count.
    pub fn sample(&mut self, engine: Option<Watched>) -> MachineReport {
        let mut report = MachineReport {
            chip: self.chip.clone(),
            os: self.os.clone(),
            ..MachineReport::default()
        };
        if let Some(system) = &mut self.system {
            system.refresh_memory();
            let bytes = |n: u64| Reading::Measured(Bytes(n));
            report.memory_total = bytes(system.total_memory());
            report.memory_available = bytes(system.available_memory());
            report.swap_used = bytes(system.used_swap());
        }
        let own = Watched::Alone(std::process::id());
        (report.agent.rss, report.agent.footprint) = self.agent.memory(self.system.as_mut(), own);
        if let Some(engine) = engine {
            let memory = self.engine.memory(self.system.as_mut(), engine);
            (report.engine.rss, report.engine.footprint) = memory;
        }
        report.pressure = system::pressure();
        report.thermal = system::thermal();
        report.conditions = self.sensors.conditions();
        (report.power, report.power_source, report.conditions.rails) = self.sensors.power();
        if let Some(path) = &self.script {
            script::apply(path, &mut report);
        }
        report
    }

    /// Processes that the engine's server has started, the largest first, as of the last sample if that was with its
    /// children; found anew every ten seconds.
    pub fn started(&self) -> Vec<u32> {
        self.engine.started().collect()
    }

    /// Bytes that the system has written to swap since it started.
    pub fn swapped_out(&self) -> Reading<Bytes> {
        match self.script.as_deref().and_then(script::swapped_out) {
            Some(scripted) => Reading::Scripted(scripted),
            None => Reading::measured(self.sensors.swapped_out()),
        }
    }
}

/// The name of this machine, for people; `node` when it has none.
pub fn host_name() -> String {
    System::host_name().unwrap_or_else(|_| "node".to_owned())
}

/// Bytes that may still be written where `path` is, or where it will be; `None` when nobody can tell.
pub fn disk_free(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|ancestor| ancestor.exists())?;
    let disk = rustix::fs::statvfs(there).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Whether this machine is one that people carry about: it has a battery of its own.
pub fn is_laptop() -> bool {
    system::has_battery()
}

/// The process that listens on a TCP port of loopback or of all addresses, if the system tells: for this user's own
/// processes it does.
pub fn listener(port: u16) -> Option<u32> {
    system::listener(port)
}

/// Whether a process is there; one that has ended and was not waited for is not.
pub fn lives(pid: u32) -> bool {
    system::lives(pid)
}

/// Memory of a process with all that it started, and of the whole machine.
pub fn process_memory(pid: u32) -> (Reading<Bytes>, Reading<Bytes>) {
    let report = Probe::new(false, None).sample(Some(Watched::WithChildren(pid)));
    let of_process = match report.engine.footprint {
        Reading::Unavailable => report.engine.rss,
        footprint => footprint,
    };
    (of_process, report.memory_total)
}

#[cfg(test)]
mod tests {
    use pomona_common::conditions::Supply;

    use super::*;

    #[test]
    fn this_machine_reports_its_memory_and_this_process() {
        let report = Probe::new(true, None).sample(None);
        assert!(report.memory_total.value().is_some_and(|bytes| bytes.get() > 0));
        assert!(
            report
                .agent
                .rss
                .value()
                .is_some_and(|bytes| bytes.get() > 100_000)
        );
        assert_eq!(report.engine.rss, Reading::Unavailable);
    }

    #[test]
    fn a_script_says_that_it_is_one() -> std::io::Result<()> {
        let path = std::env::temp_dir().join(format!("pomona-probe-{}.json", std::process::id()));
        std::fs::write(
            &path,
            r#"{"power_watts": 70.0, "swap_used_bytes": 5, "swapped_out_bytes": 9, "on_battery": true, "idle_s": 90}"#,
        )?;
        let mut probe = Probe::new(true, Some(path.clone()));
        assert_eq!(probe.swapped_out(), Reading::Scripted(Bytes(9)));
        let report = probe.sample(None);
        assert!(matches!(report.power, Reading::Scripted(watts) if watts.get() == 70.0));
        assert_eq!(report.power_source, "scripted");
        assert!(matches!(report.swap_used, Reading::Scripted(bytes) if bytes.get() == 5));
        assert_eq!(report.conditions.supply, Reading::Scripted(Supply::Battery));
        assert_eq!(report.conditions.activity.idle_s, Reading::Scripted(90));
        assert_eq!(report.conditions.activity.locked, Reading::Unavailable);
        std::fs::remove_file(path)
    }
}
