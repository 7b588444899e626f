//! Linux: RAPL for power, PSI for pressure, thermal zones against their trip points. There is no
//! `phys_footprint` here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pomona_common::conditions::{Conditions, Rail, Supply};
use pomona_common::limits;
use pomona_common::report::Thermal;
use pomona_common::unit::{Bytes, Percent, Reading, Watts};

/// Energy counters of the processor packages and their parts (`/sys/class/powercap`).
pub(crate) struct Sensors {
    counters: Vec<Counter>,
    last: Option<Instant>,
}

struct Counter {
    name: String,
    /// A whole package, not a part of one.
    whole: bool,
    path: PathBuf,
    /// Microjoules when it was read last.
    last: Option<u64>,
}

impl Sensors {
    pub(crate) fn new(power: bool) -> Self {
        let counters = if power {
            counters(Path::new("/sys/class/powercap"))
        } else {
            Vec::new()
        };
        Self { counters, last: None }
    }

    /// Watts since the last call: of all packages together, with the source, and by rail.
    pub(crate) fn power(&mut self) -> (Reading<Watts>, String, Vec<Rail>) {
        let now = Instant::now();
        let seconds = self.last.replace(now).map(|then| (now - then).as_secs_f64());
        let (mut rails, mut total) = (Vec::new(), None);
        for counter in &mut self.counters {
            let energy = read_number(&counter.path);
            let before = std::mem::replace(&mut counter.last, energy);
            let (Some(seconds), Some(energy), Some(before)) = (seconds, energy, before) else {
                continue;
            };
            // The counter wraps after hours; that one sample is lost.
            let Some(used) = energy.checked_sub(before).filter(|_| seconds > 0.0) else {
                continue;
            };
            let watts = (used as f64 / 1e6 / seconds) as f32;
            if counter.whole {
                total = Some(total.unwrap_or(0.0) + watts);
            }
            rails.push(Rail {
                name: counter.name.clone(),
                power: Watts(watts),
            });
        }
        match total {
            Some(watts) => (Reading::Measured(Watts(watts)), "rapl".to_owned(), rails),
            None => (Reading::Unavailable, String::new(), Vec::new()),
        }
    }

    /// What feeds the machine and what else it does.
    pub(crate) fn conditions(&mut self) -> Conditions {
        let (supply, battery) = supplies(Path::new("/sys/class/power_supply"));
        let profile = fs::read_to_string("/sys/firmware/acpi/platform_profile").ok();
        Conditions {
            supply: Reading::measured(supply),
            battery: Reading::measured(battery.map(Percent)),
            low_power: Reading::measured(profile.map(|profile| profile.trim() == "low-power")),
            compressed: Reading::measured(compressed()),
            gpu: Reading::measured(gpu(Path::new("/sys/class/drm")).map(Percent)),
            // What a person does here, no interface tells a service.
            ..Conditions::default()
        }
    }

    /// Bytes written to swap since the system started.
    pub(crate) fn swapped_out(&self) -> Option<Bytes> {
        let text = fs::read_to_string("/proc/vmstat").ok()?;
        let pages = text.lines().find_map(|line| line.strip_prefix("pswpout "))?;
        let pages: u64 = pages.trim().parse().ok()?;
        Some(Bytes(pages * rustix::param::page_size() as u64))
    }
}

/// What feeds the machine, and the charge of its battery in percent.
fn supplies(root: &Path) -> (Option<Supply>, Option<f32>) {
    let (mut supply, mut charge) = (None, None);
    for entry in fs::read_dir(root).into_iter().flatten().filter_map(Result::ok) {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        match read("type").trim() {
            "Mains" if read("online").trim() == "1" => supply = Some(Supply::Mains),
            "Battery" if read("scope").trim() != "Device" => {
                charge = read("capacity").trim().parse().ok();
                if read("status").trim() == "Discharging" && supply.is_none() {
                    supply = Some(Supply::Battery);
                }
            }
            _ => {}
        }
    }
    (supply, charge)
}

/// The pool of zswap, where the kernel has one.
fn compressed() -> Option<Bytes> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Zswap:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(Bytes(kib * 1024))
}

/// The busiest card whose driver tells.
fn gpu(root: &Path) -> Option<f32> {
    let cards = fs::read_dir(root).ok()?.filter_map(Result::ok);
    cards
        .filter_map(|card| read_number(&card.path().join("device/gpu_busy_percent")))
        .max()
        .map(|percent| percent as f32)
}

