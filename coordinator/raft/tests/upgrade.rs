//! A newer leader and an older follower: nothing that the older one cannot read reaches it, and what it
//! does not know is refused with its number, until it is updated.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::{EmptyNode, SnapshotMeta, Vote};
use pomona_common::{ClusterId, NodeId};
use pomona_decide::{Command, MemberChange, Reply};
use pomona_raft::{CallError, Replica, ReplicaConfig, RpcKind, Transport};

/// Version of the older program.
const OLDER: u16 = 5;

/// Carries calls between replicas in this process, and sees to it that an older one gets nothing newer.
#[derive(Clone, Default)]
struct Wire {
    replicas: Arc<Mutex<BTreeMap<u64, Replica>>>,
    /// Version of the second one.
    version: Arc<AtomicU16>,
    sent: Arc<Mutex<u64>>,
    /// How many snapshots of a state began.
    snapshots: Arc<Mutex<u64>>,
}

/// The version of the state that a snapshot holds, when the call carries its beginning.
fn begins_snapshot(kind: RpcKind, body: &[u8]) -> Option<u8> {
    /// openraft's `InstallSnapshotRequest`, field by field.
    type Chunk = (Vote<u64>, SnapshotMeta<u64, EmptyNode>, u64, Vec<u8>, bool);
    if kind != RpcKind::Snapshot {
        return None;
    }
    let (_, _, offset, data, _): Chunk = pomona_wire::stored::decode(body).unwrap();
    (offset == 0).then(|| data[0])
}

#[derive(Clone)]
struct End {
    own: u64,
    wire: Wire,
}

impl Transport for End {
    fn peers(&self) -> Vec<u64> {
        let replicas = self.wire.replicas.lock().unwrap();
        replicas
            .keys()
            .copied()
            .filter(|peer| *peer != self.own)
            .collect()
    }

    fn version(&self, peer: u64) -> Option<u16> {
        let newest = u16::from(pomona_wire::stored::VERSION);
        Some(if peer == 2 {
            self.wire.version.load(Ordering::Relaxed)
        } else {
            newest
        })
    }

    async fn call(&self, peer: u64, kind: RpcKind, body: Vec<u8>) -> Result<Vec<u8>, CallError> {
        let replica = self.wire.replicas.lock().unwrap().get(&peer).cloned();
        let replica = replica.ok_or(CallError::NotConnected)?;
        if let Some(version) = body.first().filter(|_| peer == 2) {
            *self.wire.sent.lock().unwrap() += 1;
            let known = self.wire.version.load(Ordering::Relaxed);
            assert!(u16::from(*version) <= known, "{kind:?} of version {version}");
            if let Some(state) = begins_snapshot(kind, &body) {
                assert!(u16::from(state) <= known, "a state of version {state}");
                *self.wire.snapshots.lock().unwrap() += 1;
            }
        }
        let answer = replica.serve(kind, &body).await;
        answer.map_err(|error| CallError::Unanswered(io::Error::other(error.to_string())))
    }
}

async fn start(id: u64, folder: &std::path::Path, wire: &Wire) -> Replica {
    let folder = folder.join(id.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    let end = End {
        own: id,
        wire: wire.clone(),
    };
    let replica = Replica::start(ReplicaConfig { id, folder }, end).await.unwrap();
    wire.replicas.lock().unwrap().insert(id, replica.clone());
    replica
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_coordinator_is_sent_nothing_that_it_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let wire = Wire::default();
    wire.version.store(OLDER, Ordering::Relaxed);
    let newer = start(1, folder.path(), &wire).await;
    newer.found().await.unwrap();
    assert!(newer.wait_for_leader(Duration::from_secs(10)).await);
    let node = NodeId::from_bits(7);
    let admit = Command::AdmitNode {
        id: node,
        name: "mini-7".into(),
        now_s: 1,
    };
    for command in [Command::Found(ClusterId::from_bits(1)), admit] {
        assert_eq!(newer.write(command).await.unwrap(), Reply::Done);
    }
    // A snapshot, so that the older one gets state, and not only the log.
    newer.compact(Duration::from_secs(10)).await.unwrap();
    let older = start(2, folder.path(), &wire).await;
    newer.change_members(MemberChange::AddLearner(2)).await.unwrap();
    let mut seen = older.state();
    let caught_up = seen.wait_for(|state| state.nodes.contains_key(&node));
    tokio::time::timeout(Duration::from_secs(10), caught_up)
        .await
        .expect("it catches up")
        .unwrap();

    let doubt = Command::DoubtNode(node);
    for replica in [&newer, &older] {
        let refused = replica.write(doubt.clone()).await.unwrap();
        assert!(
            matches!(&refused, Reply::Refused(why) if why.contains("coordinator 2")),
            "{refused:?}"
        );
    }
    // What it does know still goes.
    let renamed = Command::RenameNode {
        node,
        name: "mini 8".into(),
    };
    assert_eq!(newer.write(renamed).await.unwrap(), Reply::Done);
    assert!(*wire.sent.lock().unwrap() > 0);
    assert!(*wire.snapshots.lock().unwrap() > 0, "it got the log only");

    wire.version
        .store(pomona_wire::stored::VERSION.into(), Ordering::Relaxed);
    assert_eq!(older.write(doubt).await.unwrap(), Reply::Done);
    assert!(older.state().borrow().late.contains(&node));
    for replica in [newer, older] {
        replica.stop().await;
    }
}
