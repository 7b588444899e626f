//! Many callers write at once while Raft publishes its metrics with every commit: nobody who looks at them
//! may keep it from going on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

#[path = "support/disk.rs"]
mod disk;

use std::sync::mpsc;
use std::time::Duration;

use disk::{Disk, History, leading};
use pomona_common::{ClusterId, NodeId, limits};
use pomona_decide::{Command, Reply};
use pomona_raft::{RaftError, Replica};
use tokio::task::JoinSet;

const WRITERS: u64 = 8;
/// Of each writer: a lock that one caller took twice stopped everything within some hundreds.
const COMMANDS: u64 = 400;
/// Far longer than they take.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn writers_at_the_same_moment_do_not_stop_each_other() {
    let (done, all_done) = mpsc::sync_channel(1);
    // On a thread of its own: when threads wait for each other, the runtime's clock stands still too.
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(4).enable_all().build().unwrap();
        runtime.block_on(write_all());
        done.send(()).unwrap();
    });
    all_done.recv_timeout(PATIENCE).expect("all have written");
}

async fn write_all() {
    let history = History::default();
    let log = Disk::database(0, Vec::new(), &history).unwrap();
    let machine = Disk::database(1, Vec::new(), &history).unwrap();
    let replica = leading(log, machine).await;
    let founded = replica.write(Command::Found(ClusterId::from_bits(5))).await;
    assert_eq!(founded.unwrap(), Reply::Done);

    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let replica = replica.clone();
        let node = NodeId::from_bits(u128::from(writer));
        writers.spawn(async move {
            for turn in 0..COMMANDS {
                let name = format!("node {writer} of turn {turn}");
                let command = if turn == 0 {
                    Command::AdmitNode {
                        id: node,
                        name,
                        now_s: 1,
                    }
                } else {
                    Command::RenameNode { node, name }
                };
                assert_eq!(replica.write(command).await.unwrap(), Reply::Done);
            }
        });
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap();
    }
    write_more_than_is_remembered(&replica).await;
    replica.stop().await;
}

/// More at the same moment than are remembered: the last ones come too late to tell whether they were
/// carried out before, which is no refusal.
async fn write_more_than_is_remembered(replica: &Replica) {
    let mut writers = JoinSet::new();
    for turn in 0..4 * limits::RAFT_RECENT {
        let replica = replica.clone();
        let node = NodeId::from_bits(0);
        let name = format!("node at once {turn}");
        writers.spawn(async move { replica.write(Command::RenameNode { node, name }).await });
    }
    let (mut done, mut unknown) = (0, 0);
    while let Some(written) = writers.join_next().await {
        match written.unwrap() {
            Ok(Reply::Done) => done += 1,
            Err(RaftError::Unknown) => unknown += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(done > 0 && unknown > 0, "{done} done, {unknown} not known");
}
