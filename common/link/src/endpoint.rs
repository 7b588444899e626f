//! A UDP port that accepts and opens sessions.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use pomona_common::{NodeId, control, limits};
use quinn::VarInt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::identity::{Identity, Role};
use crate::join::Joining;
use crate::renew::Renewing;
use crate::session::Session;
use crate::{LinkError, farewell, tls};

/// What a connection is for: each kind has its own, so that bulk never shares a flow-control
/// window with a token stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Control messages and token streams of a node.
    Control,
    /// Raft between coordinators.
    Raft,
    /// A machine without certificate that holds a token.
    Join,
    /// A node whose certificate has run out.
    Renew,
    /// Weights from one node to another.
    Weights,
    /// Weights that a node asks a coordinator for, because it reaches no node that has them.
    Relay,
    /// Weights that a node gives through a coordinator, which asks for them.
    Give,
}

impl Purpose {
    pub(crate) const ALL: [Purpose; 7] = [
        Purpose::Control,
        Purpose::Raft,
        Purpose::Join,
        Purpose::Renew,
        Purpose::Weights,
        Purpose::Relay,
        Purpose::Give,
    ];

    /// What a process with this role is dialled for.
    fn of_server(role: Role) -> &'static [Purpose] {
        match role {
            Role::Coordinator(_) => &[
                Purpose::Control,
                Purpose::Raft,
                Purpose::Join,
                Purpose::Renew,
                Purpose::Relay,
                Purpose::Give,
            ],
            Role::Node(_) => &[Purpose::Weights],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Purpose::Control => "pomona-control",
            Purpose::Raft => "pomona-raft",
            Purpose::Join => "pomona-join",
            Purpose::Renew => "pomona-renew",
            Purpose::Weights => "pomona-weights",
            Purpose::Relay => "pomona-relay",
            Purpose::Give => "pomona-give",
        }
    }

    /// The newest version of the protocol that is spoken here; all before it are spoken as well.
    const fn newest(self) -> u16 {
        match self {
            Purpose::Control => control::PROTOCOL,
            // What Raft sends says by itself who can read it; this tells what a coordinator reads.
            Purpose::Raft => pomona_wire::stored::VERSION as u16,
            Purpose::Join | Purpose::Renew | Purpose::Weights | Purpose::Relay | Purpose::Give => 1,
        }
    }

    /// The names of the protocol in the handshake (ALPN), the newest version first: both ends then
    /// speak the newest that both know, and a cluster is updated one machine after the other.
    pub(crate) fn protocols(self, newest: u16) -> Vec<Vec<u8>> {
        let versions = (1..=self.newest().min(newest)).rev();
        versions
            .map(|version| format!("{}/{version}", self.name()).into_bytes())
            .collect()
    }

    fn of_protocol(protocol: &[u8]) -> Option<(Self, u16)> {
        let (name, version) = std::str::from_utf8(protocol).ok()?.split_once('/')?;
        let purpose = Self::ALL.into_iter().find(|purpose| purpose.name() == name)?;
        Some((purpose, version.parse().ok()?))
    }

    /// Who may be at the client's end; nobody who has a certificate joins.
    fn admits(self, role: Role) -> bool {
        matches!(
            (self, role),
            (
                Purpose::Control | Purpose::Weights | Purpose::Relay | Purpose::Give,
                Role::Node(_)
            ) | (Purpose::Raft, Role::Coordinator(_))
        )
    }
}

/// See the module's documentation.
pub struct Endpoint {
    inner: quinn::Endpoint,
    identity: Mutex<Identity>,
    serves: bool,
    newest: u16,
    /// One permit a handshake under way.
    handshakes: Arc<Semaphore>,
}

impl Endpoint {
    /// Opens a port that accepts sessions and can dial from it.
    ///
    /// # Errors
    /// The port is taken, or the identity is unusable.
    pub fn server(address: SocketAddr, identity: Identity) -> Result<Self, LinkError> {
        let config = server_config(&identity, u16::MAX)?;
        let inner =
            quinn::Endpoint::server(config, address).map_err(|source| LinkError::Bind { address, source })?;
        Ok(Self {
            inner,
            identity: Mutex::new(identity),
            serves: true,
            newest: u16::MAX,
            handshakes: Arc::new(Semaphore::new(limits::QUIC_HANDSHAKES)),
        })
    }

