//! macOS: macmon for power, `proc_pid_rusage` for footprints, `memorystatus` for pressure,
//! `notify(3)` for the thermal state.
//! Type-checked from Linux; not run on a Mac yet.
#![expect(unsafe_code, reason = "calls into libSystem; each block states its contract")]

use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pomona_common::report::Thermal;
use pomona_common::unit::{Bytes, Percent, Reading, Watts};

/// Milliseconds over which macmon averages: one report.
const SAMPLE_MS: u32 = 1000;

/// The latest power reading, taken by a thread of its own: macmon's sampler blocks for the
/// sampling period and may not move between threads.
pub(crate) struct Sensors {
    latest: Arc<Mutex<Option<f32>>>,
}

impl Sensors {
    pub(crate) fn new(power: bool) -> Self {
        let latest = Arc::new(Mutex::new(None));
        if power {
            let weak = Arc::downgrade(&latest);
            // Ends when the probe is dropped, or at once on a machine without sensors.
            std::thread::spawn(move || {
                let Ok(mut sampler) = macmon::Sampler::new() else {
                    return;
                };
                while let Some(latest) = weak.upgrade() {
                    let watts = sampler.get_metrics(SAMPLE_MS).ok().map(|metrics| {
                        // The whole system where the machine has that sensor, else the chip.
                        if metrics.sys_power > 0.0 {
                            metrics.sys_power
                        } else {
                            metrics.all_power
                        }
                    });
                    *latest.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                        watts.filter(|watts| *watts > 0.0);
                    if watts.is_none() {
                        std::thread::sleep(Duration::from_millis(u64::from(SAMPLE_MS)));
                    }
                }
            });
        }
        Self { latest }
    }

    pub(crate) fn power(&mut self) -> (Reading<Watts>, String) {
        let latest = *self
            .latest
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match latest {
            Some(watts) => (Reading::Measured(Watts(watts)), "macmon".to_owned()),
            None => (Reading::Unavailable, String::new()),
        }
    }
}

/// What jetsam counts: `ri_phys_footprint` of `proc_pid_rusage`.
pub(crate) fn footprint(pid: u32) -> Reading<Bytes> {
    let mut info = std::mem::MaybeUninit::<libc::rusage_info_v4>::zeroed();
    // SAFETY: the buffer is a rusage_info_v4 and the flavour says so; the call fills it or fails.
    let status =
        unsafe { libc::proc_pid_rusage(pid as libc::c_int, libc::RUSAGE_INFO_V4, info.as_mut_ptr().cast()) };
    if status != 0 {
        return Reading::Unavailable;
    }
    // SAFETY: zeroed before and filled by a successful call; every bit pattern is valid.
    let info = unsafe { info.assume_init() };
    Reading::Measured(Bytes(info.ri_phys_footprint))
}

/// 100 minus the share of memory that the kernel calls available.
pub(crate) fn pressure() -> Reading<Percent> {
    let level = sysctl(c"kern.memorystatus_level", 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    Reading::measured(level.map(|level| Percent((100 - level.clamp(0, 100)) as f32)))
}

// `notify.h` of libSystem, which the libc crate does not declare.
unsafe extern "C" {
    fn notify_register_check(name: *const libc::c_char, token: *mut libc::c_int) -> u32;
    fn notify_get_state(token: libc::c_int, state: *mut u64) -> u32;
    fn notify_cancel(token: libc::c_int) -> u32;
}

/// The thermal pressure that the system announces: `OSThermalPressureLevel` of
/// `OSThermalNotification.h`, which `NSProcessInfo.thermalState` is made of.
pub(crate) fn thermal() -> Reading<Thermal> {
    let mut token = 0;
    let mut level = u64::MAX;
    // SAFETY: the name ends in NUL; token and level are valid for writes; the token is cancelled
    // once.
    let known = unsafe {
        let registered =
            notify_register_check(c"com.apple.system.thermalpressurelevel".as_ptr(), &raw mut token);
        registered == 0 && {
            let status = notify_get_state(token, &raw mut level);
            notify_cancel(token);
            status == 0
        }
    };
    let state = match level {
        0 => Some(Thermal::Nominal),
        1 => Some(Thermal::Fair),
        2 => Some(Thermal::Serious),
        3 | 4 => Some(Thermal::Critical),
        _ => None,
    };
    Reading::measured(state.filter(|_| known))
}

/// Model names of newer Macs do not tell; `pmset` names the battery of those that have one.
pub(crate) fn has_battery() -> bool {
    let output = std::process::Command::new("/usr/bin/pmset")
        .args(["-g", "batt"])
        .output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("InternalBattery"))
}

/// The build of macOS, like `25B78`.
pub(crate) fn os_build() -> String {
    let bytes = sysctl(c"kern.osversion", 64).unwrap_or_default();
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    CString::new(text)
        .ok()
        .and_then(|text| text.into_string().ok())
        .unwrap_or_default()
}

fn sysctl(name: &CStr, capacity: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0u8; capacity];
    let mut len = buffer.len();
    // SAFETY: the name ends in NUL, `len` is the buffer's size and is updated to what was written.
    let status = unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            buffer.as_mut_ptr().cast(),
            &raw mut len,
            std::ptr::null_mut(),
            0,
        )
    };
    buffer.truncate(len);
    (status == 0).then_some(buffer)
}
