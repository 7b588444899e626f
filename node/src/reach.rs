//! Whether coordinators are reached from this machine, as this machine: what `pomona doctor` asks.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use pomona_cluster_config::Config;
use pomona_common::{ClusterId, NodeId};
use pomona_link::{Endpoint, Identity, LinkError, Membership, Purpose, any_port_toward, renew};

use crate::credentials::membership_folder;

/// A coordinator that refuses a node says so within this time.
const REFUSAL: Duration = Duration::from_millis(400);

/// What this machine is to a cluster that it joined, without starting anything.
pub struct Belonging {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node that it is.
    pub node: NodeId,
    /// Where coordinators may be.
    pub coordinators: BTreeSet<SocketAddr>,
    identity: Identity,
}

/// What this machine joined; `None` when it belongs to no cluster as a node.
///
/// # Errors
/// What is kept of it is damaged.
pub fn belonging(config: &Config) -> Result<Option<Belonging>, LinkError> {
    let Some(membership) = Membership::open(&membership_folder(&config.state.join("node")))? else {
        return Ok(None);
    };
    let named = config.coordinators.iter().chain(membership.coordinators());
    Ok(Some(Belonging {
        cluster: membership.cluster(),
        node: membership.node(),
        coordinators: named.copied().collect(),
        identity: membership.identity(),
    }))
}

impl Belonging {
    /// Whether its certificate has run out.
    pub fn has_expired(&self) -> bool {
        !self.identity.is_current()
    }

    /// Opens a session with a coordinator, and closes it: the round trip.
    ///
    /// # Errors
    /// Nobody answers there, or it refuses this machine.
    pub async fn reach(&self, address: SocketAddr) -> Result<Duration, LinkError> {
        let mut identity = self.identity.clone();
        if self.has_expired() {
            // For this look only: the node keeps what it is given.
            let certificate = renew::renew(address, &identity).await?;
            identity = identity.with_certificate(certificate);
        }
        let endpoint = Endpoint::client(any_port_toward(address), identity)?;
        let session = endpoint.dial(address, Purpose::Control).await?;
        let round_trip = session.round_trip();
        // Who is shut out is told so after the handshake.
        let refused = tokio::time::timeout(round_trip * 2 + REFUSAL, session.ended()).await;
        session.close("only looking");
        endpoint.close().await;
        match refused {
            Ok(why) => Err(LinkError::Closed(why)),
            Err(_) => Ok(round_trip),
        }
    }
}
