//! What a member may say: every message of both roles, in every place of a session with a
//! coordinator, sent by a real node's key.

use std::time::Duration;

use pomona_common::control::{CoordinatorMessage, NodeMessage, StreamRequest};
use pomona_common::{Generation, GenerationEvent, NodeId};
use pomona_link::{Endpoint, FrameReceiver, FrameSender, Membership, Purpose, Session, any_port_toward};
use pomona_tests::{Machine, eventually};
use pomona_wire::Message;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);
/// A refusal comes at once; who is not refused within this time stays.
const REFUSED: Duration = Duration::from_millis(700);

struct Member {
    membership: Membership,
    at: std::net::SocketAddr,
}

/// A session whose ends are kept open.
struct Talk {
    session: Session,
    send: FrameSender,
    receive: FrameReceiver,
    _endpoint: Endpoint,
}

impl Member {
    async fn dial(&self) -> Talk {
        let endpoint = Endpoint::client(any_port_toward(self.at), self.membership.identity()).unwrap();
        let session = endpoint.dial(self.at, Purpose::Control).await.unwrap();
        let (send, receive) = session.open().await.unwrap();
        Talk {
            session,
            send,
            receive,
            _endpoint: endpoint,
        }
    }

    /// As [`Member::dial`], with a hello that was answered.
    async fn taken_in(&self) -> Talk {
        let mut talk = self.dial().await;
        talk.send.send(&hello()).await.unwrap();
        let welcome: CoordinatorMessage = talk.receive.expect(SOON).await.unwrap();
        assert!(matches!(welcome, CoordinatorMessage::Welcome { .. }));
        talk
    }
}

impl Talk {
    async fn say<M: Message>(&mut self, message: &M) {
        // What the peer's version does not know would be left out.
        let frame = pomona_wire::encode(message).unwrap();
        let _ = self.send.send_bytes(&frame).await;
    }

    /// Whether the coordinator ends the session.
    async fn ends(&self) -> bool {
        timeout(REFUSED, self.session.ended()).await.is_ok()
    }
}

fn hello() -> NodeMessage {
    NodeMessage::Hello {
        name: "impostor".into(),
        version: "0".into(),
        instance: 1,
        models: Vec::new(),
    }
}

/// Every message of a node but the hello, with whether a session that stands survives it.
fn of_nodes(own_key: &[u8]) -> Vec<(NodeMessage, bool)> {
    vec![
        (hello(), true),
        (NodeMessage::Store { models: Vec::new() }, true),
        (NodeMessage::Report(Box::default()), true),
        (NodeMessage::Serves { port: 1 }, true),
        (NodeMessage::Woke { slept_ms: u64::MAX }, true),
        // It was not told to: it stays a member.
        (NodeMessage::Evicted, true),
        (
            NodeMessage::Renew {
                public_key: own_key.to_vec(),
            },
            true,
        ),
        // A certificate for somebody else's key.
        (
            NodeMessage::Renew {
                public_key: vec![4; 65],
            },
            false,
        ),
    ]
}

/// Every message of a coordinator: none is a node's to send.
fn of_coordinators() -> Vec<CoordinatorMessage> {
    vec![
        CoordinatorMessage::Welcome { version: "0".into() },
        CoordinatorMessage::Target(Default::default()),
        CoordinatorMessage::Renewed {
            certificate: String::new(),
        },
        CoordinatorMessage::Coordinators(vec![(9, ([127, 0, 0, 1], 9).into())]),
        CoordinatorMessage::Catalogue {
            applied: u64::MAX,
            models: Vec::new(),
        },
        CoordinatorMessage::Members(vec![NodeId::from_bits(9)]),
        CoordinatorMessage::Lease {
            applied: u64::MAX,
            ends_s: Some(1),
        },
        CoordinatorMessage::Evict,
    ]
}

#[test]
fn every_message_is_taken_from_whom_it_may_come_and_nobody_else() {
    let _lock = super::engine_lock();
    let mut coordinator = Machine::empty();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let machine = Machine::empty();
    machine.join(&coordinator, &["token", "create", "--name", "mini"]);
    let folder = machine.state.path().join("node/membership");
    let member = Member {
        membership: Membership::open(&folder).unwrap().unwrap(),
        at: coordinator.quic().parse().unwrap(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        first_messages(&member).await;
        later_messages(&member).await;
        request_streams(&member).await;
    });
    let nodes = coordinator.json(&["nodes"]);
    let names: Vec<&str> = nodes
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|node| node["name"].as_str())
        .collect();
    assert_eq!(names, ["mini"], "nobody came in or was shut out");
}

/// A session begins with a hello.
async fn first_messages(member: &Member) {
    let key = member.membership.public_key().unwrap();
    for (message, _) in of_nodes(&key) {
        let mut talk = member.dial().await;
        talk.say(&message).await;
        let is_hello = matches!(message, NodeMessage::Hello { .. });
        assert_eq!(talk.ends().await, !is_hello, "{message:?} as the first message");
    }
    for message in of_coordinators() {
        let mut talk = member.dial().await;
        talk.say(&message).await;
        assert!(talk.ends().await, "{message:?} as the first message");
    }
}

async fn later_messages(member: &Member) {
    let key = member.membership.public_key().unwrap();
    for (message, stays) in of_nodes(&key) {
        let mut talk = member.taken_in().await;
        talk.say(&message).await;
        assert_eq!(talk.ends().await, !stays, "{message:?} after the hello");
        talk.session.close("done");
    }
    for message in of_coordinators() {
        let mut talk = member.taken_in().await;
        talk.say(&message).await;
        assert!(talk.ends().await, "{message:?} after the hello");
    }
}

/// What is wrong with a request ends its stream, and not the session.
async fn request_streams(member: &Member) {
    let talk = member.taken_in().await;
    let model = "no/such".parse().unwrap();
    let (mut send, mut receive) = talk.session.open().await.unwrap();
    let canary = Box::new(Generation::canary("no/such".parse().unwrap()));
    send.send(&StreamRequest::Generate(canary)).await.unwrap();
    let event: GenerationEvent = receive.expect(SOON).await.unwrap();
    assert!(matches!(event, GenerationEvent::Failed(_)), "{event:?}");
    let (mut send, mut receive) = talk.session.open().await.unwrap();
    send.send(&StreamRequest::FetchText(model)).await.unwrap();
    let bundle = receive.expect::<pomona_common::control::TextBundle>(SOON).await;
    assert!(bundle.is_err(), "{bundle:?}");
    for message in of_coordinators() {
        let (mut send, mut receive) = talk.session.open().await.unwrap();
        let frame = pomona_wire::encode(&message).unwrap();
        send.send_bytes(&frame).await.unwrap();
        let answer = timeout(SOON, receive.next::<GenerationEvent>()).await.unwrap();
        assert!(
            !matches!(answer, Ok(Some(_))),
            "{message:?} as a request: {answer:?}"
        );
    }
    assert!(talk.session.is_open());
}
