//! A disk that gets full at some byte: nothing hangs, nothing is acknowledged that is not there after
//! the restart, and whoever asks is told that it is the disk.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

#[path = "support/disk.rs"]
mod disk;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk::{Disk, History, leading};
use pomona_common::{ClusterId, NodeId};
use pomona_decide::{Command, Reply};
use pomona_raft::{RaftError, Replica};

/// Places at which the disk is full.
const POINTS: u64 = 20;
/// Nobody waits longer for the bad news.
const AT_ONCE: Duration = Duration::from_secs(3);

type Content = [Arc<Mutex<Vec<u8>>>; 2];

async fn start(content: &Content, room: &Arc<AtomicU64>) -> Replica {
    let history = History::default();
    let [log, machine] = [0, 1].map(|i| Disk::with_room(i, &content[i], &history, room).unwrap());
    leading(log, machine).await
}

fn admit(i: u64) -> Command {
    Command::AdmitNode {
        id: NodeId::from_bits(u128::from(i)),
        name: format!("node {i}"),
        now_s: i,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_named_and_loses_nothing() {
    for point in 0..POINTS {
        let (content, room) = (Content::default(), Arc::new(AtomicU64::new(u64::MAX)));
        let replica = start(&content, &room).await;
        let found = Command::Found(ClusterId::from_bits(5));
        assert_eq!(replica.write(found).await.unwrap(), Reply::Done);
        // From the first byte of a write to the middle of the third one.
        room.store(point * 2500, Ordering::Relaxed);
        let mut acknowledged = 0;
        let error = loop {
            let began = Instant::now();
            match replica.write(admit(acknowledged)).await {
                Ok(reply) => assert_eq!(reply, Reply::Done),
                Err(error) => {
                    assert!(began.elapsed() < AT_ONCE, "point {point}: {:?}", began.elapsed());
                    break error;
                }
            }
            acknowledged += 1;
            assert!(acknowledged < 1000, "the disk never gets full");
        };
        assert!(matches!(error, RaftError::Stopped(_)), "point {point}: {error}");
        assert!(error.to_string().contains("disk"), "{error}");
        assert!(replica.stopped().is_some());
        // What is known is still there to route by.
        assert_eq!(
            replica.state().borrow().nodes.len() as u64,
            acknowledged,
            "point {point}"
        );
        replica.stop().await;
        drop(replica);

        room.store(u64::MAX, Ordering::Relaxed);
        let replica = start(&content, &room).await;
        let state = replica.read().await.unwrap();
        for i in 0..acknowledged {
            assert!(
                state.nodes.contains_key(&NodeId::from_bits(u128::from(i))),
                "point {point}: {i} is gone"
            );
        }
        assert_eq!(
            replica.write(admit(5000)).await.unwrap(),
            Reply::Done,
            "it goes on"
        );
        replica.stop().await;
    }
}
