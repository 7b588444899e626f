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

/// All entries that are known here, the oldest first: those on disk, and what the state has after them, which
/// is looked at last. Reads files.
pub(crate) fn entries(folder: &Path, replica: &Replica) -> Vec<AuditEntry> {
    let lines = pomona_journal::lines(folder).unwrap_or_else(|error| {
        tracing::error!(%error, folder = %folder.display(), "the audit log on disk is not readable");
        Vec::new()
    });
    let mut entries: Vec<AuditEntry> = lines
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let book = &replica.known().audit;
    if is_foreign(entries.last(), book) {
        entries.clear();
    }
    let last = entries.last().map_or(0, |last| last.number);
    entries.extend(book.latest.iter().filter(|entry| entry.number > last).cloned());
    entries
}

/// Writes down what is new, until the stop.
pub(crate) async fn keep(replica: Replica, folder: PathBuf, stop: CancellationToken) {
    let mut state = replica.state();
    let mut written = None;
    loop {
        let seen = state.borrow_and_update().clone();
        let head = seen.audit.head();
        if written != Some(head) {
            let folder = folder.clone();
            let outcome = tokio::task::spawn_blocking(move || write(&folder, &seen.audit)).await;
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

/// Whether an entry on disk is of another cluster: what was written here was in the state before.
fn is_foreign(on_disk: Option<&AuditEntry>, book: &AuditBook) -> bool {
    on_disk.is_some_and(|last| {
        let same = book.latest.iter().find(|entry| entry.number == last.number);
        last.number > book.head().0 || same.is_some_and(|same| same.hash != last.hash)
    })
}

fn write(folder: &Path, book: &AuditBook) -> std::io::Result<()> {
    let lines = pomona_journal::lines(folder)?;
    let last = lines
        .iter()
        .rev()
        .find_map(|line| serde_json::from_str::<AuditEntry>(line).ok());
    if is_foreign(last.as_ref(), book) {
        // Kept, and out of the way.
        let aside = folder.with_extension(format!("before-{}", pomona_clocks::wall_s()));
        std::fs::rename(folder, &aside)?;
        tracing::warn!(moved = %aside.display(), "the audit log here is another cluster's");
        return write(folder, book);
    }
    let last = last.map_or(0, |last| last.number);
    let mut journal = Journal::open(folder, BOUNDS)?;
    for entry in book.latest.iter().filter(|entry| entry.number > last) {
        journal.add(&serde_json::to_string(entry)?, true)?;
    }
    Ok(())
}
