//! Certificates that have run out, on clocks that are moved.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test")]

use std::net::SocketAddr;
use std::path::PathBuf;

use pomona_common::renew::RenewAnswer;
use pomona_common::{ClusterId, NodeId};
use pomona_link::{Accepted, Authority, Endpoint, Identity, LinkError, Purpose, Role, renew};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// The clock of this process.
struct Clock(PathBuf);

impl Clock {
    fn set(&self, seconds: u64) {
        std::fs::write(&self.0, seconds.to_string()).unwrap();
    }
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A coordinator with a fresh certificate that renews whatever is proved to it, once.
async fn ask(authority: &Authority, identity: &Identity) -> Result<String, LinkError> {
    let own = authority.issue(Role::Coordinator(1)).unwrap();
    let server = Endpoint::server(loopback(), own).unwrap();
    let address = server.local_address().unwrap();
    let serve = async {
        let Ok(Accepted::Renewing(renewing)) = server.accept().await.unwrap().finish().await else {
            panic!("who has no certificate does not get a session");
        };
        let decide = |renewal: renew::Renewal| async move {
            let certificate = authority.certify_node(renewal.node, &renewal.public_key).unwrap();
            RenewAnswer::Renewed { certificate }
        };
        let _ = renewing.serve(decide).await;
    };
    let (renewed, ()) = tokio::join!(renew::renew(address, identity), serve);
    renewed
}

async fn gets_in(authority: &Authority, identity: Identity) -> bool {
    let own = authority.issue(Role::Coordinator(1)).unwrap();
    let server = Endpoint::server(loopback(), own).unwrap();
    let client = Endpoint::client(loopback(), identity).unwrap();
    let address = server.local_address().unwrap();
    let accept = async { server.accept().await.unwrap().finish().await.is_ok() };
    let (accepted, _) = tokio::join!(accept, client.dial(address, Purpose::Control));
    accepted
}

/// The clock of this process is one for all tests.
static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn clock() -> Clock {
    static FOLDER: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().unwrap());
    let clock = Clock(folder.path().join("slept"));
    pomona_clocks::follow_script(clock.0.clone());
    clock.set(0);
    clock
}

/// A session outlives the certificate that it began with, which whoever serves it can tell.
#[tokio::test]
async fn a_session_is_vouched_for_as_long_as_its_certificate() {
    let _one = ONE.lock().await;
    let (clock, folder) = (clock(), tempfile::tempdir().unwrap());
    let authority = Authority::open_or_create(folder.path(), ClusterId::from_bits(1)).unwrap();
    let own = authority.issue(Role::Coordinator(1)).unwrap();
    let server = Endpoint::server(loopback(), own).unwrap();
    let node = authority.issue(Role::Node(NodeId::from_bits(7))).unwrap();
    let client = Endpoint::client(loopback(), node).unwrap();
    let address = server.local_address().unwrap();
    let accept = async { server.accept().await.unwrap().finish().await };
    let (accepted, _dialled) = tokio::join!(accept, client.dial(address, Purpose::Control));
    let Ok(Accepted::Session(session)) = accepted else {
        panic!("a member gets a session");
    };
    assert!(authority.vouches_for(&session));
    clock.set(23 * HOUR);
    assert!(authority.vouches_for(&session));
    clock.set(25 * HOUR);
    assert!(!authority.vouches_for(&session));
}

#[tokio::test]
async fn a_certificate_that_ran_out_is_renewed_within_the_grace_by_its_key() {
    let _one = ONE.lock().await;
    let (clock, folder) = (clock(), tempfile::tempdir().unwrap());
    let authority = Authority::open_or_create(folder.path(), ClusterId::from_bits(1)).unwrap();
    let stranger_folder = tempfile::tempdir().unwrap();
    let stranger = Authority::open_or_create(stranger_folder.path(), ClusterId::from_bits(1)).unwrap();
    let node = Role::Node(NodeId::from_bits(7));
    let identity = authority.issue(node).unwrap();
    let of_stranger = stranger.issue(node).unwrap();
    let of_coordinator = authority.issue(Role::Coordinator(2)).unwrap();
    assert!(identity.is_current() && gets_in(&authority, identity.clone()).await);

    clock.set(25 * HOUR);
    assert!(!identity.is_current());
    assert!(!gets_in(&authority, identity.clone()).await, "it has run out");
    for hours in [25, 3 * 24, 13 * 24] {
        clock.set(hours * HOUR);
        let renewed = ask(&authority, &identity).await;
        assert!(renewed.is_ok(), "after {hours} hours: {renewed:?}");
        let renewed = identity.clone().with_certificate(renewed.unwrap());
        assert!(renewed.is_current() && gets_in(&authority, renewed).await);
    }
    let swapped = identity
        .clone()
        .with_certificate(ask(&authority, &identity).await.unwrap());
    let other_key = authority
        .issue(node)
        .unwrap()
        .with_certificate(swapped.certificate_pem().to_owned());
    for (whose, what) in [
        (&of_stranger, "of another authority"),
        (&of_coordinator, "of a coordinator"),
        (&other_key, "of somebody else's key"),
    ] {
        // The stranger does not even find a coordinator that it trusts.
        let refused = ask_whoever(&authority, whose).await;
        assert!(refused.is_err(), "{what}: {refused:?}");
    }
    clock.set(16 * DAY);
    let refused = ask(&authority, &identity).await;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("join anew"), "{why}");
}

/// As [`ask`], where the handshake may fail already.
async fn ask_whoever(authority: &Authority, identity: &Identity) -> Result<String, LinkError> {
    let own = authority.issue(Role::Coordinator(1)).unwrap();
    let server = Endpoint::server(loopback(), own).unwrap();
    let address = server.local_address().unwrap();
    let serve = async {
        if let Ok(Accepted::Renewing(renewing)) = server.accept().await.unwrap().finish().await {
            let certificate = String::new();
            let _ = renewing
                .serve(|_| async { RenewAnswer::Renewed { certificate } })
                .await;
        }
    };
    tokio::join!(renew::renew(address, identity), serve).0
}
