//! How a node proves who it is: as a member that joined with a token, or with the cluster's
//! authority beside it, on the machine where the cluster was born.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    },
}

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

    /// Whether every session has a key of its own, with a fresh certificate: next to the authority.
    pub(crate) fn are_fresh(&self) -> bool {
        matches!(self, Credentials::Authority { .. })
    }

    /// Keeps a renewed certificate.
    pub(crate) fn renewed(&self, certificate: String) -> Result<(), LinkError> {
        match self {
            Credentials::Authority { .. } => Ok(()),
            Credentials::Member { folder, membership } => lock(membership).renew(folder, certificate),
        }
    }

    /// Keeps where coordinators are, for the next start.
    pub(crate) fn keep_coordinators(&self, list: &[(u64, SocketAddr)]) -> Result<(), LinkError> {
        let addresses: Vec<SocketAddr> = list.iter().map(|(_, address)| *address).collect();
        match self {
            Credentials::Authority { folder, .. } => commission::write_coordinators(folder, &addresses),
            Credentials::Member { folder, membership } => {
                lock(membership).keep_coordinators(folder, &addresses)
            }
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
