//! What macOS writes down when it ends processes for want of memory (`JetsamEvent-*.ips`), and when it went
//! down itself (`panic-*`). Both are JSON after a line of JSON; older panics are plain text.
//!
//! A panic is of the start of the system that it names ("Boot session UUID"): a later one is not blamed for it.
//! Fields as Apple documents them ("Identifying high-memory use with jetsam event reports"): of all
//! processes the ones that were ended have a `reason`. The panics of MLX are those of the GPU's memory
//! (`IOGPUMemory.cpp`, ml-explore/mlx 3186 and 3346), and those of a system that swaps itself to a halt.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::SystemTime;

use serde::Deserialize;

/// Reports that are read, the newest first: a Mac keeps some dozens.
const REPORTS: usize = 64;
/// A report is shorter: a jetsam report lists all processes, in some 300 kB.
const BYTES: u64 = 8 * 1024 * 1024;
/// What is told of a panic.
const LINE: usize = 160;

#[derive(Deserialize)]
struct Jetsam {
    processes: Vec<Process>,
}

#[derive(Deserialize)]
struct Process {
    pid: u32,
    name: String,
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Panic {
    panic_string: String,
}

/// What the reports since then say of a process of this name that was there: how the system ended it, if it did. A number
/// alone may be another's by then.
pub(super) fn find(
    folder: &Path,
    (pid, name): (u32, &str),
    boot: &str,
    since: SystemTime,
) -> io::Result<Option<String>> {
    let entries = fs::read_dir(folder)?.filter_map(Result::ok);
    let mut reports: Vec<_> = entries
        .filter_map(|entry| {
            let written = entry.metadata().ok()?.modified().ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            (written >= since).then_some((written, name))
        })
        .filter(|(_, name)| name.starts_with("JetsamEvent-") || is_panic(name))
        .collect();
    reports.sort();
    for (_, report) in reports.into_iter().rev().take(REPORTS) {
        let text = read(&folder.join(&report))?;
        let found = if is_panic(&report) {
            of_panic(&text, pid, boot)
        } else {
            of_jetsam(&text, pid, name)
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn is_panic(name: &str) -> bool {
    name.starts_with("panic-")
        || Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "panic")
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The part after the first line, which is JSON of its own.
fn body(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, body)| body)
}

fn of_jetsam(text: &str, pid: u32, name: &str) -> Option<String> {
    let report: Jetsam = serde_json::from_str(body(text)).ok()?;
    let process = report
        .processes
        .into_iter()
        .find(|one| one.pid == pid && one.name == name)?;
    Some(format!("jetsam ended it: {}", process.reason?))
}

/// A panic counts when the process was at work in it, or when it is one of memory.
fn of_panic(text: &str, pid: u32, boot: &str) -> Option<String> {
    let parsed: Option<Panic> = serde_json::from_str(body(text)).ok();
    let text = parsed.map_or_else(|| text.to_owned(), |panic| panic.panic_string);
    let is_task = |line: &str| {
        line.starts_with("Panicked task")
            && line
                .split_once("pid ")
                .is_some_and(|(_, rest)| rest.starts_with(&format!("{pid}:")))
    };
    let is_of_memory = text.contains("@IOGPU")
        || text
            .lines()
            .any(|line| line.starts_with("Compressor Info:") && line.contains("(BAD)"));
    let is_then = text.lines().any(|line| {
        line.strip_prefix("Boot session UUID:")
            .is_some_and(|uuid| !boot.is_empty() && uuid.trim().eq_ignore_ascii_case(boot))
    });
    if !is_then || !is_of_memory && !text.lines().any(is_task) {
        return None;
    }
    let first = text.lines().find(|line| line.starts_with("panic("))?;
    Some(format!(
        "the Mac went down: {}",
        first.chars().take(LINE).collect::<String>()
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::ENGINE;
    use super::*;

    const JETSAM: &str = r#"{"bug_type":"298","timestamp":"2026-11-20 10:11:12.00 +0100","os_version":"macOS 26.1"}
{"build":"macOS 26.1","memoryStatus":{"compressorSize":210000,"pageSize":16384},"largestProcess":"pomona-engine",
"processes":[{"pid":1,"name":"launchd","rpages":900},
{"pid":812,"name":"pomona-engine","rpages":1500000,"reason":"vm-compressor-space-shortage","killDelta":20000},
{"pid":90,"name":"Xcode","rpages":400000}]}"#;

    const BOOT: &str = "7EDF3EA8-1F47-4E07-A28D-C02488B3E469";

    fn panic(first: &str, compressor: &str, pid: u32) -> String {
        let text = format!(
            "panic(cpu 9 caller 0xfffffe002): {first}\nBoot session UUID: {BOOT}\nCompressor Info: 12% of compressed pages limit ({compressor}) and 3% of segments limit (OK) with 0 swapfiles\nPanicked task 0xfffffe1: 1891705 pages, 85 threads: pid {pid}: pomona-engine\n"
        );
        let body = serde_json::json!({ "build": "macOS 26.1", "panicString": text });
        format!("{{\"bug_type\":\"210\"}}\n{body}")
    }

    #[test]
    fn jetsam_names_whom_it_ended_and_why() {
        let told = of_jetsam(JETSAM, 812, ENGINE);
        assert_eq!(
            told.as_deref(),
            Some("jetsam ended it: vm-compressor-space-shortage")
        );
        assert_eq!(
            of_jetsam(JETSAM, 90, "Xcode"),
            None,
            "it was there, and was left alone"
        );
        assert_eq!(of_jetsam(JETSAM, 5, ENGINE), None);
        assert_eq!(of_jetsam(JETSAM, 812, "ollama"), None, "the number was another's");
        let server = JETSAM.replace("pomona-engine", "ollama");
        assert!(of_jetsam(&server, 812, "ollama").is_some());
        assert_eq!(of_jetsam("{}\nno report", 812, ENGINE), None);
    }

    #[test]
    fn a_panic_counts_when_it_is_of_memory_or_in_the_engine() {
        let gpu = "\"completeMemory() prepare count underflow\" @IOGPUMemory.cpp:550";
        let of_panic = |text: &str, pid| of_panic(text, pid, BOOT);
        let told = of_panic(&panic(gpu, "OK", 1), 812);
        assert!(told.is_some_and(|told| told.contains("prepare count underflow")));
        assert!(of_panic(&panic("watchdog timeout", "BAD", 1), 812).is_some());
        assert!(of_panic(&panic("a driver", "OK", 812), 812).is_some());
        assert_eq!(of_panic(&panic("a driver", "OK", 8123), 812), None);
        assert_eq!(of_panic(&panic("a driver", "OK", 1), 812), None);
        let plain =
            format!("panic(cpu 1 caller 0x1): x @IOGPUGroupMemory.cpp:323\nBoot session UUID: {BOOT}\n");
        assert!(of_panic(&plain, 812).is_some(), "older systems write plain text");
        let of_another = super::of_panic(&panic(gpu, "OK", 812), 812, "1EDF3EA8");
        assert_eq!(of_another, None, "of another start of the system");
    }

    #[test]
    fn only_reports_since_then_are_read() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text);
        write("JetsamEvent-2026-11-20-101112.ips", JETSAM)?;
        write("Safari-2026-11-20-101112.ips", JETSAM)?;
        let hour = Duration::from_secs(3600);
        let (before, after) = (SystemTime::now() - hour, SystemTime::now() + hour);
        let find = |since| find(folder.path(), (812, ENGINE), BOOT, since);
        assert!(find(before)?.is_some());
        assert_eq!(find(after)?, None);
        fs::remove_file(folder.path().join("JetsamEvent-2026-11-20-101112.ips"))?;
        assert_eq!(find(before)?, None, "a crash is no kill");
        write(
            "panic-full-2026-11-20-101112.0002.panic",
            &panic("x @IOGPU", "OK", 1),
        )?;
        assert!(find(before)?.is_some());
        assert!(super::find(&folder.path().join("none"), (812, ENGINE), BOOT, before).is_err());
        Ok(())
    }
}
