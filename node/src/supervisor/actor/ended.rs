//! What is done when the engine has ended, or the server that answers in its place.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, SystemTime};

use pomona_common::{Failure, ModelName};
use tokio::time::Instant;

use super::Actor;
use crate::supervisor::Request;
use crate::supervisor::last_run::reported;
use crate::supervisor::served::{Ended, MOST, Served};

/// First wait before a restart; doubled while the engine dies young.
pub(super) const RESTART_FIRST: Duration = Duration::from_millis(100);
/// Longest wait before a restart.
const RESTART_LAST: Duration = Duration::from_secs(30);
/// An engine that lived this long died of something new.
const GROWN_UP: Duration = Duration::from_secs(10);
/// Signals that end an engine that is short of memory: SIGKILL of the system, and SIGABRT when Metal or the
/// allocator give up.
const OF_MEMORY: [i32; 2] = [9, 6];
/// Processes at most of which reports are waited for at once: one server's and the one's before.
const REPORTS: usize = 2 * (MOST + 1);

impl Actor {
    pub(super) async fn on_engine_end(&mut self) {
        let Some(engine) = self.engine.take() else {
            return;
        };
        let (status, enforced) = engine.end().await;
        let signal = status.and_then(|status: ExitStatus| status.signal());
        if std::mem::take(&mut self.closing) {
            // What it said of models, while it was on its way out, is not true of the next one.
            self.view.failed.clear();
        }
        let killed = self.wedged || signal.is_some();
        self.view.kills += u64::from(killed);
        // Not one that this node has ended, or an operator with a polite signal.
        let of_memory = signal.is_some_and(|signal| OF_MEMORY.contains(&signal)) && !self.wedged && !enforced;
        let mut cause = None;
        if let Some(signal) = signal.filter(|_| of_memory) {
            cause = self.tally.cause().map(|cause| cause.to_string());
            if let Some(suspect) = self.view.suspect(true).cloned() {
                let by_signal = || format!("signal {signal}, of which the system has said no reason yet");
                self.view
                    .blame(suspect.clone(), cause.clone().unwrap_or_else(by_signal));
                if cause.is_none() {
                    self.explain_later(suspect);
                }
            }
        }
        self.last_run.forget();
        tracing::warn!(
            ?status,
            killed,
            cause,
            sequences = self.sequences.len(),
            "engine ended"
        );
        self.view.pid = None;
        self.view.serves = None;
        self.served = None;
        self.view.report = None;
        self.view.speeds.steps_percent = None;
        self.view.loaded.clear();
        self.view.loading.clear();
        self.wait_before_restart();
        for sequence in self.sequences.park_all() {
            self.sequences.fail(sequence, Failure::EngineLost);
        }
        self.publish();
    }

    /// Macs write down some minutes later why they ended a process.
    fn explain_later(&mut self, model: ModelName) {
        while self.reports.try_join_next().is_some() {}
        if self.reports.len() >= REPORTS {
            return;
        }
        let began = SystemTime::now() - self.born.elapsed();
        let nth = self.view.kills_of.get(&model).copied().unwrap_or_default();
        let (tally, requests) = (self.tally.clone(), self.requests.clone());
        self.reports.spawn(async move {
            if let Some(cause) = reported(&tally, began).await
                && let Some(requests) = requests.upgrade()
            {
                let _ = requests.send(Request::KillExplained { model, nth, cause }).await;
            }
        });
    }

    pub(super) fn wait_before_restart(&mut self) {
        // One that is found wedged has lived for as long as that takes.
        let was_wedged = std::mem::take(&mut self.wedged);
        self.restart_wait = if self.born.elapsed() > GROWN_UP && !was_wedged {
            RESTART_FIRST
        } else {
            (self.restart_wait * 2).min(RESTART_LAST)
        };
        self.restart_at = Instant::now() + self.restart_wait;
    }

    /// Another process answers in the engine's place, or none: what became of the one before?
    pub(super) fn on_serves(&mut self, pid: Option<u32>) {
        self.look_at_served();
        self.view.serves = pid;
        let before = std::mem::replace(&mut self.served, pid.and_then(Served::by));
        if let Some(before) = before {
            self.find_out(before.ended());
        }
        self.publish();
    }

    /// What the server has started may be killed without it.
    pub(super) fn look_at_served(&mut self) {
        let Some(served) = &mut self.served else {
            return;
        };
        if self.sequences.len() > 0 {
            served.works();
        }
        let ended = served.look(&self.machine.family());
        self.find_out(ended);
    }

    /// Counts a kill, perhaps when a report of it has come.
    fn find_out(&mut self, ended: Ended) {
        let Some(model) = self.view.suspect(true).cloned() else {
            return;
        };
        match ended {
            Ended::Killed(cause) => {
                tracing::warn!(%model, %cause, "the server of a model was killed");
                self.view.kills += 1;
                self.view.blame(model, cause.to_string());
                self.publish();
            }
            Ended::Unknown(gone) => {
                while self.reports.try_join_next().is_some() {}
                let room = REPORTS.saturating_sub(self.reports.len());
                for process in gone.into_iter().take(room) {
                    let report = process.find_report(model.clone(), self.requests.clone());
                    self.reports.spawn(report);
                }
            }
        }
    }
}
