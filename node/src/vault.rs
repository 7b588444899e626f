//! The store of a rented machine lies on an encrypted volume. Its key comes from the coordinators in
//! every session, is kept in memory only, and is given no more once the machine is shut out: a disk
//! that its owner takes out, or a machine that is switched off and never comes back, shows nothing.
//!
//! The volume is an encrypted APFS image (`hdiutil`), attached where the models are expected. Other
//! systems have no such thing without an administrator: the store stays in the clear there, which is
//! said once.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pomona_common::StoreKey;

/// The image, beside the folder that it is attached at.
const IMAGE: &str = "models.sparsebundle";
/// The image while it is made: one that was cut off is none.
const NEW_IMAGE: &str = "models.new.sparsebundle";
/// What lay in the clear before there was an image, until it is in there.
pub(crate) const CLEAR: &str = "models.clear";
/// Largest size that the image may grow to; it takes what is in it.
const SIZE: &str = "8t";
const PROGRAM: &str = "/usr/bin/hdiutil";
/// So much is copied between two looks whether the node ends.
const BLOCK: usize = 1 << 20;

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Nobody has given a key: the machine is not rented, or the cluster has not spoken yet.
    Closed,
    /// Nothing may be written to the store meanwhile.
    Opening,
    Open,
    /// Nothing may be written to the store, where it would lie in the clear.
    Failed(String),
    /// The node stops or leaves: it opens no more.
    Ended,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Vault {
    /// The node's folder.
    folder: PathBuf,
    /// What makes and attaches images; none where there is nothing.
    program: Option<PathBuf>,
    /// Whether a volume is attached there.
    is_mounted: fn(&Path) -> bool,
    state: Mutex<State>,
    /// Held while volumes are attached or detached.
    work: Mutex<()>,
}

impl Vault {
    /// Of the node with this folder.
    pub(crate) fn at(folder: &Path) -> Self {
        let program = cfg!(target_os = "macos").then(|| PROGRAM.into());
        Self::with(folder, program, is_mounted)
    }

    fn with(folder: &Path, program: Option<PathBuf>, is_mounted: fn(&Path) -> bool) -> Self {
        Self {
            folder: folder.to_owned(),
            program,
            is_mounted,
            state: Mutex::new(State::Closed),
            work: Mutex::new(()),
        }
    }

    /// How far it is.
    pub(crate) fn state(&self) -> State {
        self.lock().clone()
    }

    /// A key came: from now on it is opening. Whether there is something to do.
    pub(crate) fn begin(&self) -> bool {
        let mut state = self.lock();
        let begins = matches!(*state, State::Closed | State::Failed(_));
        if begins {
            *state = State::Opening;
        }
        begins
    }

    /// The folder whose disk the open volume grows on.
    pub(crate) fn disk(&self) -> Option<&Path> {
        (self.program.is_some() && self.state() == State::Open).then_some(self.folder.as_path())
    }

    /// Opens what has [begun](Self::begin) to. Takes seconds: not for a thread that others wait for.
    pub(crate) fn open(&self, key: &StoreKey) {
        let opened = self.attach(key);
        let mut state = self.lock();
        if *state != State::Opening {
            return;
        }
        *state = match opened {
            Ok(()) => State::Open,
            Err(error) => {
                tracing::error!(%error, "the encrypted store does not open: this node brings no models");
                State::Failed(format!("the encrypted store does not open: {error}"))
            }
        };
    }

    /// Attaches the volume, made first where there is none; what lies in the clear is brought in.
    fn attach(&self, key: &StoreKey) -> io::Result<()> {
        let _work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_going_on()?;
        let Some(program) = &self.program else {
            tracing::warn!(
                "this machine is rented, and its models lie in the clear: encrypted volumes are on macOS only"
            );
            return Ok(());
        };
        let (models, image) = (self.models(), self.folder.join(IMAGE));
        let is_mounted = (self.is_mounted)(&models);
        if is_mounted && !image.exists() {
            return Err(io::Error::other(format!(
                "another volume is mounted at {}; a rented machine keeps models on one of its own: unmount it",
                models.display()
            )));
        }
        // A process that was killed has left it attached.
        if !is_mounted {
            let passphrase = key.passphrase();
            if !image.exists() {
                self.create(program, &passphrase)?;
            }
            self.set_aside()?;
            attach_at(program, &image, &models, &passphrase)?;
            if !(self.is_mounted)(&models) {
                let at = models.display();
                return Err(io::Error::other(format!("nothing is mounted at {at} afterwards")));
            }
        }
        if self.clear().exists() {
            self.bring_in(&self.clear(), &models)?;
        }
        tracing::info!("the models of this rented machine lie on an encrypted volume");
        Ok(())
    }

