//! The end of a rented machine's lease: it destroys what it holds of the cluster, tells the
//! coordinators, and ends. It does so when a coordinator says it, or by its own clock at the end of
//! the lease, in reach of anybody or not.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::supervisor::Supervisor;

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A file that could not be removed is tried again after this time.
const AGAIN: Duration = Duration::from_secs(2);
/// The file that says that destroying has begun: a machine that is switched off meanwhile goes on.
const BEGUN: &str = "evicting";
/// The file with the end of the lease, in seconds since 1970.
const ENDS: &str = "lease";
/// Its folder goes last: with it the node can still say that it is done.
const MEMBERSHIP: &str = "membership";

/// A handle on the node's lease; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    ends_s: watch::Sender<Option<u64>>,
    told: Notify,
    /// Whether nothing is left.
    gone: watch::Sender<bool>,
}

impl Lease {
    /// The lease of the node whose state is in `folder`, as it was when the node last heard of it.
    pub(crate) fn open(folder: &Path) -> Self {
        let kept = fs::read_to_string(folder.join(ENDS)).ok();
        let ends_s = kept.and_then(|text| text.trim().parse().ok());
        let this = Self(Arc::new(Inner {
            folder: folder.to_owned(),
            ends_s: watch::Sender::new(ends_s),
            told: Notify::new(),
            gone: watch::Sender::new(false),
        }));
        if folder.join(BEGUN).exists() {
            this.end();
        }
        this
    }

    /// A coordinator says when it ends.
    pub(crate) fn learn(&self, ends_s: Option<u64>) {
        let path = self.0.folder.join(ENDS);
        let kept = match ends_s {
            Some(ends_s) => fs::write(&path, ends_s.to_string()),
            None => remove_file(&path),
        };
        if let Err(error) = kept {
            tracing::error!(%error, path = %path.display(), "the end of the lease is not on disk");
        }
        self.0.ends_s.send_replace(ends_s);
    }

    /// A coordinator says that it ends now.
    pub(crate) fn end(&self) {
        self.0.told.notify_one();
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
        loop {
            tokio::select! {
                () = self.0.told.notified() => break,
                () = tokio::time::sleep(LOOK) => {
                    let ends_s = *self.0.ends_s.borrow();
                    if ends_s.is_some_and(|ends_s| pomona_clocks::wall_s() >= ends_s) {
                        break;
                    }
                }
                () = stopped.cancelled() => return,
            }
        }
        tracing::info!("the lease ends: everything of the cluster is removed from this machine");
        working.cancel();
        // Newer than every plan: nothing is loaded any more.
        supervisor.set_target(u64::MAX, Default::default()).await;
        let folder = self.0.folder.clone();
        while let Err(error) = destroy(&folder) {
            tracing::error!(%error, "not everything is removed yet");
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = stopped.cancelled() => return,
            }
        }
        self.0.gone.send_replace(true);
    }
}

/// Removes everything below the node's folder, the membership last, its key overwritten before.
fn destroy(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::File::create(folder.join(BEGUN))?.sync_all()?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == MEMBERSHIP || name == BEGUN {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            overwrite(&entry.path())?;
            fs::remove_file(entry.path())?;
        }
    }
    let membership = folder.join(MEMBERSHIP);
    if membership.exists() {
        for entry in fs::read_dir(&membership)? {
            overwrite(&entry?.path())?;
        }
        fs::remove_dir_all(&membership)?;
    }
    remove_file(&folder.join(BEGUN))
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

    #[test]
    fn nothing_is_left_and_an_interrupted_end_goes_on() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let node = folder.path().join("node");
        fs::create_dir_all(node.join("models/a__b"))?;
        fs::create_dir_all(node.join(MEMBERSHIP))?;
        fs::write(node.join("models/a__b/model.safetensors"), "weights")?;
        fs::write(node.join("membership/node.key"), "secret")?;
        fs::write(node.join("join.key"), "secret")?;
        let lease = Lease::open(&node);
        lease.learn(Some(17));
        assert_eq!(
            *Lease::open(&node).0.ends_s.borrow(),
            Some(17),
            "known after a restart"
        );
        destroy(&node)?;
        assert_eq!(fs::read_dir(&node)?.count(), 0);
        // Switched off in between: the file says so.
        fs::write(node.join(BEGUN), "")?;
        let again = Lease::open(&node);
        let told = again.0.told.notified();
        tokio::runtime::Builder::new_current_thread()
            .build()?
            .block_on(told);
        Ok(())
    }
}