    /// Opens a port that only dials.
    ///
    /// # Errors
    /// No port is free.
    pub fn client(address: SocketAddr, identity: Identity) -> Result<Self, LinkError> {
        let inner = client_socket(address)?;
        Ok(Self {
            inner,
            identity: Mutex::new(identity),
            serves: false,
            newest: u16::MAX,
            handshakes: Arc::new(Semaphore::new(limits::QUIC_HANDSHAKES)),
        })
    }

    /// Speaks no newer version of a protocol than this: what an earlier program does, to rehearse an
    /// update.
    ///
    /// # Errors
    /// The identity is unusable.
    pub fn speak_at_most(mut self, newest: u16) -> Result<Self, LinkError> {
        self.newest = newest;
        if self.serves {
            let config = server_config(&self.lock(), newest)?;
            self.inner.set_server_config(Some(config));
        }
        Ok(self)
    }

    /// Uses a fresh certificate from now on; sessions that are open stay open.
    ///
    /// # Errors
    /// The identity is unusable.
    pub fn renew(&self, identity: Identity) -> Result<(), LinkError> {
        if self.serves {
            let config = server_config(&identity, self.newest)?;
            self.inner.set_server_config(Some(config));
        }
        *self.lock() = identity;
        Ok(())
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_address(&self) -> Result<SocketAddr, LinkError> {
        self.inner
            .local_addr()
            .map_err(|error| LinkError::Closed(error.to_string()))
    }

    /// Opens a session with the coordinator at `address`, or for weights with the node there.
    ///
    /// # Errors
    /// Nobody answers in time, or not with the right kind of certificate of this cluster.
    pub async fn dial(&self, address: SocketAddr, purpose: Purpose) -> Result<Session, LinkError> {
        let identity = self.lock().clone();
        open(&self.inner, (&identity, self.newest), address, purpose).await
    }

    /// The next session that a peer opened and proved its role for; `None` once closed.
    /// Handshakes run one after the other in the caller's tasks: see [`Incoming::finish`].
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let incoming = self.inner.accept().await?;
            let busy = self.handshakes.available_permits() <= limits::QUIC_HANDSHAKES / 2;
            if busy && !incoming.remote_address_validated() && incoming.may_retry() {
                // The client comes back with proof of its address.
                let _ = incoming.retry();
                continue;
            }
            let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let identity = self.lock().clone();
            return Some(Incoming {
                incoming,
                identity,
                _permit: permit,
            });
        }
    }

    /// Ends all sessions and closes the port.
    pub async fn close(&self) {
        self.inner.close(VarInt::from_u32(0), b"shutting down");
        let _ = tokio::time::timeout(limits::QUIC_HANDSHAKE_TIMEOUT, self.inner.wait_idle()).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Identity> {
        self.identity
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A port that only dials.
pub(crate) fn client_socket(address: SocketAddr) -> Result<quinn::Endpoint, LinkError> {
    quinn::Endpoint::client(address).map_err(|source| LinkError::Bind { address, source })
}

/// Opens a session from a socket, speaking no newer version of a protocol than the one beside the identity.
pub(crate) async fn open(
    socket: &quinn::Endpoint,
    (identity, newest): (&Identity, u16),
    address: SocketAddr,
    purpose: Purpose,
) -> Result<Session, LinkError> {
    let failed = |reason: String| LinkError::Connect { address, reason };
    let config = tls::client_config(identity, purpose.protocols(newest))?;
    let of_a_node = purpose == Purpose::Weights;
    // Certificates name the kind of process, not which one.
    let kind = if of_a_node {
        Role::Node(NodeId::from_bits(0))
    } else {
        Role::Coordinator(0)
    };
    let name = kind.server_name(identity.cluster());
    let connection = connect(socket, config, address, &name).await?;
    let peer = tls::peer(&connection, identity.cluster())?;
    let (_, version) = agreed(&connection).ok_or_else(|| failed("no protocol in common".into()))?;
    if peer.role.node().is_some() == of_a_node {
        Ok(Session::new(connection, peer, purpose, version))
    } else {
        Err(failed(format!("{} answered, which is the wrong kind", peer.role)))
    }
}

/// What a connection is for, and the version of the protocol that both ends know.
fn agreed(connection: &quinn::Connection) -> Option<(Purpose, u16)> {
    Purpose::of_protocol(&tls::protocol(connection)?)
}

/// Dials, within the time that a handshake may take.
pub(crate) async fn connect(
    endpoint: &quinn::Endpoint,
    config: quinn::ClientConfig,
    address: SocketAddr,
    server_name: &str,
) -> Result<quinn::Connection, LinkError> {
    let failed = |reason: String| LinkError::Connect { address, reason };
    let connecting = endpoint
        .connect_with(config, address, server_name)
        .map_err(|error| match error {
            quinn::ConnectError::EndpointStopping => LinkError::SocketLost,
            error => failed(error.to_string()),
        })?;
    tokio::time::timeout(limits::QUIC_HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|_| failed("no answer".to_owned()))?
        .map_err(|error| failed(error.to_string()))
}

/// Any free port, on whatever interface leads to an address of this kind.
pub fn any_port_toward(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    }
}

/// Who came in.
pub enum Accepted {
    /// A member of the cluster, for a purpose that its role admits.
    Session(Session),
    /// A machine that wants to become one.
    Joining(Joining),
    /// A node whose certificate has run out.
    Renewing(Renewing),
}

/// A handshake that has begun.
pub struct Incoming {
    incoming: quinn::Incoming,
    identity: Identity,
    _permit: OwnedSemaphorePermit,
}

impl Incoming {
    /// Finishes the handshake and checks that the peer may do what it came for.
    ///
    /// # Errors
    /// It may not, or is too slow.
    pub async fn finish(self) -> Result<Accepted, LinkError> {
        let address = self.incoming.remote_address();
        let failed = |reason: String| LinkError::Connect { address, reason };
        let connecting = self
            .incoming
            .accept()
            .map_err(|error| failed(error.to_string()))?;
        let connection = tokio::time::timeout(limits::QUIC_HANDSHAKE_TIMEOUT, connecting)
            .await
            .map_err(|_| failed("handshake took too long".to_owned()))?
            .map_err(|error| failed(error.to_string()))?;
        let refused = |connection: &quinn::Connection, why: String| {
            farewell::close(connection, 1, b"identity");
            failed(why)
        };
        let agreed = agreed(&connection);
        let purpose = agreed.map(|(purpose, _)| purpose);
        if let Some(Purpose::Join | Purpose::Renew) = purpose {
            // Members have what joining gives, and a certificate here would mean nothing.
            return match connection.peer_identity() {
                Some(_) => Err(refused(&connection, "a member does not join".to_owned())),
                None if purpose == Some(Purpose::Join) => Ok(Accepted::Joining(Joining::new(connection))),
                None => Ok(Accepted::Renewing(Renewing::new(connection, self.identity))),
            };
        }
        let peer = match tls::peer(&connection, self.identity.cluster()) {
            Ok(peer) => peer,
            Err(error) => return Err(refused(&connection, error.to_string())),
        };
        match agreed {
            Some((purpose, version)) if purpose.admits(peer.role) => Ok(Accepted::Session(Session::new(
                connection, peer, purpose, version,
            ))),
            _ => Err(refused(&connection, format!("{} may not do this", peer.role))),
        }
    }
}

fn server_config(identity: &Identity, newest: u16) -> Result<quinn::ServerConfig, LinkError> {
    let purposes = Purpose::of_server(identity.role()).iter();
    let protocols = purposes.flat_map(|purpose| purpose.protocols(newest));
    tls::server_config(identity, protocols.collect())
}
