//! Logs in chains of hashes on this coordinator's disk: all that the replicated state has had of them, which keeps
//! the latest only.

use std::path::{Path, PathBuf};

use pomona_common::ClusterId;
use pomona_decide::{AuditBook, AuditEntry, ClusterState};
use pomona_journal::{Bounds, Journal};
use pomona_raft::Replica;
use tokio_util::sync::CancellationToken;

/// Some ten thousand changes.
const CHANGES: Bounds = Bounds {
    file_bytes: 1 << 20,
    files: 8,
};
/// Some twenty thousand requests that went to clouds: the whole log is read to check it.
const SPILLS: Bounds = Bounds {
    file_bytes: 1 << 20,
    files: 16,
};

/// One of the logs.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    folder: PathBuf,
    bounds: Bounds,
    book: fn(&ClusterState) -> &AuditBook,
}

impl Chain {
    /// What operators changed. It lies below the state folder, in a folder a cluster, so that the log of one that
    /// was here before is neither read as this one's nor lost.
    pub(crate) fn changes(state: &Path, cluster: ClusterId) -> Self {
        Self {
            folder: state.join("coordinator/audit").join(cluster.to_string()),
            bounds: CHANGES,
            book: |state| &state.audit,
        }
    }

    /// What went to clouds, likewise.
    pub(crate) fn spills(state: &Path, cluster: ClusterId) -> Self {
        Self {
            folder: state.join("coordinator/spills").join(cluster.to_string()),
            bounds: SPILLS,
            book: |state| &state.clouds.spills,
        }
    }

    /// All entries that are known here, the oldest first: those on disk, and what the state has, which is looked
    /// at last. Reads files.
    pub(crate) fn entries(&self, replica: &Replica) -> Vec<AuditEntry> {
        let folder = self.folder.display();
        let on_disk = read(&self.folder).unwrap_or_else(|error| {
            tracing::error!(%error, %folder, "the log on disk is not readable");
            Vec::new()
        });
        let state = replica.known();
        let book = (self.book)(&state);
        let (head, _) = book.head();
        if on_disk.last().is_some_and(|last| last.number > head) {
            tracing::error!(head, %folder, "the log on disk has entries that the cluster never made");
        }
        with_state(on_disk, book)
    }

    /// Writes down what is new, until the stop.
    pub(crate) async fn keep(self, replica: Replica, stop: CancellationToken) {
        let mut state = replica.state();
        let mut written = None;
        loop {
            let seen = state.borrow_and_update().clone();
            let head = (self.book)(&seen).head();
            if written != Some(head) {
                let (this, last) = (self.clone(), written.map(|(number, _)| number));
                let write = move || write(&this.folder, this.bounds, (this.book)(&seen), last);
                match tokio::task::spawn_blocking(write).await {
                    Ok(Ok(())) => written = Some(head),
                    Ok(Err(error)) => tracing::error!(%error, "the audit log is not on disk"),
                    Err(_) => return,
                }
            }
            tokio::select! {
                changed = state.changed() => if changed.is_err() {
                    return;
                },
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Entries on disk with those of the state. One that is on disk in another form is there twice then: whoever
/// checks the chain sees that it was altered. What comes after the end of the state was never made, or belongs
/// to a time before the cluster was set back.
fn with_state(mut on_disk: Vec<AuditEntry>, book: &AuditBook) -> Vec<AuditEntry> {
    on_disk.retain(|entry| entry.number <= book.head().0);
    let is_news = |entry: &&AuditEntry| !on_disk.contains(entry);
    let news: Vec<AuditEntry> = book.latest.iter().filter(is_news).cloned().collect();
    on_disk.extend(news);
    on_disk.sort_by_key(|entry| entry.number);
    on_disk
}

fn read(folder: &Path) -> std::io::Result<Vec<AuditEntry>> {
    let lines = pomona_journal::lines(folder)?;
    // What a crash cut off is no entry.
    let entries = lines.iter().filter_map(|line| serde_json::from_str(line).ok());
    Ok(entries.collect())
}

/// `last` is the number of what was written last, where that is known: else the files tell.
fn write(folder: &Path, bounds: Bounds, book: &AuditBook, last: Option<u64>) -> std::io::Result<()> {
    let (head, _) = book.head();
    let last = match last.filter(|last| *last <= head) {
        Some(last) => last,
        None => {
            let numbers = read(folder)?.into_iter().map(|entry| entry.number);
            numbers.filter(|number| *number <= head).max().unwrap_or(0)
        }
    };
    let mut journal = Journal::open(folder, bounds)?;
    for entry in book.latest.iter().filter(|entry| entry.number > last) {
        journal.add(&serde_json::to_string(entry)?, true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pomona_decide::audit::verify;
    use pomona_decide::{Audited, ClusterState, Command, Deed, apply};

    use super::*;

    fn deed(at_s: u64) -> Deed {
        Deed {
            by: "ann".into(),
            action: "knobs.set".into(),
            subject: String::new(),
            detail: String::new(),
            at_s,
        }
    }

    /// The log of so many changes, at these times.
    fn changed(times: u64, at_s: impl Fn(u64) -> u64) -> AuditBook {
        let mut state = ClusterState::default();
        apply(&mut state, &Command::Found(ClusterId::from_bits(1)));
        for version in 1..=times {
            let set = pomona_common::Fallbacks {
                version,
                ..pomona_common::Fallbacks::default()
            };
            let (by, at_s) = ("ann".into(), at_s(version));
            let command = Command::SetFallbacks(pomona_decide::Made { set, by, at_s });
            let deed = deed(at_s);
            apply(&mut state, &Command::Audited(Box::new(Audited { deed, command })));
        }
        state.audit
    }

    #[test]
    fn what_was_altered_on_disk_breaks_the_chain() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let book = changed(9, |version| version);
        write(folder.path(), CHANGES, &book, None)?;
        write(folder.path(), CHANGES, &book, None)?;
        let whole = read(folder.path())?;
        assert_eq!(whole.len(), 9);
        let start = Some(pomona_decide::AuditHash::default());
        assert_eq!(verify(start, &with_state(whole, &book)), Ok(()));
        // Altered, and the whole rest hashed anew: right by itself, and not what the state has.
        let forged = changed(9, |version| version + u64::from(version == 4));
        let forged: Vec<AuditEntry> = forged.latest.into_iter().collect();
        assert_eq!(verify(start, &forged), Ok(()));
        assert_eq!(verify(start, &with_state(forged, &book)), Err(4));

        // Added after the end, far beyond it: not shown, and what is made later is written all the same.
        let mut far = book.latest.back().cloned().ok_or(std::io::ErrorKind::NotFound)?;
        far.number = 1_000_000;
        Journal::open(folder.path(), CHANGES)?.add(&serde_json::to_string(&far)?, true)?;
        let shown = with_state(read(folder.path())?, &book);
        assert_eq!(shown.last().map(|last| last.number), Some(9));
        let longer = changed(12, |version| version);
        write(folder.path(), CHANGES, &longer, None)?;
        assert_eq!(read(folder.path())?.len(), 9 + 1 + 3);
        assert_eq!(verify(start, &with_state(read(folder.path())?, &longer)), Ok(()));
        Ok(())
    }
}
