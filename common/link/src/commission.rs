//! What a machine keeps of having become a coordinator: authority, number, and where the others were.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use pomona_common::ClusterId;

use crate::LinkError;
use crate::authority::Authority;
use crate::files::{file_error, read_addresses, sync_folder, write_addresses, write_private};

/// A coordinator's place in its cluster, given when it joined: kept beside the authority.
pub struct Commission {
    pub(crate) cluster: ClusterId,
    pub(crate) number: u64,
    pub(crate) authority_pem: String,
    pub(crate) key_pem: String,
    pub(crate) coordinators: Vec<(u64, SocketAddr)>,
}

impl Commission {
    /// Writes authority, number and the other coordinators' addresses to `folder`.
    ///
    /// # Errors
    /// The folder cannot be written, or what came is no authority.
    pub fn save(&self, folder: &Path) -> Result<Authority, LinkError> {
        fs::create_dir_all(folder).map_err(file_error(folder))?;
        let addresses: Vec<SocketAddr> = self.coordinators.iter().map(|(_, address)| *address).collect();
        write_coordinators(folder, &addresses)?;
        write_number(folder, self.number)?;
        // The key makes the machine a coordinator: with it, the number must be there.
        sync_folder(folder)?;
        let authority = Authority::keep(folder, self.cluster, &self.authority_pem, &self.key_pem)?;
        sync_folder(folder)?;
        Ok(authority)
    }

    /// The number of the new coordinator.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// Where the coordinators were when that was last heard of; none for one that was always alone.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn read_coordinators(folder: &Path) -> Result<Vec<SocketAddr>, LinkError> {
    read_addresses(&folder.join("coordinators"))
}

/// Keeps where the coordinators are, for the next start.
///
/// # Errors
/// The file cannot be written.
pub fn write_coordinators(folder: &Path, coordinators: &[SocketAddr]) -> Result<(), LinkError> {
    write_addresses(&folder.join("coordinators"), coordinators)
}

/// The number of the coordinator whose authority is in `folder`; `None` for one that has not
/// founded its cluster yet.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn read_number(folder: &Path) -> Result<Option<u64>, LinkError> {
    let path = folder.join("number");
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).map_err(file_error(&path))?;
    let number = text.trim().parse();
    number
        .map(Some)
        .map_err(|_| LinkError::Certificate(format!("{} is damaged", path.display())))
}

/// Keeps the number of a coordinator.
///
/// # Errors
/// The folder cannot be written.
pub fn write_number(folder: &Path, number: u64) -> Result<(), LinkError> {
    write_private(&folder.join("number"), &number.to_string())
}
