//! The server of another program that answers in the engine's place: whether the system killed it.
//!
//! Nobody here started it, and nobody is told how it ended. That it is gone, and that the kernel has counted a kill for
//! want of memory since it was last seen there, or that a report of macOS names it, is what is known.

use std::time::SystemTime;

use pomona_common::ModelName;
use pomona_probe::{KillCause, KillTally};
use tokio::sync::mpsc;

use super::Request;
use super::last_run::reported;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Served {
    pid: u32,
    /// What was counted when it was surely there: of the look before the latest.
    tally: KillTally,
    latest: KillTally,
    began: SystemTime,
}

impl Served {
    /// None when it is gone already.
    pub(super) fn by(pid: u32) -> Option<Self> {
        let tally = KillTally::of_program(pid);
        pomona_probe::lives(pid).then(|| Self {
            pid,
            latest: tally.clone(),
            tally,
            began: SystemTime::now(),
        })
    }

    /// What is counted while it is there was not it. A process that is being killed is counted before it is gone.
    pub(super) fn look(&mut self) {
        if !self.is_gone() {
            let again = self.latest.again();
            self.tally = std::mem::replace(&mut self.latest, again);
        }
    }

    pub(super) fn is_gone(&self) -> bool {
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
