//! The server of another program that answers in the engine's place, and what it has started: whether the system killed
//! one of them. Some servers hold each model in a process of its own, which is killed and they are not.
//!
//! Nobody here started them, and nobody is told how they ended. That one is gone, and that the kernel has counted a kill
//! for want of memory since it was last seen there, or that a report of macOS names it, is what is known.

use std::time::SystemTime;

use pomona_common::ModelName;
use pomona_probe::{KillCause, KillTally};
use tokio::sync::mpsc;

use super::Request;
use super::last_run::reported;

/// Processes of a server that are watched; of more the others are not.
const MOST: usize = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Served {
    server: Seen,
    started: Vec<Seen>,
}

impl Served {
    /// None when it is gone already.
    pub(super) fn by(pid: u32) -> Option<Self> {
        Some(Self {
            server: Seen::of(pid)?,
            started: Vec::new(),
        })
    }

    /// Looks at all of them, and at what the server is known to have `started` by now. Returns what it had started and is
    /// gone, while it is there itself: with it all of them go.
    pub(super) fn look(&mut self, started: &[u32]) -> Vec<Seen> {
        if self.server.is_gone() {
            return Vec::new();
        }
        self.server.look();
        let is_gone = |process: &mut Seen| process.is_gone();
        let gone: Vec<Seen> = self.started.extract_if(.., is_gone).collect();
        self.started.iter_mut().for_each(Seen::look);
        let room = MOST.saturating_sub(self.started.len());
        let new = started
            .iter()
            .filter(|pid| self.started.iter().all(|one| one.pid != **pid));
        let new: Vec<Seen> = new.filter_map(|pid| Seen::of(*pid)).take(room).collect();
        self.started.extend(new);
        if gone.iter().any(|process| process.cause().is_some()) {
            // What was counted was not the server.
            self.server.forgive();
        }
        gone
    }

    /// The server, if it is gone.
    pub(super) fn ended(self) -> Option<Seen> {
        Some(self.server).filter(Seen::is_gone)
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
    pub(super) fn cause(&self) -> Option<KillCause> {
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
