//! What ran last, on disk: a kill that took the node's own process with it, or the whole Mac, is found by
//! the next one, and counted like one that it saw.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pomona_common::ModelName;
use pomona_probe::{KillCause, KillTally};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::files::write_json;
use crate::supervisor::Request;

/// Reports of what happened before the system started are written for some minutes after that.
const LOOKS: u32 = 10;
/// Between two looks.
const APART: Duration = Duration::from_secs(60);

/// An engine with something loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    tally: KillTally,
    /// Since when that is so, in milliseconds since 1970.
    began_ms: u64,
    /// The model to blame if it is killed.
    suspect: ModelName,
}

/// What an earlier process left: it did not end well.
#[derive(Debug)]
pub(super) enum Left {
    Nothing,
    /// The system killed its engine.
    Killed(ModelName, KillCause),
    /// That is not known yet: reports may come.
    Unknown(Running),
}

/// The file.
#[derive(Debug)]
pub(super) struct LastRun {
    path: PathBuf,
    /// What the file says, or was to say when it could not be written.
    written: Option<Running>,
}

impl LastRun {
    /// Opens the file in this folder, and takes out what an earlier process left in it. Before anything is
    /// started anew: what is counted then is no matter of the earlier one.
    pub(super) fn open(folder: &Path) -> (Self, Left) {
        let (path, before) = (folder.join("engine.json"), before(folder));
        let read = |path: &Path| -> Option<Running> { serde_json::from_slice(&fs::read(path).ok()?).ok() };
        let left = match read(&path) {
            Some(last) => match last.tally.of_group() {
                Some(cause) => {
                    remove(&path);
                    Left::Killed(last.suspect, cause)
                }
                None => {
                    // Looked for until reports have had their time, over further starts too.
                    let _ = fs::rename(&path, &before);
                    Left::Unknown(last)
                }
            },
            None => read(&before).map_or(Left::Nothing, Left::Unknown),
        };
        (Self { path, written: None }, left)
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
        if let Err(error) = write_json(&self.path, &running) {
            tracing::warn!(%error, "what runs is not written down");
        }
        // Once: a full disk does not get emptier by trying every second.
        self.written = Some(running);
    }

    /// Nothing runs any more, and it is known why.
    pub(super) fn forget(&mut self) {
        if self.written.take().is_some() {
            remove(&self.path);
        }
    }
}

/// Where it is kept what the reports are searched for.
fn before(folder: &Path) -> PathBuf {
    folder.join("engine-before.json")
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "what ran is still written down");
        }
        _ => {}
    }
}

/// Looks for what killed an engine of an earlier process, for as long as reports of that may come.
pub(super) async fn find_kill(left: Running, folder: PathBuf, requests: mpsc::WeakSender<Request>) {
    let began = UNIX_EPOCH + Duration::from_millis(left.began_ms);
    if let Some(cause) = reported(&left.tally, began).await
        && let Some(requests) = requests.upgrade()
    {
        let model = left.suspect;
        let _ = requests.send(Request::KilledBefore { model, cause }).await;
    }
    remove(&before(&folder));
}

/// What a report says that the system killed a process for, which may come some minutes after.
pub(super) async fn reported(tally: &KillTally, began: SystemTime) -> Option<KillCause> {
    for _ in 0..LOOKS {
        let tally = tally.clone();
        let found = tokio::task::spawn_blocking(move || tally.report_since(began)).await;
        match found.ok()? {
            Ok(None) => tokio::time::sleep(APART).await,
            Ok(cause) => return cause,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "reports of kills cannot be read: what they tell of is not counted");
                }
                return None;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ModelName {
        name.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn what_ran_is_known_until_reports_had_their_time_and_not_when_it_ended_well() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let tally = KillTally::of(std::process::id());
        let (mut first, left) = LastRun::open(folder.path());
        assert!(matches!(left, Left::Nothing));
        first.note(&tally, Some(&name("small")));
        first.note(&tally, Some(&name("large")));
        drop(first);
        for _ in 0..2 {
            let (mut next, left) = LastRun::open(folder.path());
            assert!(matches!(left, Left::Unknown(run) if run.tally == tally && run.suspect == name("large")));
            next.note(&tally, Some(&name("small")));
            next.note(&tally, None);
        }
        remove(&before(folder.path()));
        assert!(matches!(LastRun::open(folder.path()).1, Left::Nothing));
        fs::write(folder.path().join("engine.json"), "half a fi")?;
        assert!(matches!(LastRun::open(folder.path()).1, Left::Nothing));
        Ok(())
    }

    #[test]
    fn a_kill_in_a_group_that_is_still_there_is_found_once() -> io::Result<()> {
        let (folder, group) = (tempfile::tempdir()?, tempfile::tempdir()?);
        fs::write(group.path().join("memory.events"), "oom 3\noom_kill 3\n")?;
        let number = std::os::unix::fs::MetadataExt::ino(&fs::metadata(group.path())?);
        let text = serde_json::json!({
            "tally": { "pid": 7, "boot": "", "system": null,
                "group": { "folder": group.path(), "number": number, "kills": 2 } },
            "began_ms": 0, "suspect": "large",
        });
        fs::write(folder.path().join("engine.json"), text.to_string())?;
        assert!(
            matches!(LastRun::open(folder.path()).1, Left::Killed(model, KillCause::Group(None)) if model == name("large"))
        );
        assert!(matches!(LastRun::open(folder.path()).1, Left::Nothing));
        Ok(())
    }
}
