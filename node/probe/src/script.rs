//! Readings from a file, read again at every sample so that a test can change them.

use std::path::Path;

use pomona_common::report::MachineReport;
use pomona_common::unit::{Bytes, Percent, Reading, Watts};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    power_watts: Option<f32>,
    swap_used_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    pressure_percent: Option<f32>,
}

/// Replaces what the file names. A file that cannot be read replaces nothing.
pub(crate) fn apply(path: &Path, report: &mut MachineReport) {
    let script = std::fs::read(path)
        .ok()
        .and_then(|text| serde_json::from_slice::<Script>(&text).ok());
    let Some(script) = script else {
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
}
