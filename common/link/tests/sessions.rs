//! Sessions over real sockets on loopback.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test")]

use std::time::Duration;

use pomona_common::control::{self, CoordinatorMessage, NodeMessage};
use pomona_common::{ClusterId, NodeId};
use pomona_link::{Accepted, Authority, Endpoint, Purpose, Role};

const LOOPBACK: &str = "127.0.0.1:0";

fn authority(cluster: u128) -> (tempfile::TempDir, Authority) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(folder.path(), ClusterId::from_bits(cluster)).unwrap();
    (folder, authority)
}

#[tokio::test]
async fn a_node_and_a_coordinator_of_one_cluster_talk() {
    let (folder, authority) = authority(1);
    let authority_again = Authority::open(folder.path()).unwrap();
    let server = Endpoint::server(
        LOOPBACK.parse().unwrap(),
        authority.issue(Role::Coordinator(1)).unwrap(),
    )
    .unwrap();
    let role = Role::Node(NodeId::from_bits(7));
    let client = Endpoint::client(LOOPBACK.parse().unwrap(), authority_again.issue(role).unwrap()).unwrap();
    let address = server.local_address().unwrap();
    let serve = async {
        let accepted = server.accept().await.unwrap().finish().await.unwrap();
        let Accepted::Session(session) = accepted else {
            panic!("a member does not join");
        };
        assert_eq!(session.peer().role, role);
        let (mut send, mut receive) = session.accept().await.unwrap();
        let hello: NodeMessage = receive.expect(Duration::from_secs(2)).await.unwrap();
        assert!(matches!(hello, NodeMessage::Store { .. }));
        send.send(&CoordinatorMessage::Welcome { version: "1".into() })
            .await
            .unwrap();
        session.ended().await;
    };
    let ask = async {
        let session = client.dial(address, Purpose::Control).await.unwrap();
        let (mut send, mut receive) = session.open().await.unwrap();
        send.send(&NodeMessage::Store { models: vec![] }).await.unwrap();
        let welcome: CoordinatorMessage = receive.expect(Duration::from_secs(2)).await.unwrap();
        assert!(matches!(welcome, CoordinatorMessage::Welcome { .. }));
        session.close("done");
    };
    tokio::join!(serve, ask);
}

/// Role × purpose: a node may not speak Raft, a coordinator may not pose as a node, and nobody
/// of another cluster gets in.
#[tokio::test]
async fn a_session_with_the_wrong_role_or_cluster_is_refused() {
    let (_own, authority_own) = authority(1);
    let (_other, authority_other) = authority(2);
    let node = Role::Node(NodeId::from_bits(7));
    let cases = [
        (&authority_own, node, Purpose::Raft),
        (&authority_own, Role::Coordinator(2), Purpose::Control),
        (&authority_other, node, Purpose::Control),
        (&authority_other, Role::Coordinator(2), Purpose::Raft),
    ];
    for (authority, role, purpose) in cases {
        let server = Endpoint::server(
            LOOPBACK.parse().unwrap(),
            authority_own.issue(Role::Coordinator(1)).unwrap(),
        )
        .unwrap();
        let client = Endpoint::client(LOOPBACK.parse().unwrap(), authority.issue(role).unwrap()).unwrap();
        let address = server.local_address().unwrap();
        let accepted = async { server.accept().await.unwrap().finish().await.is_ok() };
        let (accepted, _) = tokio::join!(accepted, client.dial(address, purpose));
        assert!(!accepted, "{role} got in for {purpose:?}");
    }
}

/// A cluster is updated one machine after the other: both ends speak what both know, and a peer is
/// not sent what it does not know.
#[tokio::test]
async fn ends_of_two_versions_speak_the_older_one() {
    let (_folder, authority) = authority(1);
    let role = Role::Node(NodeId::from_bits(7));
    for (newest_server, newest_client, both) in [
        (1, u16::MAX, 1),
        (u16::MAX, 1, 1),
        (u16::MAX, u16::MAX, control::PROTOCOL),
    ] {
        let coordinator = authority.issue(Role::Coordinator(1)).unwrap();
        let server = Endpoint::server(LOOPBACK.parse().unwrap(), coordinator).unwrap();
        let server = server.speak_at_most(newest_server).unwrap();
        let client = Endpoint::client(LOOPBACK.parse().unwrap(), authority.issue(role).unwrap()).unwrap();
        let client = client.speak_at_most(newest_client).unwrap();
        let address = server.local_address().unwrap();
        let serve = async {
            let Ok(Accepted::Session(session)) = server.accept().await.unwrap().finish().await else {
                panic!("a member gets a session");
            };
            let (mut send, mut receive) = session.accept().await.unwrap();
            let _: NodeMessage = receive.expect(Duration::from_secs(2)).await.unwrap();
            send.send(&CoordinatorMessage::Evict).await.unwrap();
            send.send(&CoordinatorMessage::Members(vec![])).await.unwrap();
            send.finish();
            session.ended().await;
            session.version()
        };
        let ask = async {
            let session = client.dial(address, Purpose::Control).await.unwrap();
            let (mut send, mut receive) = session.open().await.unwrap();
            send.send(&NodeMessage::Store { models: vec![] }).await.unwrap();
            let mut heard = Vec::new();
            while let Some(message) = receive.next::<CoordinatorMessage>().await.unwrap() {
                heard.push(message);
            }
            session.close("done");
            (session.version(), heard)
        };
        let (server_speaks, (client_speaks, heard)) = tokio::join!(serve, ask);
        assert_eq!((server_speaks, client_speaks), (both, both));
        assert_eq!(heard.contains(&CoordinatorMessage::Evict), both >= 2, "{heard:?}");
        assert!(heard.contains(&CoordinatorMessage::Members(vec![])));
    }
}
