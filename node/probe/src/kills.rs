//! Whether the system killed a process for want of memory. A signal does not say why it came; the kernel
//! counts such kills by control group and in all (Linux), and macOS leaves reports ([`reports`]). Reports, and
//! groups that outlive the process, also tell of a kill that the node's own process did not survive.

pub(crate) mod reports;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::system;

/// Where macOS leaves its reports.
const REPORTS: &str = "/Library/Logs/DiagnosticReports";
/// What the product's engine is called.
const ENGINE: &str = "pomona-engine";
/// Groups have this limit when they have none (version 1 says about 2^63).
const NO_LIMIT: u64 = 1 << 60;

/// What is known of kills while a process runs; what has grown when it is gone, was counted since.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillTally {
    pid: u32,
    /// What the program is called; nothing for an engine.
    #[serde(default)]
    name: String,
    /// The name of this start of the system, as panics give it.
    boot: String,
    group: Option<Group>,
    /// Kills in all.
    system: Option<u64>,
}

/// The control group that a process is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Group {
    folder: PathBuf,
    /// Of the folder's inode: one that was made anew counts anew.
    number: u64,
    kills: u64,
}

/// Who or what killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KillCause {
    /// Processes of its control group were: at the group's own limit of so many bytes, or at another's.
    Group(Option<u64>),
    /// The system's memory ran out.
    System,
    /// A report of macOS says so.
    Report(String),
}

impl fmt::Display for KillCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KillCause::Group(Some(bytes)) => {
                let mb = bytes / 1_000_000;
                write!(
                    f,
                    "for want of memory, in its control group, which may have {mb} MB"
                )
            }
            KillCause::Group(None) => write!(f, "for want of memory, in its control group"),
            KillCause::System => write!(f, "for want of memory in the system"),
            KillCause::Report(report) => write!(f, "{report}"),
        }
    }
}

impl KillTally {
    /// As it stands for a process that runs.
    pub fn of(pid: u32) -> Self {
        Self::below(Path::new("/"), pid)
    }

    /// As it stands for a process of another program.
    pub fn of_program(pid: u32) -> Self {
        Self {
            name: system::name(pid),
            ..Self::of(pid)
        }
    }

    fn below(root: &Path, pid: u32) -> Self {
        Self {
            pid,
            name: String::new(),
            boot: system::boot_session(),
            group: group(root, pid),
            system: system_kills(root),
        }
    }

    /// Why a process that was ended by a signal of want of memory was, if the system says so.
    pub fn cause(&self) -> Option<KillCause> {
        self.of_group().or_else(|| {
            let (before, now) = (self.system?, system_kills(Path::new("/"))?);
            (now > before).then_some(KillCause::System)
        })
    }

    /// Why a process is gone of which nobody was told how it ended: by a kill in its group, where it has one, since one
    /// anywhere in the system need not have been its own.
    pub fn cause_unseen(&self) -> Option<KillCause> {
        match self.group {
            Some(_) => self.of_group(),
            None => self.cause(),
        }
    }

    /// Whether processes of its group were killed. That a kill anywhere in the system was this one's is not
    /// known by whoever did not see it end.
    pub fn of_group(&self) -> Option<KillCause> {
        let before = self.group.as_ref()?;
        let now = at(&before.folder)?;
        (now.number == before.number && now.kills > before.kills)
            .then(|| KillCause::Group(limit_of(&before.folder)))
    }

    /// What has been counted by now; as before when the process is gone.
    pub fn again(&self) -> Self {
        let root = Path::new("/");
        let now = Self {
            group: group(root, self.pid),
            system: system_kills(root),
            ..self.clone()
        };
        if system::lives(self.pid) {
            now
        } else {
            self.clone()
        }
    }

    /// What the reports of macOS since then say of the process, if they say that the system ended it.
    ///
    /// # Errors
    /// There are none on this system, or they may not be read.
    pub fn report_since(&self, began: SystemTime) -> io::Result<Option<KillCause>> {
        let name = match self.name.as_str() {
            "" => ENGINE,
            name => name,
        };
        let found = reports::find(Path::new(REPORTS), (self.pid, name), &self.boot, began)?;
        Ok(found.map(KillCause::Report))
    }
}

fn system_kills(root: &Path) -> Option<u64> {
    value(&root.join("proc/vmstat"), "oom_kill")
}

