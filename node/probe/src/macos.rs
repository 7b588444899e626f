//! macOS: macmon for power, `pmset` and `ioreg` for conditions, `proc_pid_rusage` for footprints, `memorystatus` for pressure,
//! `notify(3)` for the thermal state.
//! Type-checked from Linux; not run on a Mac yet.
#![expect(unsafe_code, reason = "calls into libSystem; each block states its contract")]

use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use pomona_common::conditions::{Activity, Conditions, Rail};
use pomona_common::report::Thermal;
use pomona_common::unit::{Bytes, Percent, Reading, Watts};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

use crate::pmset;

/// Milliseconds over which macmon averages: one report.
const SAMPLE_MS: u32 = 1000;
/// Between two rounds of the system's tools.
const TOOLS: Duration = Duration::from_secs(10);
/// What they said so long ago is not known any more: one of them hangs.
const HANGS: Duration = Duration::from_secs(30);
/// A process that takes more of a core than this, in percent, is at work.
const BUSY: f32 = 10.0;
/// The driver of cameras that hang on a cable sleeps while none of them is on.
const AWAKE: f32 = 1.0;
/// The processes of that driver.
const CABLE_CAMERAS: [&str; 1] = ["UVCAssistant"];
/// Processes of Xcode that build or index.
const BUILDERS: [&str; 5] = [
    "XCBBuildService",
    "SourceKitService",
    "sourcekit-lsp",
    "swift-frontend",
    "clang",
];
/// Processes in which VideoToolbox encodes or decodes.
const CODECS: [&str; 2] = ["VTDecoderXPCService", "VTEncoderXPCService"];

/// The latest readings, taken by threads of their own: macmon's sampler blocks for the sampling
/// period and may not move between threads, and the system's tools take tens of milliseconds.
pub(crate) struct Sensors {
    power: Arc<Mutex<Option<Power>>>,
    /// And when the tools were asked.
    tools: Arc<Mutex<(Instant, Conditions)>>,
    host: libc::mach_port_t,
}

#[derive(Clone)]
struct Power {
    watts: f32,
    rails: Vec<Rail>,
    gpu: f32,
}

impl Sensors {
    pub(crate) fn new(power: bool) -> Self {
        let latest = Arc::new(Mutex::new(None));
        if power {
            let weak = Arc::downgrade(&latest);
            std::thread::spawn(move || sample_power(&weak));
        }
        let tools = Arc::new(Mutex::new((Instant::now(), Conditions::default())));
        let weak = Arc::downgrade(&tools);
        std::thread::spawn(move || ask_tools(&weak));
        Self {
            power: latest,
            tools,
            // SAFETY: no arguments; the port is kept for the life of the process.
            #[expect(deprecated, reason = "libc points to a crate of its own for this one call")]
            host: unsafe { libc::mach_host_self() },
        }
    }

    /// Watts of the whole system with the source, and by rail.
    pub(crate) fn power(&mut self) -> (Reading<Watts>, String, Vec<Rail>) {
        match lock(&self.power).clone() {
            Some(power) => (
                Reading::Measured(Watts(power.watts)),
                "macmon".to_owned(),
                power.rails,
            ),
            None => (Reading::Unavailable, String::new(), Vec::new()),
        }
    }

    /// What feeds the machine and what else it does.
    pub(crate) fn conditions(&mut self) -> Conditions {
        let (asked, said) = lock(&self.tools).clone();
        let mut conditions = match asked.elapsed() < HANGS {
            true => said,
            false => Conditions::default(),
        };
        let gpu = lock(&self.power).as_ref().map(|power| Percent(power.gpu));
        conditions.gpu = Reading::measured(gpu);
        conditions.compressed = Reading::measured(self.compressed());
        conditions
    }

    /// Pages of the compressor.
    fn compressed(&self) -> Option<Bytes> {
        let (statistics, page) = self.memory()?;
        Some(Bytes(u64::from(statistics.compressor_page_count) * page))
    }

    /// Bytes written to swap since the system started.
    pub(crate) fn swapped_out(&self) -> Option<Bytes> {
        let (statistics, page) = self.memory()?;
        Some(Bytes(statistics.swapouts * page))
    }

    /// Counters of virtual memory, and the bytes of a page.
    fn memory(&self) -> Option<(libc::vm_statistics64, u64)> {
        let mut statistics = std::mem::MaybeUninit::<libc::vm_statistics64>::zeroed();
        let mut count = libc::HOST_VM_INFO64_COUNT;
        // SAFETY: the buffer is a vm_statistics64, and the count says how long it is; the call
        // fills it or fails. `sysconf` has no preconditions.
        let (status, page) = unsafe {
            let status = libc::host_statistics64(
                self.host,
                libc::HOST_VM_INFO64,
                statistics.as_mut_ptr().cast(),
                &raw mut count,
            );
            (status, libc::sysconf(libc::_SC_PAGESIZE))
        };
        if status != libc::KERN_SUCCESS {
            return None;
        }
        // SAFETY: zeroed before and filled by a successful call; every bit pattern is valid.
        let statistics = unsafe { statistics.assume_init() };
        Some((statistics, u64::try_from(page).ok()?))
    }
}

