//! The end of a rented machine's lease: it destroys what it holds of the cluster, tells the
//! coordinators, and ends. It does so when a coordinator says it, or by its own clock after the end of
//! the lease, in reach of anybody or not.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::files::write_whole;
use crate::supervisor::Supervisor;
use crate::vault::{self, Vault};

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// So many looks in a row past the end: after a start, a wake, or a clock that jumped, a coordinator
/// has this long to say that the lease was prolonged.
const LOOKS: u32 = 20;
/// A file that could not be removed is tried again after this time.
const AGAIN: Duration = Duration::from_secs(2);
/// Whoever still wrote to the folder when it was emptied has written by then.
const SETTLED: Duration = Duration::from_millis(500);
/// The file that says that destroying has begun: a machine that is switched off meanwhile goes on.
const BEGUN: &str = "evicting";
/// The file with the end of the lease, in seconds since 1970, and the index of the log that says so.
const ENDS: &str = "lease";
/// The file that says that the machine is a rented one.
const RENTED: &str = "rented";
/// Its folder goes last: with it the node can still say that it is done.
const MEMBERSHIP: &str = "membership";
/// The folder that people keep elsewhere, with a symbolic link, and what it is called while it is
/// emptied into an encrypted volume.
const LINKED: [&str; 2] = ["models", vault::CLEAR];

/// When the lease ends.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Index of the log of whoever said so.
    applied: u64,
    /// In seconds since 1970.
    ends_s: Option<u64>,
}

/// A handle on the node's lease; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    vault: Arc<Vault>,
    known: Mutex<Known>,
    told: Notify,
    ending: AtomicBool,
    /// Whether nothing is left.
    gone: watch::Sender<bool>,
}

impl Lease {
    /// The lease of the node whose state is in `folder`, as it was when the node last heard of it.
    pub(crate) fn open(folder: &Path, vault: Arc<Vault>) -> Self {
        let kept = fs::read_to_string(folder.join(ENDS)).unwrap_or_default();
        let mut words = kept.split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse().ok());
        let known = Known {
            ends_s: number(),
            applied: number().unwrap_or(0),
        };
        Self(Arc::new(Inner {
            folder: folder.to_owned(),
            vault,
            known: Mutex::new(known),
            told: Notify::new(),
            ending: AtomicBool::new(false),
            gone: watch::Sender::new(false),
        }))
    }

    /// A coordinator that knows the log up to `applied` says when it ends.
    pub(crate) fn learn(&self, applied: u64, ends_s: Option<u64>) {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        // One that lags behind knows no better; and what ends has no end to be kept.
        if applied < known.applied || self.0.ending.load(Ordering::Acquire) {
            return;
        }
        *known = Known { applied, ends_s };
        let path = self.0.folder.join(ENDS);
        let ends = ends_s.map_or("-".to_owned(), |ends_s| ends_s.to_string());
        let kept = write_whole(&path, &format!("{ends} {applied}"));
        if let Err(error) = kept {
            tracing::error!(%error, path = %path.display(), "the end of the lease is not on disk");
        }
    }

    /// A coordinator says that it ends now.
    pub(crate) fn end(&self) {
        self.0.told.notify_one();
    }

    /// A coordinator says that this machine is a rented one, which is remembered.
    pub(crate) fn note_rented(&self) {
        let path = self.0.folder.join(RENTED);
        let ending = self.0.ending.load(Ordering::Acquire);
        if !ending
            && !path.exists()
            && let Err(error) = write_whole(&path, "")
        {
            tracing::error!(%error, path = %path.display(), "that this machine is rented is not on disk");
        }
    }

    /// A coordinator says that this node was shut out for good. A rented machine was to leave, and was
    /// not there to be told; anybody else's keeps what it has.
    pub(crate) fn shut_out(&self) {
        if self.0.folder.join(RENTED).exists() {
            self.end();
        }
    }

    /// Whether everything is destroyed, and news of it.
    pub(crate) fn gone(&self) -> watch::Receiver<bool> {
        self.0.gone.subscribe()
    }

    /// Waits for the end and destroys what is there; `working` is cancelled before, for whoever writes
    /// to the folder.
    pub(crate) async fn run(
        self,
        supervisor: Supervisor,
        working: CancellationToken,
        stopped: CancellationToken,
    ) {
        tokio::select! {
            () = self.ended() => {}
            () = stopped.cancelled() => return,
        }
        tracing::info!("the lease ends: everything of the cluster is removed from this machine");
        {
            // Not in the middle of what a coordinator says.
            let _known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.ending.store(true, Ordering::Release);
        }
        working.cancel();
        // Newer than every plan: nothing is loaded any more.
        supervisor.set_target(u64::MAX, Default::default()).await;
        loop {
            let outcome = self.destroy_twice().await;
            let Err(error) = outcome else {
                break;
            };
            tracing::error!(%error, "not everything is removed yet");
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = stopped.cancelled() => return,
            }
        }
        self.0.gone.send_replace(true);
    }

    /// Comes back at the end: told, or by the own clock.
    async fn ended(&self) {
        let mut over = 0;
        while over < LOOKS {
            tokio::select! {
                () = self.0.told.notified() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let known = *self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
            let is_over = known
                .ends_s
                .is_some_and(|ends_s| pomona_clocks::wall_s() >= ends_s);
            over = if is_over { over + 1 } else { 0 };
        }
    }

    async fn destroy_twice(&self) -> io::Result<()> {
        for _ in 0..2 {
            let this = self.0.clone();
            let destroyed = tokio::task::spawn_blocking(move || destroy(&this.folder, &this.vault)).await;
            destroyed.map_err(io::Error::other)??;
            tokio::time::sleep(SETTLED).await;
        }
        Ok(())
    }
}

