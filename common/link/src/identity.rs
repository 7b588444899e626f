//! Who a process is, and who a peer proved to be.

use std::fmt;

use pomona_common::{ClusterId, KeyPrint, NodeId};
use rcgen::{KeyPair, PublicKeyData};

use crate::authority::certificate_error;
use crate::{LinkError, tls};

/// What a process does in the cluster; in its certificate, and checked on both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A Raft voter with this number.
    Coordinator(u64),
    /// A machine that answers requests.
    Node(NodeId),
}

impl Role {
    /// The number, of a coordinator.
    pub fn coordinator(self) -> Option<u64> {
        match self {
            Role::Coordinator(number) => Some(number),
            Role::Node(_) => None,
        }
    }

    /// The id, of a node.
    pub fn node(self) -> Option<NodeId> {
        match self {
            Role::Coordinator(_) => None,
            Role::Node(id) => Some(id),
        }
    }

    /// The SPIFFE id of the role.
    pub(crate) fn uri(self, cluster: ClusterId) -> String {
        format!("spiffe://{cluster}/{self}")
    }

    /// The name a client asks for: it binds a server to its cluster and its kind.
    pub(crate) fn server_name(self, cluster: ClusterId) -> String {
        let kind = match self {
            Role::Coordinator(_) => "coordinator",
            Role::Node(_) => "node",
        };
        format!("{kind}.{cluster}.pomona.internal")
    }

    pub(crate) fn from_uri(uri: &str, cluster: ClusterId) -> Option<Self> {
        let path = uri.strip_prefix(&format!("spiffe://{cluster}/"))?;
        match path.split_once('/')? {
            ("coordinator", number) => number.parse().ok().map(Role::Coordinator),
            ("node", id) => id.parse().ok().map(Role::Node),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Coordinator(number) => write!(f, "coordinator/{number}"),
            Role::Node(id) => write!(f, "node/{id}"),
        }
    }
}

/// A process's own key and certificate.
#[derive(Clone)]
pub struct Identity {
    pub(crate) cluster: ClusterId,
    pub(crate) role: Role,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    pub(crate) authority_pem: String,
}

impl Identity {
    /// The cluster it belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// What it may do.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its public key: a point of P-256, uncompressed.
    ///
    /// # Errors
    /// The key is damaged.
    pub fn public_key(&self) -> Result<Vec<u8>, LinkError> {
        let key = KeyPair::from_pem(&self.key_pem).map_err(certificate_error)?;
        Ok(key.der_bytes().to_vec())
    }

    /// The same process with another certificate, PEM, for its key.
    pub fn with_certificate(self, certificate_pem: String) -> Self {
        Self {
            certificate_pem,
            ..self
        }
    }

    /// Whether its certificate is good now: nobody opens a session with one that has run out.
    pub fn is_current(&self) -> bool {
        tls::is_current(self)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} of {})", self.role, self.cluster)
    }
}

/// The other end of a session, by its verified certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// What it may do.
    pub role: Role,
    /// Its key.
    pub key: KeyPrint,
}