/// Ends when the probe is dropped, or at once on a machine without sensors.
fn sample_power(latest: &Weak<Mutex<Option<Power>>>) {
    let Ok(mut sampler) = macmon::Sampler::new() else {
        return;
    };
    while let Some(latest) = latest.upgrade() {
        let metrics = sampler.get_metrics(SAMPLE_MS).ok();
        let failed = metrics.is_none();
        *lock(&latest) = metrics.and_then(|metrics| {
            // The whole system where the machine has that sensor, else the chip.
            let watts = if metrics.sys_power > 0.0 {
                metrics.sys_power
            } else {
                metrics.all_power
            };
            let rail = |name: &str, power| Rail {
                name: name.to_owned(),
                power: Watts(power),
            };
            let power = Power {
                watts,
                rails: vec![
                    rail("cpu", metrics.cpu_power),
                    rail("gpu", metrics.gpu_power),
                    rail("ane", metrics.ane_power),
                    rail("dram", metrics.ram_power),
                ],
                gpu: (metrics.gpu_active_ratio * 100.0).clamp(0.0, 100.0),
            };
            (watts > 0.0).then_some(power)
        });
        if failed {
            std::thread::sleep(Duration::from_millis(u64::from(SAMPLE_MS)));
        }
    }
}

/// Asks the system's own tools; ends when the probe is dropped.
fn ask_tools(latest: &Weak<Mutex<(Instant, Conditions)>>) {
    let mut system = System::new().ok();
    while let Some(latest) = latest.upgrade() {
        let (supply, battery) = pmset::battery(&output("/usr/bin/pmset", &["-g", "batt"]));
        let low_power = pmset::low_power(&output("/usr/bin/pmset", &["-g"]));
        let assertions = output("/usr/bin/pmset", &["-g", "assertions"]);
        let input = output("/usr/sbin/ioreg", &["-c", "IOHIDSystem", "-d", "4"]);
        let camera = output("/usr/sbin/ioreg", &["-r", "-k", "FrontCameraStreaming"]);
        let root = output("/usr/sbin/ioreg", &["-n", "Root", "-d", "1"]);
        let kinds = ProcessRefreshKind::nothing().with_cpu().without_tasks();
        if let Some(system) = &mut system {
            system.refresh_processes_specifics(ProcessesToUpdate::All, true, kinds);
        }
        let busy = |names: &[&str], above| system.as_ref().map(|system| is_busy(system, names, above));
        let cable = busy(&CABLE_CAMERAS, AWAKE).unwrap_or_default();
        let capture = pmset::capture(pmset::microphone(&assertions), pmset::camera(&camera), cable);
        let activity = Activity {
            indexing: Reading::measured(busy(&BUILDERS, BUSY)),
            video: Reading::measured(busy(&CODECS, BUSY)),
            capture: Reading::measured(capture),
            locked: Reading::measured(pmset::locked(&root)),
            idle_s: Reading::measured(pmset::idle_s(&input)),
        };
        let said = Conditions {
            supply: Reading::measured(supply),
            battery: Reading::measured(battery.map(Percent)),
            low_power: Reading::measured(low_power),
            activity,
            ..Conditions::default()
        };
        *lock(&latest) = (Instant::now(), said);
        drop(latest);
        std::thread::sleep(TOOLS);
    }
}

fn is_busy(system: &System, names: &[&str], above: f32) -> bool {
    system.processes().values().any(|process| {
        let name = process.name().to_string_lossy();
        process.cpu_usage() > above && names.iter().any(|known| name.starts_with(known))
    })
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a process is there, whoever's it is; one that has ended and was not waited for is not.
pub(crate) fn lives(pid: u32) -> bool {
    if let Some(info) = information(pid) {
        return info.pbi_status != libc::SZOMB;
    }
    // SAFETY: signal 0 is sent to nobody; the call only says whether it could be.
    let status = unsafe { libc::kill(pid as libc::pid_t, 0) };
    status != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// What a process is called, as reports of jetsam have it.
pub(crate) fn name(pid: u32) -> String {
    let name = information(pid).map(|info| info.pbi_name.map(|letter| letter as u8));
    let name = name.unwrap_or_default();
    let letters = name.split(|letter| *letter == 0).next().unwrap_or_default();
    String::from_utf8_lossy(letters).into_owned()
}

/// What the kernel tells of a process of this user.
fn information(pid: u32) -> Option<libc::proc_bsdinfo> {
    let size = size_of::<libc::proc_bsdinfo>() as libc::c_int;
    let mut info = std::mem::MaybeUninit::<libc::proc_bsdinfo>::zeroed();
    // SAFETY: the buffer is a proc_bsdinfo of the size that is given; the call fills it or fails.
    let filled = unsafe {
        let buffer = info.as_mut_ptr().cast();
        libc::proc_pidinfo(pid as libc::c_int, libc::PROC_PIDTBSDINFO, 0, buffer, size)
    };
    // SAFETY: zeroed before and filled by a successful call; every bit pattern is valid.
    (filled == size).then(|| unsafe { info.assume_init() })
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
    output("/usr/bin/pmset", &["-g", "batt"]).contains("InternalBattery")
}

/// The build of macOS, like `25B78`.
pub(crate) fn os_build() -> String {
    sysctl_text(c"kern.osversion")
}

/// The name of this start of the system, as panics give it.
pub(crate) fn boot_session() -> String {
    sysctl_text(c"kern.bootsessionuuid")
}

fn sysctl_text(name: &CStr) -> String {
    let bytes = sysctl(name, 64).unwrap_or_default();
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
/// By `lsof`, which comes with the system: there is no other public way.
pub(crate) fn listener(port: u16) -> Option<u32> {
    let output = std::process::Command::new("/usr/sbin/lsof")
        // Without what may wait for the kernel, such as a mount that is gone.
        .args(["-b", "-w", "-nP", "-t", "-sTCP:LISTEN", &format!("-iTCP:{port}")])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next()?.trim().parse().ok()
}
