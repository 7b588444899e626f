//! Disks of redb's that remember what was done to them, forget what was not synced, and get full.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pomona_raft::{CallError, Replica, ReplicaConfig, RpcKind, Transport};
use redb::{Database, StorageBackend};

#[derive(Debug, Clone)]
pub enum Operation {
    Write {
        disk: usize,
        offset: u64,
        data: Vec<u8>,
    },
    SetLen {
        disk: usize,
        len: u64,
    },
    Sync {
        disk: usize,
    },
    Acknowledged(u64),
    /// A snapshot is being taken from here on, or no more.
    Snapshot(bool),
}

/// Everything that happened to both disks, in order.
pub type History = Arc<Mutex<Vec<Operation>>>;

#[derive(Debug)]
pub struct Disk {
    number: usize,
    content: Arc<Mutex<Vec<u8>>>,
    history: History,
    room: Arc<AtomicU64>,
}

impl Disk {
    pub fn database(
        number: usize,
        content: Vec<u8>,
        history: &History,
    ) -> Result<Arc<Database>, redb::DatabaseError> {
        let content = Arc::new(Mutex::new(content));
        Self::with_room(number, &content, history, &Arc::new(AtomicU64::new(u64::MAX)))
    }

    /// A database on a disk that has room for so many more bytes, written over or not: every write takes
    /// some, as on a file system that copies.
    pub fn with_room(
        number: usize,
        content: &Arc<Mutex<Vec<u8>>>,
        history: &History,
        room: &Arc<AtomicU64>,
    ) -> Result<Arc<Database>, redb::DatabaseError> {
        let disk = Disk {
            number,
            content: content.clone(),
            history: history.clone(),
            room: room.clone(),
        };
        let mut builder = Database::builder();
        builder.set_cache_size(1 << 20);
        builder.create_with_backend(disk).map(Arc::new)
    }

    fn take_room(&self, bytes: u64) -> Result<(), io::Error> {
        let taken = self
            .room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| {
                room.checked_sub(bytes)
            });
        taken.map_or_else(|_| Err(io::ErrorKind::StorageFull.into()), |_| Ok(()))
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
        let grown = len.saturating_sub(self.content.lock().unwrap().len() as u64);
        self.take_room(grown)?;
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
        self.take_room(data.len() as u64)?;
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
pub struct Image {
    pub durable: Vec<u8>,
    pub unsynced: Vec<Operation>,
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
            Operation::Sync { .. } | Operation::Acknowledged(_) | Operation::Snapshot(_) => {}
        }
    }

    pub fn sync(&mut self) {
        for operation in std::mem::take(&mut self.unsynced) {
            Self::apply(&mut self.durable, &operation, whole(&operation));
        }
    }

    /// What is there after the power came back: each unsynced write whole, not at all, or torn.
    pub fn after_power_loss(&self, random: &mut impl FnMut() -> u64) -> Vec<u8> {
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
        _ => 0,
    }
}

/// Nobody else is there.
#[derive(Clone)]
pub struct Alone;

impl Transport for Alone {
    fn version(&self, _: u64) -> Option<u16> {
        None
    }

    fn peers(&self) -> Vec<u64> {
        Vec::new()
    }

    async fn call(&self, _: u64, _: RpcKind, _: Vec<u8>) -> Result<Vec<u8>, CallError> {
        Err(CallError::NotConnected)
    }
}

pub fn config() -> ReplicaConfig {
    ReplicaConfig {
        id: 1,
        folder: PathBuf::new(),
    }
}

/// A replica alone on these disks that leads.
pub async fn leading(log: Arc<Database>, machine: Arc<Database>) -> Replica {
    let replica = Replica::start_on(config(), log, machine, Alone).await.unwrap();
    replica.found().await.unwrap();
    assert!(replica.wait_for_leader(Duration::from_secs(10)).await);
    replica
}
