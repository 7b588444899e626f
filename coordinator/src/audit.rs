//! The audit log on this coordinator's disk: all that the replicated state has had of it, which keeps the latest
//! only.

use std::path::{Path, PathBuf};

use pomona_decide::{AuditBook, AuditEntry};
use pomona_journal::{Bounds, Journal};
use pomona_raft::Replica;
use tokio_util::sync::CancellationToken;

/// Some ten thousand changes.
const BOUNDS: Bounds = Bounds {
    file_bytes: 1 << 20,
    files: 8,
};

/// Where it is, below the state folder.
pub(crate) fn folder(state: &Path) -> PathBuf {
    state.join("coordinator/audit")
}

/// All entries that are known here, the oldest first: those on disk, and what the state has after them.
/// Reads files.
pub(crate) fn entries(folder: &Path, book: &AuditBook) -> Vec<AuditEntry> {
    let lines = pomona_journal::lines(folder).unwrap_or_else(|error| {
        tracing::error!(%error, folder = %folder.display(), "the audit log on disk is not readable");
        Vec::new()
    });
    let mut entries: Vec<AuditEntry> = lines
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let last = entries.last().map_or(0, |last| last.number);
    entries.extend(book.latest.iter().filter(|entry| entry.number > last).cloned());
    entries
}

/// Writes down what is new, until the stop.
pub(crate) async fn keep(replica: Replica, folder: PathBuf, stop: CancellationToken) {
    let mut state = replica.state();
    let mut written = None;
    loop {
        let book = state.borrow_and_update().audit.clone();
        if written != Some(book.head()) {
            let head = book.head();
            let folder = folder.clone();
            let outcome = tokio::task::spawn_blocking(move || write(&folder, &book)).await;
            match outcome {
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

fn write(folder: &Path, book: &AuditBook) -> std::io::Result<()> {
    let lines = pomona_journal::lines(folder)?;
    let last = lines
        .iter()
        .rev()
        .find_map(|line| serde_json::from_str::<AuditEntry>(line).ok());
    let last = last.map_or(0, |last| last.number);
    let mut journal = Journal::open(folder, BOUNDS)?;
    for entry in book.latest.iter().filter(|entry| entry.number > last) {
        journal.add(&serde_json::to_string(entry)?, true)?;
    }
    Ok(())
}