/// Where a process' group is, in version 2 of control groups or in version 1.
fn group(root: &Path, pid: u32) -> Option<Group> {
    let memberships = fs::read_to_string(root.join(format!("proc/{pid}/cgroup"))).ok()?;
    let groups = root.join("sys/fs/cgroup");
    memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let mount = match controllers {
            "" => groups.clone(),
            list if list.split(',').any(|one| one == "memory") => groups.join("memory"),
            _ => return None,
        };
        // In a container the mount may begin at the group itself.
        let folders = [mount.join(path.trim_start_matches('/')), mount];
        folders.iter().find_map(|folder| at(folder))
    })
}

/// A group as it stands.
fn at(folder: &Path) -> Option<Group> {
    Some(Group {
        folder: folder.to_owned(),
        number: fs::metadata(folder).ok()?.ino(),
        kills: kills_in(folder)?,
    })
}

/// Processes of a group that were killed: `memory.events` of version 2, `memory.oom_control` of version 1.
fn kills_in(group: &Path) -> Option<u64> {
    value(&group.join("memory.events"), "oom_kill")
        .or_else(|| value(&group.join("memory.oom_control"), "oom_kill"))
}

/// Bytes that a group may have, if it has a limit of its own.
fn limit_of(group: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let text = read("memory.max").or_else(|| read("memory.limit_in_bytes"))?;
    text.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT)
}

/// The number behind a word at the beginning of a line.
fn value(path: &Path, word: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines().map(|line| line.split_whitespace());
    lines.find_map(|mut line| (line.next()? == word).then(|| line.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) -> std::io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(path, text)
    }

    /// A file system with one process in one group.
    fn tree(membership: &str, files: &[(&str, &str)]) -> std::io::Result<tempfile::TempDir> {
        let root = tempfile::tempdir()?;
        write(&root.path().join("proc/7/cgroup"), membership)?;
        for (name, text) in files {
            write(&root.path().join(name), text)?;
        }
        Ok(root)
    }

    #[test]
    fn kills_are_counted_in_both_versions_of_control_groups() -> std::io::Result<()> {
        let second = tree(
            "0::/system.slice/pomona.service\n",
            &[
                (
                    "sys/fs/cgroup/system.slice/pomona.service/memory.events",
                    "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n",
                ),
                (
                    "sys/fs/cgroup/system.slice/pomona.service/memory.max",
                    "600000000\n",
                ),
            ],
        )?;
        let first = tree(
            "9:name=systemd:/\n4:memory:/docker/ab\n0::/\n",
            &[
                (
                    "sys/fs/cgroup/memory/docker/ab/memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                ),
                (
                    "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
            ],
        )?;
        for (root, file, limit) in [
            (
                &second,
                "sys/fs/cgroup/system.slice/pomona.service/memory.events",
                Some(600_000_000),
            ),
            (&first, "sys/fs/cgroup/memory/docker/ab/memory.oom_control", None),
        ] {
            let tally = KillTally::below(root.path(), 7);
            assert_eq!(tally.group.as_ref().map(|group| group.kills), Some(2));
            assert_eq!(tally.of_group(), None);
            write(&root.path().join(file), "oom 4\noom_kill 3\n")?;
            assert_eq!(tally.of_group(), Some(KillCause::Group(limit)));
            assert_eq!(tally.cause(), tally.of_group());
            let mut anew = tally;
            if let Some(group) = &mut anew.group {
                group.number += 1;
            }
            assert_eq!(anew.of_group(), None, "a group that was made anew");
        }
        Ok(())
    }

    #[test]
    fn in_a_container_the_mount_is_the_group() -> std::io::Result<()> {
        let root = tree(
            "0::/../outside\n",
            &[("sys/fs/cgroup/memory.events", "oom_kill 0\n")],
        )?;
        let tally = KillTally::below(root.path(), 7);
        assert_eq!(tally.group.map(|group| group.kills), Some(0));
        Ok(())
    }

    #[test]
    fn where_nothing_is_counted_nothing_is_said() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        let tally = KillTally::below(root.path(), 7);
        assert_eq!((&tally.group, tally.system), (&None, None));
        assert_eq!(tally.of_group(), None);
        assert!(tally.report_since(SystemTime::now()).is_err() || cfg!(target_os = "macos"));
        Ok(())
    }
}
