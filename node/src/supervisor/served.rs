//! The server of another program that answers in the engine's place, and what it has started: whether the system killed
//! one of them. Some servers hold each model in a process of its own, which is killed and they are not.
//!
//! Nobody here started them, and nobody is told how they ended. That one is gone, and that the kernel has counted a kill
//! for want of memory since it was last seen there, or that a report of macOS names it, is what is known.

use std::time::{Duration, SystemTime};

use pomona_common::ModelName;
use pomona_probe::{KillCause, KillTally};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Request;
use super::last_run::reported;
use super::machine_now::Family;

/// Processes that a server has started which are watched, the largest.
pub(super) const MOST: usize = 16;
/// A process that it started counts while the server works for this node, and for so long after: it may have been for
/// somebody else, or for nothing.
const LATELY: Duration = Duration::from_secs(10);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Served {
    server: Seen,
    started: Vec<Seen>,
    asked: Option<Instant>,
}

/// What is known of processes that are gone.
pub(super) enum Ended {
    /// The kernel has counted a kill since they were there.
    Killed(KillCause),
    /// Nothing yet; reports may tell.
    Unknown(Vec<Seen>),
}

impl Ended {
    /// What became of these. They may have ended by one kill: those that need each other, a whole group.
    fn of(gone: Vec<Seen>) -> Self {
        match gone.iter().find_map(Seen::cause) {
            Some(cause) => Self::Killed(cause),
            None => Self::Unknown(gone),
        }
    }
}

impl Served {
    /// None when it is gone already.
    pub(super) fn by(pid: u32) -> Option<Self> {
        Some(Self {
            server: Seen::of(pid)?,
            started: Vec::new(),
            asked: None,
        })
    }

    /// It is asked for an answer, or makes one.
    pub(super) fn works(&mut self) {
        self.asked = Some(Instant::now());
    }

    /// Looks at all of them, and says what became of those that the server had started and that are gone, while it is
    /// there itself: with it all of them go.
    pub(super) fn look(&mut self, family: &Family) -> Ended {
        if self.server.is_gone() {
            return Ended::Unknown(Vec::new());
        }
        self.server.look();
        let gone: Vec<Seen> = self.started.extract_if(.., |one| one.is_gone()).collect();
        self.started.iter_mut().for_each(Seen::look);
        if family.server == self.server.pid {
            let largest = &family.started[..family.started.len().min(MOST)];
            self.started.retain(|one| largest.contains(&one.pid));
            let is_new = |pid: &&u32| self.started.iter().all(|one| one.pid != **pid);
            let new: Vec<Seen> = largest
                .iter()
                .filter(is_new)
                .filter_map(|pid| Seen::of(*pid))
                .collect();
            self.started.extend(new);
        }
        if self.asked.is_none_or(|asked| asked.elapsed() > LATELY) {
            return Ended::Unknown(Vec::new());
        }
        let ended = Ended::of(gone);
        if matches!(ended, Ended::Killed(_)) {
            // None of what is there was it.
            self.server.forgive();
            self.started.iter_mut().for_each(Seen::forgive);
        }
        ended
    }

    /// What became of the server, if it is gone.
    pub(super) fn ended(self) -> Ended {
        Ended::of(Some(self.server).filter(Seen::is_gone).into_iter().collect())
    }
}

/// A process of the server, as it was seen last.
#[derive(Debug)]
pub(super) struct Seen {
    pid: u32,
    /// What was counted when it was surely there: of the look before the latest.
    tally: KillTally,
    latest: KillTally,
    began: SystemTime,
}

impl Seen {
    fn of(pid: u32) -> Option<Self> {
        let tally = KillTally::of_program(pid);
        pomona_probe::lives(pid).then(|| Self {
            pid,
            latest: tally.clone(),
            tally,
            began: SystemTime::now(),
        })
    }

    /// What is counted while it is there was not it. A process that is being killed is counted before it is gone.
    fn look(&mut self) {
        let again = self.latest.again();
        self.tally = std::mem::replace(&mut self.latest, again);
    }

    /// What was counted until now was another one.
    fn forgive(&mut self) {
        self.look();
        self.look();
    }

    fn is_gone(&self) -> bool {
        !pomona_probe::lives(self.pid)
    }

    /// What the kernel has counted since it was there.
    fn cause(&self) -> Option<KillCause> {
        self.tally.cause_unseen()
    }

    /// Waits for a report of it.
    pub(super) async fn find_report(self, model: ModelName, requests: mpsc::WeakSender<Request>) {
        if let Some(cause) = reported(&self.tally, self.began).await
            && let Some(requests) = requests.upgrade()
        {
            let _ = requests.send(Request::KilledBefore { model, cause }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn waits() -> std::io::Result<Child> {
        Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
    }

    /// How many of them a look finds gone, whatever became of them.
    fn gone(served: &mut Served, server: u32, started: &[u32]) -> usize {
        let started = started.to_vec();
        match served.look(&Family { server, started }) {
            Ended::Killed(_) => usize::MAX,
            Ended::Unknown(gone) => gone.len(),
        }
    }

    #[test]
    fn what_a_server_has_started_is_watched_while_it_works() -> std::io::Result<()> {
        let mut children = [waits()?, waits()?, waits()?, waits()?];
        let pids = children.each_ref().map(Child::id);
        let mut end = |child: usize| children[child].kill().and_then(|()| children[child].wait());
        let server = pids[0];
        let mut served = Served::by(server).ok_or(std::io::ErrorKind::NotFound)?;
        assert_eq!(gone(&mut served, server, &pids[1..]), 0);
        // Of a server that works for others, or of another server, nothing is known.
        end(1)?;
        assert_eq!(gone(&mut served, server, &pids[2..]), 0);
        served.works();
        assert_eq!(gone(&mut served, 1, &[]), 0);
        end(2)?;
        assert_eq!(gone(&mut served, server, &pids[3..]), 1);
        assert_eq!(gone(&mut served, server, &pids[3..]), 0, "told once");
        // What it has started no more is nobody's.
        assert_eq!(gone(&mut served, server, &[]), 0);
        end(3)?;
        assert_eq!(gone(&mut served, server, &[]), 0);
        end(0)?;
        assert!(matches!(served.ended(), Ended::Unknown(gone) if gone.len() == 1));
        Ok(())
    }
}
