//! Who gets what from whom: every kind of client, for every purpose, at every kind of server.

use std::net::SocketAddr;
use std::sync::Arc;

use pomona_common::{ClusterId, NodeId};

use crate::identity::{Identity, Role};
use crate::join::PinnedAuthority;
use crate::{Accepted, Authority, Endpoint, Purpose, tls};

/// Who dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    /// A machine without certificate.
    Nobody,
    Node,
    Coordinator,
    /// With the right names, from an authority of its own.
    NodeOfOthers,
    CoordinatorOfOthers,
}

/// What it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gets {
    Session,
    Joining,
    Renewing,
    Nothing,
}

const CLIENTS: [Client; 5] = [
    Client::Nobody,
    Client::Node,
    Client::Coordinator,
    Client::NodeOfOthers,
    Client::CoordinatorOfOthers,
];

/// What design and `security.md` allow; everything else is nothing.
fn allowed(client: Client, purpose: Purpose, at_a_node: bool) -> Gets {
    match (client, purpose, at_a_node) {
        (Client::Nobody, Purpose::Join, false) => Gets::Joining,
        (Client::Nobody, Purpose::Renew, false) => Gets::Renewing,
        (Client::Node, Purpose::Control | Purpose::Relay | Purpose::Give, false)
        | (Client::Coordinator, Purpose::Raft, false)
        | (Client::Node, Purpose::Weights, true) => Gets::Session,
        _ => Gets::Nothing,
    }
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// Dials as this client, whatever a client of ours would refuse by itself.
async fn dial(identity: Option<&Identity>, own: &Authority, at: SocketAddr, purpose: Purpose, name: &str) {
    let protocols = purpose.protocols(u16::MAX);
    let config = match identity {
        Some(identity) => {
            tls::client_config_trusting(identity, Arc::new(PinnedAuthority(own.print())), protocols)
        }
        None => tls::join_config(Arc::new(PinnedAuthority(own.print())), protocols),
    };
    let endpoint = quinn::Endpoint::client(loopback());
    let (Ok(config), Ok(endpoint)) = (config, endpoint) else {
        return;
    };
    if let Ok(connecting) = endpoint.connect_with(config, at, name)
        && let Ok(connection) = connecting.await
    {
        connection.closed().await;
    }
}

async fn meets(
    server: Identity,
    client: Option<&Identity>,
    own: &Authority,
    purpose: Purpose,
) -> Result<Gets, Box<dyn std::error::Error>> {
    let name = server.role().server_name(own.cluster());
    let server = Endpoint::server(loopback(), server)?;
    let at = server.local_address()?;
    let accept = async {
        let incoming = server.accept().await?;
        Some(match incoming.finish().await {
            Ok(Accepted::Session(_)) => Gets::Session,
            Ok(Accepted::Joining(_)) => Gets::Joining,
            Ok(Accepted::Renewing(_)) => Gets::Renewing,
            Err(_) => Gets::Nothing,
        })
    };
    let dialling = dial(client, own, at, purpose, &name);
    let gets = tokio::select! {
        gets = accept => gets,
        () = async {
            dialling.await;
            // The server has the last word.
            std::future::pending::<()>().await;
        } => None,
    };
    Ok(gets.unwrap_or(Gets::Nothing))
}

#[tokio::test]
async fn every_client_gets_what_it_may_and_nothing_else() -> Result<(), Box<dyn std::error::Error>> {
    let (own_folder, other_folder) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let cluster = ClusterId::from_bits(1);
    let own = Authority::open_or_create(own_folder.path(), cluster)?;
    let others = Authority::open_or_create(other_folder.path(), cluster)?;
    let node = Role::Node(NodeId::from_bits(7));
    let mut cells = 0;
    for at_a_node in [false, true] {
        for client in CLIENTS {
            let identity = match client {
                Client::Nobody => None,
                Client::Node => Some(own.issue(node)?),
                Client::Coordinator => Some(own.issue(Role::Coordinator(2))?),
                Client::NodeOfOthers => Some(others.issue(node)?),
                Client::CoordinatorOfOthers => Some(others.issue(Role::Coordinator(2))?),
            };
            for purpose in Purpose::ALL {
                let server = if at_a_node { node } else { Role::Coordinator(1) };
                let gets = meets(own.issue(server)?, identity.as_ref(), &own, purpose).await?;
                let wanted = allowed(client, purpose, at_a_node);
                assert_eq!(gets, wanted, "{client:?} for {purpose:?} at {server}");
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 2 * CLIENTS.len() * Purpose::ALL.len());
    Ok(())
}
