//! What a machine keeps of having joined: its key, its certificate, whom it trusts, whom it dials.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::LinkError;
use crate::files::{file_error, read_addresses, sync_folder, write_addresses, write_private};
use crate::identity::{Identity, Role};
use pomona_common::{ClusterId, NodeId};

/// One machine's place in one cluster.
#[derive(Clone)]
pub struct Membership {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) authority_pem: String,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    pub(crate) coordinators: Vec<SocketAddr>,
}

impl Membership {
    /// Writes it to `folder`, whole or not at all; only the owner may read it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), LinkError> {
        let partial = folder.with_extension("partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).map_err(file_error(&partial))?;
        for (name, text) in [
            ("cluster", self.cluster.to_string()),
            ("node", self.node.to_string()),
            ("ca.crt", self.authority_pem.clone()),
            ("node.crt", self.certificate_pem.clone()),
            ("node.key", self.key_pem.clone()),
        ] {
            write_private(&partial.join(name), &text)?;
        }
        write_addresses(&partial.join("coordinators"), &self.coordinators)?;
        sync_folder(&partial)?;
        // The old one steps aside, so that one of the two is there at every moment.
        let old = folder.with_extension("old");
        let _ = fs::remove_dir_all(&old);
        if folder.exists() {
            fs::rename(folder, &old).map_err(file_error(folder))?;
        }
        fs::rename(&partial, folder).map_err(file_error(folder))?;
        if let Some(parent) = folder.parent() {
            sync_folder(parent)?;
        }
        let _ = fs::remove_dir_all(&old);
        Ok(())
    }

    /// Reads it; `None` when this machine has not joined any cluster.
    ///
    /// # Errors
    /// It is there, but cannot be read or is damaged.
    pub fn open(folder: &Path) -> Result<Option<Self>, LinkError> {
        let old = folder.with_extension("old");
        let folder = match (folder.exists(), old.exists()) {
            (true, _) => folder,
            // The machine stopped while a new one was put in its place.
            (false, true) => old.as_path(),
            (false, false) => return Ok(None),
        };
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(file_error(&path))
        };
        let damaged =
            |name: &str| LinkError::Certificate(format!("{} is damaged", folder.join(name).display()));
        Ok(Some(Self {
            cluster: read("cluster")?.trim().parse().map_err(|_| damaged("cluster"))?,
            node: read("node")?.trim().parse().map_err(|_| damaged("node"))?,
            authority_pem: read("ca.crt")?,
            certificate_pem: read("node.crt")?,
            key_pem: read("node.key")?,
            coordinators: read_addresses(&folder.join("coordinators"))?,
        }))
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Where coordinators were when this was written.
    pub fn coordinators(&self) -> &[SocketAddr] {
        &self.coordinators
    }

    /// Takes a renewed certificate and writes it down.
    ///
    /// # Errors
    /// The file cannot be written; this process uses the new certificate all the same.
    pub fn renew(&mut self, folder: &Path, certificate_pem: String) -> Result<(), LinkError> {
        self.certificate_pem = certificate_pem;
        write_private(&folder.join("node.crt"), &self.certificate_pem)
    }

    /// Keeps where coordinators are now, for the next start.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_coordinators(&mut self, folder: &Path, coordinators: &[SocketAddr]) -> Result<(), LinkError> {
        if self.coordinators == coordinators {
            return Ok(());
        }
        self.coordinators = coordinators.to_vec();
        write_addresses(&folder.join("coordinators"), coordinators)
    }

    /// The node's id, which its certificate names.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its public key: a point of P-256, uncompressed.
    ///
    /// # Errors
    /// The key is damaged.
    pub fn public_key(&self) -> Result<Vec<u8>, LinkError> {
        self.identity().public_key()
    }

    /// Key and certificate, to open sessions with.
    pub fn identity(&self) -> Identity {
        Identity {
            cluster: self.cluster,
            role: Role::Node(self.node),
            certificate_pem: self.certificate_pem.clone(),
            key_pem: self.key_pem.clone(),
            authority_pem: self.authority_pem.clone(),
        }
    }
}
