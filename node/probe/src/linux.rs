//! Linux: RAPL for power, PSI for pressure, thermal zones against their trip points. There is no
//! `phys_footprint` here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pomona_common::report::Thermal;
use pomona_common::unit::{Bytes, Percent, Reading, Watts};

/// Energy counters of the processor packages (`/sys/class/powercap`).
pub(crate) struct Sensors {
    counters: Vec<PathBuf>,
    last: Option<(Instant, u64)>,
}

impl Sensors {
    pub(crate) fn new(power: bool) -> Self {
        let counters = if power {
            packages(Path::new("/sys/class/powercap"))
        } else {
            Vec::new()
        };
        Self { counters, last: None }
    }

    /// Watts since the last call, of all packages together.
    pub(crate) fn power(&mut self) -> (Reading<Watts>, String) {
        let unavailable = (Reading::Unavailable, String::new());
        let energy: Option<Vec<u64>> = self.counters.iter().map(|path| read_number(path)).collect();
        let Some(energy) = energy.filter(|energy| !energy.is_empty()) else {
            return unavailable;
        };
        let (now, microjoules) = (Instant::now(), energy.iter().sum::<u64>());
        let Some((then, before)) = self.last.replace((now, microjoules)) else {
            return unavailable;
        };
        let seconds = (now - then).as_secs_f64();
        // The counter wraps after hours; that one sample is lost.
        match microjoules.checked_sub(before) {
            Some(used) if seconds > 0.0 => {
                let watts = used as f64 / 1e6 / seconds;
                (Reading::Measured(Watts(watts as f32)), "rapl".to_owned())
            }
            _ => unavailable,
        }
    }
}

fn packages(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it.
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("intel-rapl:") && name.matches(':').count() == 1
        })
        .map(|path| path.join("energy_uj"))
        .filter(|path| read_number(path).is_some())
        .collect();
    paths.sort();
    paths
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Share of the last ten seconds in which some task waited for memory.
pub(crate) fn pressure() -> Reading<Percent> {
    let text = fs::read_to_string("/proc/pressure/memory").unwrap_or_default();
    let average = text
        .lines()
        .find(|line| line.starts_with("some"))
        .and_then(|line| {
            line.split_whitespace()
                .find_map(|field| field.strip_prefix("avg10="))
        })
        .and_then(|number| number.parse().ok());
    Reading::measured(average.map(Percent))
}

/// The worst thermal zone that has trip points.
pub(crate) fn thermal() -> Reading<Thermal> {
    Reading::measured(worst_zone(Path::new("/sys/class/thermal")))
}

fn worst_zone(root: &Path) -> Option<Thermal> {
    let entries = fs::read_dir(root).ok()?.filter_map(Result::ok);
    let zones = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("thermal_zone"));
    zones.filter_map(|zone| zone_state(&zone.path())).max()
}

/// Which of its trip points a zone has reached: at a passive one the kernel throttles, at a hot
/// one it asks for help, at a critical one it switches off.
fn zone_state(zone: &Path) -> Option<Thermal> {
    let number =
        |name: &str| -> Option<i64> { fs::read_to_string(zone.join(name)).ok()?.trim().parse().ok() };
    let temperature = number("temp")?;
    let mut state = None;
    // No zone has more trip points than a thermal driver may define.
    for i in 0..16 {
        let Some(limit) = number(&format!("trip_point_{i}_temp")) else {
            break;
        };
        let kind = fs::read_to_string(zone.join(format!("trip_point_{i}_type"))).unwrap_or_default();
        let reached = match kind.trim() {
            "active" => Thermal::Fair,
            "passive" => Thermal::Serious,
            "hot" | "critical" => Thermal::Critical,
            _ => continue,
        };
        // A limit of zero or below is one that the firmware left open.
        if limit > 0 {
            let here = if temperature >= limit {
                reached
            } else {
                Thermal::Nominal
            };
            state = state.max(Some(here));
        }
    }
    state
}

pub(crate) fn footprint(_pid: u32) -> Reading<Bytes> {
    Reading::Unavailable
}

/// A battery that powers the machine, not a mouse.
pub(crate) fn has_battery() -> bool {
    let supplies = fs::read_dir("/sys/class/power_supply").into_iter().flatten();
    supplies.filter_map(Result::ok).any(|supply| {
        let read = |name: &str| fs::read_to_string(supply.path().join(name)).unwrap_or_default();
        read("type").trim() == "Battery" && read("scope").trim() != "Device"
    })
}

/// The kernel's release.
pub(crate) fn os_build() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(files: &[(&str, &str)]) -> std::io::Result<Option<Thermal>> {
        let root = tempfile::tempdir()?;
        let zone = root.path().join("thermal_zone0");
        fs::create_dir(&zone)?;
        for (name, text) in files {
            fs::write(zone.join(name), text)?;
        }
        Ok(worst_zone(root.path()))
    }

    #[test]
    fn a_zone_is_as_hot_as_the_trip_points_it_reached() -> std::io::Result<()> {
        let trips = [
            ("trip_point_0_type", "passive\n"),
            ("trip_point_0_temp", "80000\n"),
            ("trip_point_1_type", "critical\n"),
            ("trip_point_1_temp", "100000\n"),
        ];
        let at = |temperature| zone(&[&trips[..], &[("temp", temperature)]].concat());
        assert_eq!(at("45000")?, Some(Thermal::Nominal));
        assert_eq!(at("85000")?, Some(Thermal::Serious));
        assert_eq!(at("101000")?, Some(Thermal::Critical));
        assert_eq!(
            zone(&[("temp", "45000")])?,
            None,
            "without trip points nothing is known"
        );
        Ok(())
    }
}
