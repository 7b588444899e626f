//! Small files of keys and addresses.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use crate::LinkError;

/// Addresses from a file, one a line; none when there is no file.
///
/// # Errors
/// The file cannot be read or is damaged.
pub(crate) fn read_addresses(path: &Path) -> Result<Vec<SocketAddr>, LinkError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).map_err(file_error(path))?;
    let lines = text.lines().map(|line| line.trim().parse());
    lines
        .collect::<Result<_, _>>()
        .map_err(|_| LinkError::Certificate(format!("{} is damaged", path.display())))
}

/// Writes addresses to a file, one a line.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_addresses(path: &Path, addresses: &[SocketAddr]) -> Result<(), LinkError> {
    let lines: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    write_private(path, &lines.join("\n"))
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), LinkError> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(file_error(path))
}

pub(crate) fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> LinkError + use<> {
    let path = path.to_owned();
    move |source| LinkError::File { path, source }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), LinkError> {
    let sync = || fs::File::open(folder)?.sync_all();
    sync().map_err(file_error(folder))
}