    fn create(&self, program: &Path, passphrase: &str) -> io::Result<()> {
        let new = self.folder.join(NEW_IMAGE);
        if new.is_dir() {
            fs::remove_dir_all(&new)?;
        }
        let kind = ["create", "-encryption", "AES-256", "-stdinpass"];
        let shape = ["-type", "SPARSEBUNDLE", "-fs", "APFS", "-size", SIZE];
        let name = ["-volname", "Pomona models"];
        let create = [kind.as_slice(), &shape, &name].concat();
        run(program, &create, &new, Some(passphrase))?;
        fs::rename(&new, self.folder.join(IMAGE))
    }

    /// Puts what lies in the clear where the volume comes out of the way, and an empty folder there. A
    /// link goes as well: the volume would be attached to the other disk.
    fn set_aside(&self) -> io::Result<()> {
        let (models, clear) = (self.models(), self.clear());
        let is_there = fs::symlink_metadata(&models).is_ok_and(|meta| {
            let mut entries = fs::read_dir(&models).into_iter().flatten();
            meta.file_type().is_symlink() || entries.next().is_some()
        });
        if is_there {
            if clear.exists() {
                return Err(io::Error::other(format!(
                    "there are models in {} and in {}: remove one of them",
                    models.display(),
                    clear.display()
                )));
            }
            fs::rename(&models, &clear)?;
        }
        fs::create_dir_all(&models)
    }

    /// Moves models, folder by folder, to another volume. What was interrupted begins again.
    fn bring_in(&self, from: &Path, to: &Path) -> io::Result<()> {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                fs::create_dir_all(&target)?;
                self.bring_in(&entry.path(), &target)?;
            } else {
                self.copy(&entry.path(), &target)?;
                fs::remove_file(entry.path())?;
            }
        }
        // The models may have been kept elsewhere, with a link.
        if fs::symlink_metadata(from)?.file_type().is_symlink() {
            return fs::remove_file(from);
        }
        fs::remove_dir(from)
    }

    /// Copies a file, of which a stop need not wait for the end.
    fn copy(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut from, mut to) = (fs::File::open(from)?, fs::File::create(to)?);
        let mut block = vec![0; BLOCK];
        loop {
            self.check_going_on()?;
            match from.read(&mut block)? {
                0 => return to.sync_all(),
                read => to.write_all(block.get(..read).unwrap_or_default())?,
            }
        }
    }

    fn check_going_on(&self) -> io::Result<()> {
        match self.state() {
            State::Ended => Err(io::Error::other("this node ends")),
            _ => Ok(()),
        }
    }

    /// Detaches the volume, whoever attached it: its key is nowhere then, and is taken no more.
    ///
    /// # Errors
    /// It stays attached.
    pub(crate) fn close(&self) -> io::Result<()> {
        // Before the wait: whoever works there looks at it.
        *self.lock() = State::Ended;
        let _work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = &self.program
            && self.folder.join(IMAGE).exists()
            && (self.is_mounted)(&self.models())
        {
            run(program, &["detach", "-force"], &self.models(), None)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn models(&self) -> PathBuf {
        self.folder.join("models")
    }

    fn clear(&self) -> PathBuf {
        self.folder.join(CLEAR)
    }
}

fn attach_at(program: &Path, image: &Path, folder: &Path, passphrase: &str) -> io::Result<()> {
    let at = folder.to_string_lossy();
    let how = ["attach", "-stdinpass", "-nobrowse", "-owners", "on"];
    let attach = [how.as_slice(), &["-mountpoint", &at]].concat();
    run(program, &attach, image, Some(passphrase))
}

/// Whether something is mounted there. A link to another disk is no mount: that disk is somebody's own.
fn is_mounted(folder: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).ok().map(|meta| meta.dev());
    let above = folder.parent().and_then(device);
    device(folder).is_some_and(|device| above.is_some_and(|above| above != device))
}

/// Runs it with a last argument; the key goes over standard input, which nobody else sees.
fn run(program: &Path, arguments: &[&str], last: &Path, key: Option<&str>) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .arg(last)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // It reads to the end: a line's end would be part of the key.
        input.write_all(key.unwrap_or_default().as_bytes())?;
    }
    let ended = child.wait_with_output()?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let what = arguments.first().copied().unwrap_or_default();
    Err(io::Error::other(format!(
        "{} {what} failed: {}",
        program.display(),
        said.trim()
    )))
}

#[cfg(test)]
mod tests;
