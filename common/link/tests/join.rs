//! Joining over real sockets on loopback: who gets in, and who learns nothing.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use pomona_common::join::JoinAnswer;
use pomona_common::{ClusterId, NodeId, TokenVerifier};
use pomona_link::join::{Applicant, Joined};
use pomona_link::{Accepted, Authority, Endpoint, JoinToken, LinkError, Membership, Purpose, Role, join};

const NODE: NodeId = NodeId::from_bits(7);

fn applicant() -> Applicant {
    let folder = tempfile::tempdir().unwrap();
    Applicant::open(&folder.path().join("join.key"), NODE, "studio".into()).unwrap()
}

struct Coordinator {
    _folder: tempfile::TempDir,
    authority: Authority,
    endpoint: Endpoint,
    address: SocketAddr,
    /// Requests that came through.
    asked: AtomicUsize,
}

impl Coordinator {
    fn start(cluster: u128) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path(), ClusterId::from_bits(cluster)).unwrap();
        let identity = authority.issue(Role::Coordinator(1)).unwrap();
        let endpoint = Endpoint::server("127.0.0.1:0".parse().unwrap(), identity).unwrap();
        let address = endpoint.local_address().unwrap();
        Self {
            _folder: folder,
            authority,
            endpoint,
            address,
            asked: AtomicUsize::new(0),
        }
    }

    fn token(&self) -> JoinToken {
        JoinToken::draw(self.authority.cluster(), self.authority.print()).unwrap()
    }

    /// Serves one machine; admits who proves to know the secret behind `verifier`.
    async fn admit_one(&self, verifier: TokenVerifier) -> Result<(), LinkError> {
        let Accepted::Joining(joining) = self.endpoint.accept().await.unwrap().finish().await? else {
            panic!("not a join");
        };
        joining
            .serve(|request, proofs| async move {
                self.asked.fetch_add(1, Ordering::Relaxed);
                if !proofs.hold(&request, verifier) {
                    return JoinAnswer::Refused("no proof".into());
                }
                let certificate = self
                    .authority
                    .certify_node(request.node, &request.public_key)
                    .unwrap();
                JoinAnswer::Admitted {
                    certificate,
                    coordinators: Vec::new(),
                    approved: true,
                }
            })
            .await
    }
}

#[tokio::test]
async fn a_machine_with_a_token_becomes_a_member_and_opens_sessions() {
    let coordinator = Coordinator::start(1);
    let token = coordinator.token();
    let applicant = applicant();
    let (served, membership) = tokio::join!(
        coordinator.admit_one(token.verifier()),
        join::join(coordinator.address, &token, &applicant)
    );
    served.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("membership");
    let Joined::Node { membership, .. } = membership.unwrap() else {
        panic!("not a node");
    };
    membership.save(&place).unwrap();
    let membership = Membership::open(&place).unwrap().unwrap();
    assert_eq!(membership.coordinators(), [coordinator.address]);

    let client = Endpoint::client("127.0.0.1:0".parse().unwrap(), membership.identity()).unwrap();
    let accept = async { coordinator.endpoint.accept().await.unwrap().finish().await };
    let (accepted, dialled) = tokio::join!(accept, client.dial(coordinator.address, Purpose::Control));
    dialled.unwrap();
    let Ok(Accepted::Session(session)) = accepted else {
        panic!("no session");
    };
    assert_eq!(session.peer().role, Role::Node(NODE));
    assert_eq!(
        session.peer().key,
        join::print_of(&membership.public_key().unwrap())
    );
}

#[tokio::test]
async fn a_token_with_another_secret_is_refused() {
    let coordinator = Coordinator::start(1);
    let (token, other) = (coordinator.token(), coordinator.token());
    let applicant = applicant();
    let (_, joined) = tokio::join!(
        coordinator.admit_one(other.verifier()),
        join::join(coordinator.address, &token, &applicant)
    );
    assert!(matches!(joined, Err(LinkError::Refused(why)) if why == "no proof"));
}

/// A coordinator with another authority, even one that claims the same cluster id, sees a
/// failed handshake and nothing of the request.
#[tokio::test]
async fn nothing_is_sent_to_a_coordinator_of_another_authority() {
    let (ours, impostor) = (Coordinator::start(1), Coordinator::start(1));
    let token = ours.token();
    let applicant = applicant();
    let (served, joined) = tokio::join!(
        impostor.admit_one(token.verifier()),
        join::join(impostor.address, &token, &applicant)
    );
    assert!(served.is_err());
    assert!(joined.is_err());
    assert_eq!(impostor.asked.load(Ordering::Relaxed), 0);
}

/// Who has a certificate does not join.
#[tokio::test]
async fn a_member_is_refused_on_the_join_protocol() {
    let coordinator = Coordinator::start(1);
    let identity = coordinator.authority.issue(Role::Node(NODE)).unwrap();
    let client = Endpoint::client("127.0.0.1:0".parse().unwrap(), identity).unwrap();
    let accept = async {
        coordinator
            .endpoint
            .accept()
            .await
            .unwrap()
            .finish()
            .await
            .is_err()
    };
    let (refused, _) = tokio::join!(accept, client.dial(coordinator.address, Purpose::Join));
    assert!(refused);
}