/// Goes on with what was begun before the machine was switched off, if it was: before anybody reads
/// what is left there.
///
/// # Errors
/// Something cannot be removed.
pub(crate) fn finish(folder: &Path) -> io::Result<()> {
    if folder.join(BEGUN).exists() {
        tracing::info!("the lease has ended: what is left of the cluster is removed");
        destroy(folder, &Vault::at(folder))?;
    }
    Ok(())
}

/// Forgets a lease of before: the machine joins anew.
///
/// # Errors
/// A file cannot be removed.
pub(crate) fn forget(folder: &Path) -> io::Result<()> {
    finish(folder)?;
    remove_file(&folder.join(RENTED))?;
    remove_file(&folder.join(ENDS))
}

/// Removes everything below the node's folder, the membership last, its key overwritten before. Goes on
/// where something cannot be removed, and says so at the end.
fn destroy(folder: &Path, vault: &Vault) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::File::create(folder.join(BEGUN))?.sync_all()?;
    let mut outcome = Ok(());
    let mut note = |removed: io::Result<()>| {
        if outcome.is_ok() {
            outcome = removed;
        }
    };
    // First, so that the key of what is on the disk is nowhere, whatever comes after.
    note(vault.close());
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != MEMBERSHIP && name != BEGUN {
            let follow = LINKED.iter().any(|linked| name == *linked);
            note(remove(&entry.path(), follow));
        }
    }
    let membership = folder.join(MEMBERSHIP);
    if membership.exists() {
        for entry in fs::read_dir(&membership)? {
            note(remove(&entry?.path(), false));
        }
        note(fs::remove_dir_all(&membership));
    }
    outcome?;
    remove_file(&folder.join(BEGUN))
}

/// Removes one thing, links and what they are followed to where that is wanted, files overwritten first.
fn remove(path: &Path, follow: bool) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_symlink() {
        if follow && path.is_dir() {
            for entry in fs::read_dir(path)? {
                remove(&entry?.path(), false)?;
            }
        }
        return fs::remove_file(path);
    }
    if kind.is_dir() {
        return fs::remove_dir_all(path);
    }
    if kind.is_file() {
        overwrite(path)?;
    }
    fs::remove_file(path)
}

/// Small files with keys: what a file system keeps of the old blocks is its own affair, but a
/// recovered directory entry finds nothing.
fn overwrite(path: &Path) -> io::Result<()> {
    let length = fs::metadata(path)?.len().min(1 << 20) as usize;
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(&vec![0; length])?;
    file.sync_all()
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(node: &Path) -> io::Result<()> {
        fs::create_dir_all(node.join("models/a__b"))?;
        fs::create_dir_all(node.join(MEMBERSHIP))?;
        fs::write(node.join("models/a__b/model.safetensors"), "weights")?;
        fs::write(node.join("membership/node.key"), "secret")?;
        fs::write(node.join("join.key"), "secret")
    }

    #[test]
    fn nothing_is_left_and_an_interrupted_end_goes_on() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let node = folder.path().join("node");
        filled(&node)?;
        destroy(&node, &Vault::at(&node))?;
        assert_eq!(fs::read_dir(&node)?.count(), 0);
        // Switched off in between, with half a membership: the file says so.
        filled(&node)?;
        fs::remove_file(node.join("membership/node.key"))?;
        finish(&node)?;
        assert!(node.join(MEMBERSHIP).exists(), "nobody asked for that");
        fs::write(node.join(BEGUN), "")?;
        finish(&node)?;
        assert_eq!(fs::read_dir(&node)?.count(), 0);
        Ok(())
    }

    #[test]
    fn models_on_another_disk_go_and_other_links_are_only_links() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let (node, disk, home) = (
            folder.path().join("node"),
            folder.path().join("disk"),
            folder.path().join("home"),
        );
        fs::create_dir_all(&home)?;
        fs::write(home.join("letter"), "mine")?;
        for linked in LINKED {
            fs::create_dir_all(disk.join("a__b"))?;
            fs::create_dir_all(&node)?;
            std::os::unix::fs::symlink(&disk, node.join(linked))?;
            std::os::unix::fs::symlink(&home, node.join("home"))?;
            std::os::unix::fs::symlink(home.join("letter"), node.join("letter"))?;
            destroy(&node, &Vault::at(&node))?;
            assert_eq!(fs::read_dir(&node)?.count(), 0);
            assert_eq!(fs::read_dir(&disk)?.count(), 0, "{linked}");
            assert_eq!(fs::read_to_string(home.join("letter"))?, "mine");
        }
        Ok(())
    }

    #[test]
    fn the_newest_word_counts_and_is_kept() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let vault = Arc::new(Vault::at(folder.path()));
        let ends = |lease: &Lease| {
            let known = lease.0.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.ends_s
        };
        let lease = Lease::open(folder.path(), vault.clone());
        lease.learn(7, Some(900));
        lease.learn(5, Some(100));
        assert_eq!(ends(&lease), Some(900), "one that lags behind knows no better");
        assert_eq!(
            ends(&Lease::open(folder.path(), vault.clone())),
            Some(900),
            "known after a restart"
        );
        lease.learn(8, None);
        assert_eq!(
            (ends(&lease), ends(&Lease::open(folder.path(), vault.clone()))),
            (None, None)
        );
        lease.learn(9, Some(50));
        forget(folder.path())?;
        assert_eq!(ends(&Lease::open(folder.path(), vault)), None);
        Ok(())
    }
}
