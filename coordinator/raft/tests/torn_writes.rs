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

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pomona_common::{ClusterId, NodeId};
use pomona_decide::{Command, Reply};
use pomona_raft::{CallError, Replica, ReplicaConfig, RpcKind, Transport};
use redb::{Database, StorageBackend};

/// Commands that are written, each acknowledged before the next.
const COMMANDS: u64 = 24;
/// Ways the unsynced writes go at each instant.
const VARIANTS: u64 = 3;

#[derive(Debug, Clone)]
enum Operation {
    Write { disk: usize, offset: u64, data: Vec<u8> },
    SetLen { disk: usize, len: u64 },
    Sync { disk: usize },
    Acknowledged(u64),
}

/// Everything that happened to both disks, in order.
type History = Arc<Mutex<Vec<Operation>>>;

#[derive(Debug)]
struct Disk {
    number: usize,
    content: Mutex<Vec<u8>>,
    history: History,
}

impl Disk {
    fn database(
        number: usize,
        content: Vec<u8>,
        history: &History,
    ) -> Result<Arc<Database>, redb::DatabaseError> {
        let disk = Disk {
            number,
            content: Mutex::new(content),
            history: history.clone(),
        };
        let mut builder = Database::builder();
        builder.set_cache_size(1 << 20);
        builder.create_with_backend(disk).map(Arc::new)
    }

    fn note(&self, operation: Operation) {
        self.history.lock().unwrap().push(operation);
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.content.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let content = self.content.lock().unwrap();
        let start = offset as usize;
        let part = content
            .get(start..start + out.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.content.lock().unwrap().resize(len as usize, 0);
        self.note(Operation::SetLen {
            disk: self.number,
            len,
        });
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.note(Operation::Sync { disk: self.number });
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut content = self.content.lock().unwrap();
        let start = offset as usize;
        if content.len() < start + data.len() {
            content.resize(start + data.len(), 0);
        }
        content[start..start + data.len()].copy_from_slice(data);
        drop(content);
        self.note(Operation::Write {
            disk: self.number,
            offset,
            data: data.to_vec(),
        });
        Ok(())
    }
}

/// A disk image under construction: what is durable, and what is not yet.
#[derive(Default, Clone)]
struct Image {
    durable: Vec<u8>,
    unsynced: Vec<Operation>,
}

impl Image {
    fn apply(bytes: &mut Vec<u8>, operation: &Operation, keep: usize) {
        match operation {
            Operation::SetLen { len, .. } => bytes.resize(*len as usize, 0),
            Operation::Write { offset, data, .. } => {
                let start = *offset as usize;
                if bytes.len() < start + data.len() {
                    bytes.resize(start + data.len(), 0);
                }
                bytes[start..start + keep].copy_from_slice(&data[..keep]);
            }
            Operation::Sync { .. } | Operation::Acknowledged(_) => {}
        }
    }

    fn sync(&mut self) {
        for operation in std::mem::take(&mut self.unsynced) {
            Self::apply(&mut self.durable, &operation, whole(&operation));
        }
    }

    /// What is there after the power came back: each unsynced write whole, not at all, or torn.
    fn after_power_loss(&self, random: &mut impl FnMut() -> u64) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for operation in &self.unsynced {
            let keep = match (random() % 3, operation) {
                (0, _) => whole(operation),
                (1, _) => continue,
                (_, Operation::Write { data, .. }) => (random() as usize) % (data.len() + 1),
                (_, _) => 0,
            };
            Self::apply(&mut bytes, operation, keep);
        }
        bytes
    }
}

fn whole(operation: &Operation) -> usize {
    match operation {
        Operation::Write { data, .. } => data.len(),
        Operation::SetLen { .. } | Operation::Sync { .. } | Operation::Acknowledged(_) => 0,
    }
}

#[derive(Clone)]
struct Alone;

impl Transport for Alone {
    fn peers(&self) -> Vec<u64> {
        Vec::new()
    }

    async fn call(&self, _: u64, _: RpcKind, _: Vec<u8>) -> Result<Vec<u8>, CallError> {
        Err(CallError::NotConnected)
    }
}

fn config() -> ReplicaConfig {
    ReplicaConfig {
        id: 1,
        folder: PathBuf::new(),
    }
}

fn name(i: u64) -> Command {
    Command::AdmitNode {
        id: NodeId::from_bits(u128::from(i)),
        name: format!("node {i}"),
        now_s: i,
    }
}

/// Writes all commands on recording disks; gives the history.
async fn record() -> Vec<Operation> {
    let history = History::default();
    let log = Disk::database(0, Vec::new(), &history).unwrap();
    let machine = Disk::database(1, Vec::new(), &history).unwrap();
    let replica = Replica::start_on(config(), log, machine, Alone).await.unwrap();
    replica.found().await.unwrap();
    assert!(replica.wait_for_leader(Duration::from_secs(10)).await);
    assert_eq!(
        replica
            .write(Command::Found(ClusterId::from_bits(5)))
            .await
            .unwrap(),
        Reply::Done
    );
    for i in 0..COMMANDS {
        assert_eq!(replica.write(name(i)).await.unwrap(), Reply::Done);
        history.lock().unwrap().push(Operation::Acknowledged(i));
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
            }
            Operation::Acknowledged(i) => acknowledged = i + 1,
        }
    }
    assert_eq!(acknowledged, COMMANDS);
    assert!(syncs > COMMANDS, "{syncs} syncs");
    println!(
        "{restarts} restarts at {syncs} sync points, {refusals} refusals before the first acknowledgement"
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
    for i in 0..acknowledged {
        let id = NodeId::from_bits(u128::from(i));
        let found = state.nodes.get(&id).map(|node| node.name.clone());
        assert_eq!(
            found,
            Some(format!("node {i}")),
            "acknowledged, and gone after the restart"
        );
    }
    replica.stop().await;
    Ok(())
}