fn counters(root: &Path) -> Vec<Counter> {
    let entries = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
    let mut counters: Vec<Counter> = entries
        .filter_map(|entry| {
            let zone = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path().join("energy_uj");
            read_number(&path).filter(|_| zone.starts_with("intel-rapl:"))?;
            // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it.
            let whole = zone.matches(':').count() == 1;
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            let name = match name.trim() {
                "" => zone,
                name => name.to_owned(),
            };
            Some(Counter {
                name,
                whole,
                path,
                last: None,
            })
        })
        .collect();
    counters.sort_by(|a, b| a.path.cmp(&b.path));
    counters.truncate(limits::RAILS);
    counters
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

/// Of one that has ended and was not waited for yet, the program is not known any more.
pub(crate) fn lives(pid: u32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe"));
    // It may be somebody else's.
    program.map_or_else(
        |error| error.kind() == std::io::ErrorKind::PermissionDenied,
        |_| true,
    )
}

/// What a process is called, in 15 letters.
pub(crate) fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| String::new(), |name| name.trim().to_owned())
}

/// A battery that powers the machine, not a mouse.
pub(crate) fn has_battery() -> bool {
    let supplies = fs::read_dir("/sys/class/power_supply").into_iter().flatten();
    supplies.filter_map(Result::ok).any(|supply| {
        let read = |name: &str| fs::read_to_string(supply.path().join(name)).unwrap_or_default();
        read("type").trim() == "Battery" && read("scope").trim() != "Device"
    })
}

/// The name of this start of the system.
pub(crate) fn boot_session() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// The kernel's release.
pub(crate) fn os_build() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// By the socket's inode, which `/proc/net/tcp` and the process's own descriptors both name.
pub(crate) fn listener(port: u16) -> Option<u32> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|path| {
        let table = fs::read_to_string(path).ok()?;
        table.lines().skip(1).find_map(|line| listening_inode(line, port))
    })?;
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let mut pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        open.filter_map(Result::ok)
            .any(|open| fs::read_link(open.path()).is_ok_and(|to| to.to_str() == Some(&wanted)))
    })
}

/// The inode of a line of `/proc/net/tcp`, if that is a socket which listens on a port (proc(5)).
fn listening_inode(line: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (address, own) = fields.get(1)?.rsplit_once(':')?;
    // All addresses, and 127.0.0.1 and ::1 in the order of the machine's bytes.
    let is_here = address.bytes().all(|digit| digit == b'0')
        || ["0100007F", "00000000000000000000000001000000"].contains(&address);
    let is_it = is_here && u16::from_str_radix(own, 16).ok()? == port && *fields.get(3)? == LISTEN;
    fields.get(9).filter(|_| is_it)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_is_known_by_the_port_that_it_listens_on() -> std::io::Result<()> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        assert_eq!(super::listener(port), Some(std::process::id()));
        drop(listener);
        assert_eq!(super::listener(port), None);
        for odd in [
            "",
            "sl",
            "0: zz:zz 0 0A",
            "0: 0100007F:1F90 00000000:0000 01 0 0 0 0 0 7",
        ] {
            assert_eq!(super::listening_inode(odd, 8080), None);
        }
        Ok(())
    }

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

    fn write(folder: &Path, files: &[(&str, &str)]) -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        for (name, text) in files {
            fs::write(folder.join(name), text)?;
        }
        Ok(())
    }

    #[test]
    fn a_machine_on_its_battery_says_so() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        assert_eq!(supplies(root.path()), (None, None));
        let battery = [
            ("type", "Battery\n"),
            ("capacity", "64\n"),
            ("status", "Discharging\n"),
        ];
        write(&root.path().join("BAT0"), &battery)?;
        let mouse = [("type", "Battery\n"), ("scope", "Device\n"), ("capacity", "3\n")];
        write(&root.path().join("hidpp"), &mouse)?;
        assert_eq!(supplies(root.path()), (Some(Supply::Battery), Some(64.0)));
        write(&root.path().join("AC"), &[("type", "Mains\n"), ("online", "1\n")])?;
        assert_eq!(supplies(root.path()), (Some(Supply::Mains), Some(64.0)));
        Ok(())
    }

    #[test]
    fn power_is_told_by_rail_and_packages_add_up() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        for (zone, name) in [
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:1", "package-1"),
        ] {
            write(
                &root.path().join(zone),
                &[("name", name), ("energy_uj", "1000000")],
            )?;
        }
        let mut sensors = Sensors {
            counters: counters(root.path()),
            last: None,
        };
        assert_eq!(sensors.power().0, Reading::Unavailable, "one reading is no power");
        for zone in ["intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"] {
            fs::write(root.path().join(zone).join("energy_uj"), "2000000")?;
        }
        let (power, source, rails) = sensors.power();
        let sum: f32 = rails
            .iter()
            .filter(|rail| rail.name != "core")
            .map(|rail| rail.power.get())
            .sum();
        assert!(matches!(power, Reading::Measured(watts) if watts.get() > 0.0 && watts.get() == sum));
        assert_eq!((source.as_str(), rails.len()), ("rapl", 3));
        Ok(())
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
