//! Durability, shown on a disk that forgets: at every sync point, and between, the machine loses
//! power, and writes that were not synced are kept, dropped or torn at random. What was
//! acknowledged before is there after the restart, or the restart refuses by name. (`kill -9`
//! shows nothing of this: the page cache survives it.)
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

#[path = "support/disk.rs"]
mod disk;

use std::time::Duration;

use disk::{Alone, Disk, History, Image, Operation, config, leading};
use pomona_common::{ClusterId, NodeId};
use pomona_decide::{Command, Move, PlanStep, Reply};
use pomona_raft::Replica;

/// Commands that are written, each acknowledged before the next: members, and steps of the plan.
const COMMANDS: u64 = 24;
/// After so many of them a snapshot takes the place of the log before it.
const SNAPSHOTS: [u64; 2] = [9, 17];
/// Ways the unsynced writes go at each instant.
const VARIANTS: u64 = 3;

/// Even ones admit a node, odd ones take a step of the plan.
fn command(i: u64) -> Command {
    let node = NodeId::from_bits(u128::from(i));
    if i.is_multiple_of(2) {
        return Command::AdmitNode {
            id: node,
            name: format!("node {i}"),
            now_s: i,
        };
    }
    let load = Move {
        model: format!("model-{i}").parse().unwrap(),
        node: NodeId::from_bits(u128::from(i - 1)),
        load: true,
        reason: "stored here and fits".into(),
    };
    let step = PlanStep {
        parent: i / 2,
        moves: vec![load],
        welcome: Vec::new(),
    };
    Command::Replan { step, now_s: i }
}

/// Writes all commands on recording disks; gives the history.
async fn record() -> Vec<Operation> {
    let history = History::default();
    let log = Disk::database(0, Vec::new(), &history).unwrap();
    let machine = Disk::database(1, Vec::new(), &history).unwrap();
    let replica = leading(log, machine).await;
    assert_eq!(
        replica
            .write(Command::Found(ClusterId::from_bits(5)))
            .await
            .unwrap(),
        Reply::Done
    );
    for i in 0..COMMANDS {
        assert_eq!(replica.write(command(i)).await.unwrap(), Reply::Done);
        history.lock().unwrap().push(Operation::Acknowledged(i));
        if SNAPSHOTS.contains(&(i + 1)) {
            history.lock().unwrap().push(Operation::Snapshot(true));
            replica.compact(Duration::from_secs(10)).await.unwrap();
            history.lock().unwrap().push(Operation::Snapshot(false));
        }
    }
    replica.stop().await;
    let history = history.lock().unwrap();
    history.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_after_power_loss_has_everything_acknowledged_or_refuses_by_name() {
    let history = record().await;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut images = [Image::default(), Image::default()];
    let (mut acknowledged, mut restarts, mut refusals, mut syncs) = (0, 0, 0, 0);
    let (mut snapshot, mut in_snapshot, mut in_plan) = (false, 0, 0);
    for operation in &history {
        let at_sync = matches!(operation, Operation::Sync { .. });
        // At every sync point, and now and then between.
        if at_sync || random() % 16 == 0 {
            for _ in 0..VARIANTS {
                let disks = [
                    images[0].after_power_loss(&mut random),
                    images[1].after_power_loss(&mut random),
                ];
                restarts += 1;
                if let Err(problem) = restart(disks, acknowledged).await {
                    refusals += 1;
                    assert!(!problem.is_empty());
                    assert_eq!(
                        acknowledged, 0,
                        "a restart refused after acknowledgements: {problem}"
                    );
                }
            }
        }
        match operation {
            Operation::Write { disk, .. } | Operation::SetLen { disk, .. } => {
                images[*disk].unsynced.push(operation.clone());
            }
            Operation::Sync { disk } => {
                images[*disk].sync();
                syncs += 1;
                in_snapshot += u32::from(snapshot);
                in_plan += u32::from(!snapshot && acknowledged % 2 == 1);
            }
            Operation::Snapshot(begins) => snapshot = *begins,
            Operation::Acknowledged(i) => acknowledged = i + 1,
        }
    }
    assert_eq!(acknowledged, COMMANDS);
    assert!(syncs > COMMANDS, "{syncs} syncs");
    assert!(in_snapshot >= 4 && in_plan >= 20, "{in_snapshot} {in_plan}");
    println!(
        "{restarts} restarts at {syncs} sync points, {in_plan} of them in steps of the plan, {in_snapshot} in \
         snapshots; {refusals} refusals, all before the first acknowledgement"
    );
}

/// Starts on these disks and checks what is there; an error is a named refusal.
async fn restart(disks: [Vec<u8>; 2], acknowledged: u64) -> Result<(), String> {
    let history = History::default();
    let [log, machine] = disks;
    let open = |number, content| Disk::database(number, content, &history).map_err(|error| error.to_string());
    let (log, machine) = (open(0, log)?, open(1, machine)?);
    let replica = Replica::start_on(config(), log, machine, Alone)
        .await
        .map_err(|error| error.to_string())?;
    let state = replica.state().borrow().clone();
    assert!(
        state.plan.id >= acknowledged / 2,
        "an acknowledged step of the plan is gone"
    );
    for i in (0..acknowledged).step_by(2) {
        let id = NodeId::from_bits(u128::from(i));
        let found = state.nodes.get(&id).map(|node| node.name.clone());
        assert_eq!(found, Some(format!("node {i}")), "acknowledged, and gone");
        let model = format!("model-{}", i + 1).parse().unwrap();
        let planned = state
            .plan
            .nodes
            .get(&id)
            .is_some_and(|target| target.models.contains_key(&model));
        assert!(planned || i + 1 >= acknowledged, "step {i} of the plan is gone");
    }
    replica.stop().await;
    Ok(())
}
