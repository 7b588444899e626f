//! How a node proves who it is: as a member that joined with a token, or with the cluster's
//! authority beside it, on the machine where the cluster was born.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pomona_common::NodeId;
use pomona_link::{Authority, Identity, LinkError, Membership, Role};

/// See the module's documentation.
pub(crate) enum Credentials {
    /// The authority itself: a fresh certificate for every session.
    Authority(Arc<Authority>),
    /// A membership, kept in a folder.
    Member {
        folder: PathBuf,
        membership: Mutex<Membership>,
    },
}

impl Credentials {
    /// The authority if there is one, else the membership below the node's folder, else none.
    pub(crate) fn find(authority: Option<Arc<Authority>>, folder: &Path) -> Result<Option<Self>, LinkError> {
        if let Some(authority) = authority {
            return Ok(Some(Credentials::Authority(authority)));
        }
        let folder = membership_folder(folder);
        let membership = Membership::open(&folder)?;
        Ok(membership.map(|membership| Credentials::Member {
            folder,
            membership: Mutex::new(membership),
        }))
    }

    pub(crate) fn identity(&self, node: NodeId) -> Result<Identity, LinkError> {
        match self {
            Credentials::Authority(authority) => authority.issue(Role::Node(node)),
            Credentials::Member { membership, .. } => Ok(lock(membership).identity()),
        }
    }

    /// The key to renew a certificate for; `None` when every session gets a fresh one anyway.
    pub(crate) fn renewable_key(&self) -> Result<Option<Vec<u8>>, LinkError> {
        match self {
            Credentials::Authority(_) => Ok(None),
            Credentials::Member { membership, .. } => lock(membership).public_key().map(Some),
        }
    }

    /// Keeps a renewed certificate.
    pub(crate) fn renewed(&self, certificate: String) -> Result<(), LinkError> {
        match self {
            Credentials::Authority(_) => Ok(()),
            Credentials::Member { folder, membership } => lock(membership).renew(folder, certificate),
        }
    }

    /// The id that the membership names; `None` when every session's certificate is made for the
    /// id of the machine.
    pub(crate) fn node(&self) -> Option<NodeId> {
        match self {
            Credentials::Authority(_) => None,
            Credentials::Member { membership, .. } => Some(lock(membership).node()),
        }
    }

    /// Where coordinators were when this machine joined; empty for the authority's own machine.
    pub(crate) fn coordinators(&self) -> Vec<SocketAddr> {
        match self {
            Credentials::Authority(_) => Vec::new(),
            Credentials::Member { membership, .. } => lock(membership).coordinators().to_vec(),
        }
    }
}

/// Where a membership is kept, below the node's state folder.
pub(crate) fn membership_folder(node_folder: &Path) -> PathBuf {
    node_folder.join("membership")
}

fn lock(membership: &Mutex<Membership>) -> MutexGuard<'_, Membership> {
    membership.lock().unwrap_or_else(PoisonError::into_inner)
}
