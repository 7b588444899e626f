//! The memory of a process, and of all that it started.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use pomona_common::unit::{Bytes, Reading};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::system;

/// How long what a process has started is taken to be as it was: to look, all processes are read.
const LOOKS: Duration = Duration::from_secs(10);
/// Processes of one server; more are not counted.
const MOST: usize = 64;

/// A process whose memory is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// It alone.
    Alone(u32),
    /// With all that it started, and those: some servers hold each model in a process of its own.
    WithChildren(u32),
}

/// What is watched, as it was found last.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    found: Option<(Watched, Instant)>,
    pids: Vec<Pid>,
}

impl Processes {
    /// Those that the process has started whose memory was read last, and those that they have; the largest first.
    pub(crate) fn started(&self) -> impl Iterator<Item = u32> {
        self.pids.iter().skip(1).map(|pid| pid.as_u32())
    }

    /// RSS and footprint of all of them together.
    pub(crate) fn memory(
        &mut self,
        system: Option<&mut System>,
        watched: Watched,
    ) -> (Reading<Bytes>, Reading<Bytes>) {
        let (Watched::Alone(pid) | Watched::WithChildren(pid)) = watched;
        let Some(system) = system else {
            return (Reading::Unavailable, system::footprint(pid));
        };
        let is_fresh = |(of, at): (Watched, Instant)| of == watched && at.elapsed() < LOOKS;
        let is_old = !self.found.is_some_and(is_fresh);
        if is_old {
            self.found = Some((watched, Instant::now()));
            self.pids = match watched {
                Watched::Alone(pid) => vec![Pid::from_u32(pid)],
                // Where the system itself listens for a server, what it has started is everything.
                Watched::WithChildren(1) => vec![Pid::from_u32(1)],
                Watched::WithChildren(pid) => family(system, Pid::from_u32(pid)),
            };
        }
        let kind = ProcessRefreshKind::nothing().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&self.pids), true, kind);
        let rss = |pid: &Pid| Some(system.process(*pid)?.memory());
        if is_old && let Some((_, started)) = self.pids.split_first_mut() {
            started.sort_by_key(|pid| Reverse(rss(pid)));
        }
        let footprint = |pid: &Pid| Some(system::footprint(pid.as_u32()).value()?.get());
        (sum(&self.pids, rss), sum(&self.pids, footprint))
    }
}

/// Of those that are still there; the first one is.
fn sum(pids: &[Pid], of: impl Fn(&Pid) -> Option<u64>) -> Reading<Bytes> {
    let is_there = pids.first().and_then(&of).is_some();
    Reading::measured(is_there.then(|| Bytes(pids.iter().filter_map(of).sum())))
}

/// A process and its descendants, it first.
fn family(system: &mut System, first: Pid) -> Vec<Pid> {
    let kind = ProcessRefreshKind::nothing().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
    let mut family = vec![first];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        next += 1;
        let children = system
            .processes()
            .iter()
            .filter(|(_, one)| one.parent() == Some(parent));
        let room = MOST - family.len();
        family.extend(children.map(|(pid, _)| *pid).take(room));
    }
    family
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell that waits for another one, which waits for ever.
    fn shells() -> std::io::Result<Child> {
        let inner = "sh -c 'read x <&3; :' & wait";
        let mut outer = Command::new("sh");
        outer.args(["-c", &format!("exec 3<&0; {inner}")]);
        outer.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()
    }

    #[test]
    fn what_a_server_has_started_counts_as_its_memory() -> std::io::Result<()> {
        let mut system = System::new().map_err(std::io::Error::other)?;
        let mut outer = shells()?;
        let memory = |system: &mut System, watched| {
            let (rss, _) = Processes::default().memory(Some(system), watched);
            rss.value().map_or(0, |bytes| bytes.get())
        };
        let id = outer.id();
        let deadline = Instant::now() + Duration::from_secs(10);
        // The inner one comes a moment later.
        while memory(&mut system, Watched::WithChildren(id)) <= memory(&mut system, Watched::Alone(id)) {
            assert!(Instant::now() < deadline, "its child is not found");
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(outer.stdin.take());
        outer.kill()?;
        outer.wait()?;
        let (rss, footprint) = Processes::default().memory(Some(&mut system), Watched::WithChildren(id));
        assert_eq!((rss, footprint), (Reading::Unavailable, Reading::Unavailable));
        Ok(())
    }
}
