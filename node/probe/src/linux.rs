//! Linux: RAPL for power, PSI for pressure. There is no `phys_footprint` here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

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

pub(crate) fn footprint(_pid: u32) -> Reading<Bytes> {
    Reading::Unavailable
}

/// The kernel's release.
pub(crate) fn os_build() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}
