//! Readings from a file, read again at every sample so that a test can change them.

use std::path::Path;

use pomona_common::conditions::Supply;
use pomona_common::report::MachineReport;
use pomona_common::unit::{Bytes, Percent, Reading, Watts};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    power_watts: Option<f32>,
    swap_used_bytes: Option<u64>,
    swapped_out_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    pressure_percent: Option<f32>,
    on_battery: Option<bool>,
    battery_percent: Option<f32>,
    low_power: Option<bool>,
    gpu_percent: Option<f32>,
    indexing: Option<bool>,
    video: Option<bool>,
    capture: Option<bool>,
    locked: Option<bool>,
    idle_s: Option<u64>,
}

/// A file that cannot be read says nothing.
fn read(path: &Path) -> Option<Script> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Bytes written to swap, if the file names them.
pub(crate) fn swapped_out(path: &Path) -> Option<Bytes> {
    read(path)?.swapped_out_bytes.map(Bytes)
}

/// Replaces what the file names.
pub(crate) fn apply(path: &Path, report: &mut MachineReport) {
    let Some(script) = read(path) else {
        return;
    };
    if let Some(watts) = script.power_watts.filter(|watts| watts.is_finite()) {
        report.power = Reading::Scripted(Watts(watts));
        report.power_source = "scripted".to_owned();
    }
    if let Some(bytes) = script.swap_used_bytes {
        report.swap_used = Reading::Scripted(Bytes(bytes));
    }
    if let Some(bytes) = script.memory_available_bytes {
        report.memory_available = Reading::Scripted(Bytes(bytes));
    }
    if let Some(percent) = script.pressure_percent.filter(|percent| percent.is_finite()) {
        report.pressure = Reading::Scripted(Percent(percent));
    }
    let conditions = &mut report.conditions;
    let supply = script.on_battery.map(|on_battery| match on_battery {
        true => Supply::Battery,
        false => Supply::Mains,
    });
    replace(&mut conditions.supply, supply);
    replace(&mut conditions.battery, script.battery_percent.map(Percent));
    replace(&mut conditions.low_power, script.low_power);
    replace(&mut conditions.gpu, script.gpu_percent.map(Percent));
    let activity = &mut conditions.activity;
    replace(&mut activity.indexing, script.indexing);
    replace(&mut activity.video, script.video);
    replace(&mut activity.capture, script.capture);
    replace(&mut activity.locked, script.locked);
    replace(&mut activity.idle_s, script.idle_s);
}

fn replace<T>(reading: &mut Reading<T>, scripted: Option<T>) {
    if let Some(value) = scripted {
        *reading = Reading::Scripted(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_script_says_never_passes_for_measured() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("readings.json");
        let said = r#"{"power_watts": 70, "swap_used_bytes": 7, "memory_available_bytes": 8, "pressure_percent": 9,
            "on_battery": true, "battery_percent": 40, "low_power": true, "gpu_percent": 3, "indexing": true, "video": true,
            "capture": true, "locked": false, "idle_s": 5}"#;
        std::fs::write(&file, said)?;
        let mut report = MachineReport {
            power: Reading::Measured(Watts(12.0)),
            swap_used: Reading::Measured(Bytes(1)),
            ..MachineReport::default()
        };
        apply(&file, &mut report);
        let conditions = &report.conditions;
        let activity = &conditions.activity;
        assert_eq!(report.power, Reading::Scripted(Watts(70.0)));
        assert_eq!(report.power_source, "scripted");
        assert_eq!(report.swap_used, Reading::Scripted(Bytes(7)));
        assert_eq!(report.memory_available, Reading::Scripted(Bytes(8)));
        assert_eq!(report.pressure, Reading::Scripted(Percent(9.0)));
        assert_eq!(conditions.supply, Reading::Scripted(Supply::Battery));
        assert_eq!(conditions.battery, Reading::Scripted(Percent(40.0)));
        assert_eq!(conditions.low_power, Reading::Scripted(true));
        assert_eq!(activity.idle_s, Reading::Scripted(5));
        assert_eq!(activity.locked, Reading::Scripted(false));
        Ok(())
    }
}
