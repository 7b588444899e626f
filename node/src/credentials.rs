//! How a node proves who it is: as a member that joined with a token, or with the cluster's
//! authority beside it, on the machine where the cluster was born.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use pomona_common::{ClusterId, NodeId};
use pomona_link::{Authority, Identity, LinkError, Membership, Role, commission};

/// See the module's documentation.
pub(crate) enum Credentials {
    /// The authority itself, kept in a folder: a fresh certificate for every session.
    Authority {
        folder: PathBuf,
        authority: Arc<Authority>,
    },
    /// A membership, kept in a folder.
    Member {
        folder: PathBuf,
        membership: Mutex<Membership>,
        /// When this process renewed the certificate, if it did.
        renewed: Mutex<Option<SystemTime>>,
    },
}

/// Certificates of 24 hours are renewed at half their life, by the wall clock: a timer would not
/// count the time that the machine slept.
const RENEW_EVERY: Duration = Duration::from_secs(12 * 3600);

impl Credentials {
    /// The membership below the node's folder if there is one, else the authority, else none: a
    /// node that joined stays who it is when its machine becomes a coordinator as well.
    pub(crate) fn find(
        authority: Option<Arc<Authority>>,
        authority_folder: &Path,
        node_folder: &Path,
    ) -> Result<Option<Self>, LinkError> {
        let folder = membership_folder(node_folder);
        if let Some(membership) = Membership::open(&folder)? {
            return Ok(Some(Credentials::Member {
                folder,
                membership: Mutex::new(membership),
                renewed: Mutex::default(),
            }));
        }
        Ok(authority.map(|authority| Credentials::Authority {
            folder: authority_folder.to_owned(),
            authority,
        }))
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        match self {
            Credentials::Authority { authority, .. } => authority.cluster(),
            Credentials::Member { membership, .. } => lock(membership).cluster(),
        }
    }

    pub(crate) fn identity(&self, node: NodeId) -> Result<Identity, LinkError> {
        match self {
            Credentials::Authority { authority, .. } => authority.issue(Role::Node(node)),
            Credentials::Member { membership, .. } => Ok(lock(membership).identity()),
        }
    }

    /// The key of a session to renew the certificate for, when that is due. Next to the authority
    /// every session has a key of its own, whose certificate was made at `fresh`.
    pub(crate) fn key_to_renew(
        &self,
        identity: &Identity,
        fresh: &mut SystemTime,
    ) -> Result<Option<Vec<u8>>, LinkError> {
        let now = pomona_clocks::wall();
        match self {
            Credentials::Authority { .. } => {
                if now.duration_since(*fresh).is_ok_and(|age| age < RENEW_EVERY) {
                    return Ok(None);
                }
                // The session outlives its certificate only because it asks.
                *fresh = now;
                identity.public_key().map(Some)
            }
            Credentials::Member {
                membership, renewed, ..
            } => {
                let renewed = *lock(renewed);
                // A clock that was set back says nothing about the age: renew then as well.
                let age = |at| now.duration_since(at);
                let is_fresh = renewed.is_some_and(|at| age(at).is_ok_and(|age| age < RENEW_EVERY));
                if is_fresh {
                    return Ok(None);
                }
                lock(membership).public_key().map(Some)
            }
        }
    }

    /// Keeps a renewed certificate.
    pub(crate) fn renewed(&self, certificate: String) -> Result<(), LinkError> {
        match self {
            Credentials::Authority { .. } => Ok(()),
            Credentials::Member {
                folder,
                membership,
                renewed,
            } => {
                *lock(renewed) = Some(pomona_clocks::wall());
                lock(membership).renew(folder, certificate)
            }
        }
    }

    /// Keeps where coordinators are, for the next start.
    pub(crate) fn keep_coordinators(&self, list: &[(u64, SocketAddr)]) -> Result<(), LinkError> {
        let addresses: Vec<SocketAddr> = list.iter().map(|(_, address)| *address).collect();
        match self {
            Credentials::Authority { folder, .. } => commission::write_coordinators(folder, &addresses),
            Credentials::Member {
                folder, membership, ..
            } => lock(membership).keep_coordinators(folder, &addresses),
        }
    }

    /// The id that the membership names; `None` when every session's certificate is made for the
    /// id of the machine.
    pub(crate) fn node(&self) -> Option<NodeId> {
        match self {
            Credentials::Authority { .. } => None,
            Credentials::Member { membership, .. } => Some(lock(membership).node()),
        }
    }

    /// Where coordinators were when that was last heard of.
    pub(crate) fn coordinators(&self) -> Result<Vec<SocketAddr>, LinkError> {
        match self {
            Credentials::Authority { folder, .. } => commission::read_coordinators(folder),
            Credentials::Member { membership, .. } => Ok(lock(membership).coordinators().to_vec()),
        }
    }
}

/// Where a membership is kept, below the node's state folder.
pub(crate) fn membership_folder(node_folder: &Path) -> PathBuf {
    node_folder.join("membership")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
