//! A control group of a test's own with a limit on memory, in either version of control groups.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where groups are made, with the names of what is in use, of the limit, and of what keeps it from swap at 0.
const VERSIONS: [(&str, &str, &str, &str); 2] = [
    (
        "/sys/fs/cgroup/memory",
        "memory.usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.swappiness",
    ),
    (
        "/sys/fs/cgroup",
        "memory.current",
        "memory.max",
        "memory.swap.max",
    ),
];

/// See the module's documentation; it ends with the value, when nothing is in it any more.
#[derive(Debug)]
pub struct MemoryGroup {
    folder: PathBuf,
    used: &'static str,
    limit: &'static str,
}

impl MemoryGroup {
    /// A group without a limit; none where this process may not make one.
    pub fn new() -> Option<Self> {
        let name = format!("pomona-test-{}", std::process::id());
        VERSIONS.into_iter().find_map(|(root, used, limit, no_swap)| {
            let folder = Path::new(root).join(&name);
            fs::create_dir(&folder).ok()?;
            let this = Self { folder, used, limit };
            // Where there is swap, what does not fit would go there.
            let _ = fs::write(this.folder.join(no_swap), "0");
            // Otherwise the kernel limits no memory here; dropping it takes the group away.
            this.folder.join(limit).exists().then_some(this)
        })
    }

    /// A command that goes into the group before it begins, with all that it starts.
    pub fn confine(&self, command: &Command) -> Command {
        let mut confined = Command::new("sh");
        confined
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.folder.join("cgroup.procs"))
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                confined.env(name, value);
            }
        }
        confined
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        let text = fs::read_to_string(self.folder.join(self.used)).expect("a group");
        text.trim().parse().expect("a number")
    }

    /// From now on there may be so many bytes in use, unless there are more already: version 1 refuses then,
    /// version 2 kills.
    pub fn limit(&self, bytes: u64) {
        let _ = fs::write(self.folder.join(self.limit), bytes.to_string());
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // What was killed leaves it a moment later.
        for _ in 0..50 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        println!("{} is left over", self.folder.display());
    }
}
