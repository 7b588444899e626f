//! What ran last, on disk: a kill that took the node's own process with it, or the whole Mac, is found by
//! the next one, and counted like one that it saw.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use pomona_common::ModelName;
use pomona_probe::KillTally;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::files::write_whole;
use crate::supervisor::Request;

/// Reports of what happened before the system started are written for some minutes after that.
const LOOKS: u32 = 10;
/// Between two looks.
const APART: Duration = Duration::from_secs(60);

/// An engine with something loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    tally: KillTally,
    /// When it began, in milliseconds since 1970.
    began_ms: u64,
    /// The model to blame if it is killed.
    suspect: ModelName,
}

/// The file.
#[derive(Debug)]
pub(super) struct LastRun {
    path: PathBuf,
    written: Option<Running>,
}

impl LastRun {
    /// Opens the file, and takes out what an earlier process left in it: that one did not end well.
    pub(super) fn open(path: PathBuf) -> (Self, Option<Running>) {
        let left = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        let mut this = Self { path, written: None };
        this.written.clone_from(&left);
        this.forget();
        (this, left)
    }

    /// Writes down what runs, when that is something new.
    pub(super) fn note(&mut self, tally: &KillTally, suspect: Option<&ModelName>) {
        let Some(suspect) = suspect else {
            return self.forget();
        };
        let is_known = |written: &Running| written.tally == *tally && written.suspect == *suspect;
        if self.written.as_ref().is_some_and(is_known) {
            return;
        }
        let running = Running {
            tally: tally.clone(),
            began_ms: pomona_clocks::wall_ms(),
            suspect: suspect.clone(),
        };
        let text = serde_json::to_string(&running).map_err(io::Error::from);
        match text.and_then(|text| write_whole(&self.path, &text)) {
            Ok(()) => self.written = Some(running),
            Err(error) => tracing::warn!(%error, "what runs is not written down"),
        }
    }

    /// Nothing runs any more, and it is known why.
    pub(super) fn forget(&mut self) {
        if self.written.take().is_some()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "what ran is still written down");
        }
    }
}

/// Looks for what killed an engine of an earlier process, for as long as reports of that may come.
pub(super) async fn find_kill(left: Running, requests: mpsc::WeakSender<Request>) {
    for _ in 0..LOOKS {
        let began = UNIX_EPOCH + Duration::from_millis(left.began_ms);
        let tally = left.tally.clone();
        let found = tokio::task::spawn_blocking(move || tally.cause_since(began)).await;
        if let Ok(Some(cause)) = found {
            let model = left.suspect;
            if let Some(requests) = requests.upgrade() {
                let _ = requests.send(Request::KilledBefore { model, cause }).await;
            }
            return;
        }
        tokio::time::sleep(APART).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_is_found_once_and_not_when_it_ended_well() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("engine.json");
        let name = |name: &str| -> ModelName { name.parse().unwrap_or_else(|error| panic!("{error}")) };
        let tally = KillTally::of(std::process::id());
        let (mut first, left) = LastRun::open(path.clone());
        assert_eq!(left, None);
        first.note(&tally, Some(&name("small")));
        first.note(&tally, Some(&name("large")));
        drop(first);
        let (mut second, left) = LastRun::open(path.clone());
        let left = left.ok_or(io::ErrorKind::NotFound)?;
        assert_eq!((&left.tally, &left.suspect), (&tally, &name("large")));
        assert!(!path.exists(), "it is not counted twice");
        second.note(&tally, Some(&name("small")));
        second.note(&tally, None);
        assert_eq!(LastRun::open(path.clone()).1, None);
        fs::write(&path, "half a fi")?;
        assert_eq!(LastRun::open(path).1, None);
        Ok(())
    }
}
