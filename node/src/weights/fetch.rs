//! Fetches a model from other nodes.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pomona_common::ModelRecord;
use pomona_common::weights::{Manifest, WeightsRequest};
use pomona_link::{Endpoint, Identity, LinkError, Pace, Purpose, Session, any_port_toward};
use tokio::task::JoinSet;

use super::blocking;
use super::partial::Partial;
use super::work::{Piece, Work};
use crate::store::{fetch_folder, write_record_of};

/// Nodes that are asked at once.
const SOURCES: usize = 4;
/// Chunks of one node that are under way.
const PER_SOURCE: usize = 4;
/// A node that sends nothing of a chunk for so long is given up; while its engine works it is slow.
const CHUNK: Duration = Duration::from_secs(60);
/// A node reads a whole model for its first manifest.
const MANIFEST: Duration = Duration::from_secs(300);
/// Between two looks whether a piece came back.
const LOOK: Duration = Duration::from_millis(20);

/// Who gives a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Givers {
    /// Nodes, all at once.
    Nodes(Vec<SocketAddr>),
    /// Coordinators that pass it on, which is slower. The first that does is enough: all of them ask the
    /// same nodes, and share their lines with token streams.
    Coordinators(Vec<SocketAddr>),
}

/// Why a model was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody gives it.
    #[error("no node gives `{0}`: {1}")]
    NoSource(String, String),
    /// Everybody who gave it has stopped. What came is kept, and some of it is new.
    #[error("`{0}` came in part only: {1}")]
    Broken(String, String),
    /// The disk.
    #[error("cannot write the model; is the disk full?")]
    Io(#[from] io::Error),
    /// What came is not what the catalogue knows. It was removed.
    #[error("`{0}` came with other contents than the catalogue's, and was removed")]
    OtherContents(String),
    /// What came is no model.
    #[error("what came is no model")]
    Store(#[from] pomona_store::StoreError),
}

/// Why a node that gave something else is left.
const DAMAGED: &str = "a chunk is not what its digest says";

/// Fetches a model into the store. What an earlier attempt brought is used again. `progress` is told bytes
/// done and in all.
///
/// # Errors
/// Nobody gives it, all have stopped half-way, the disk is full, or it is not the model of the catalogue.
pub async fn fetch(
    models: &Path,
    record: &ModelRecord,
    givers: &Givers,
    identity: &Identity,
    pace: &Pace,
    progress: impl Fn(u64, u64) + Send + Sync + 'static,
) -> Result<(), FetchError> {
    let name = record.name.to_string();
    let (sessions, manifest) = reach(givers, identity, record)
        .await
        .map_err(|why| FetchError::NoSource(name.clone(), why))?;
    let folder = fetch_folder(models, &record.name);
    let (at, listed) = (folder.clone(), manifest.clone());
    let (partial, missing) = blocking(move || {
        let partial = Partial::open(&at, listed)?;
        let missing = partial.missing()?;
        Ok((partial, missing))
    })
    .await?;
    let absent: u64 = missing.iter().map(|piece| partial.len(*piece) as u64).sum();
    let total = manifest.bytes();
    let job = Arc::new(Job {
        record: record.clone(),
        partial,
        work: Mutex::new(Work::new(missing)),
        pace: pace.clone(),
        arrived: Mutex::new(total - absent),
        total,
        progress: Box::new(progress),
    });
    let mut why = String::new();
    let mut workers = JoinSet::new();
    for session in sessions {
        for _ in 0..PER_SOURCE {
            workers.spawn(job.clone().take_from(session.clone()));
        }
    }
    while let Some(ended) = workers.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            // That is the cause: others of the same node fail because it was left, and may say so first.
            Ok(Err(Stop::Damaged)) => why = DAMAGED.into(),
            Ok(Err(Stop::Source(reason))) if why.is_empty() => why = reason,
            Ok(Err(Stop::Source(_))) => {}
            Ok(Err(Stop::Disk(error))) => return Err(error.into()),
            Err(error) => why = error.to_string(),
        }
    }
    if !job.work().is_done() {
        let none_came = job.brought() == total - absent;
        return Err(if none_came {
            FetchError::NoSource(name, why)
        } else {
            FetchError::Broken(name, why)
        });
    }
    let (models, record) = (models.to_owned(), record.clone());
    tokio::task::spawn_blocking(move || settle(&job, &models, &folder, &record))
        .await
        .map_err(io::Error::other)?
}

/// Checks the whole, and moves it to its place.
fn settle(job: &Job, models: &Path, folder: &Path, record: &ModelRecord) -> Result<(), FetchError> {
    job.partial.sync()?;
    // Every chunk was checked against the manifest: it need not be made again.
    let manifest = Some(job.partial.manifest());
    let found = write_record_of(folder, record.name.clone(), manifest, &mut |_| {});
    if found.as_ref().is_ok_and(|found| found.digests == record.digests) {
        let place = models.join(record.name.as_folder());
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        fs::rename(folder, &place)?;
        return Ok(());
    }
    fs::remove_dir_all(folder)?;
    found?;
    Err(FetchError::OtherContents(record.name.to_string()))
}

/// Sessions with whoever gives the model, and its manifest.
async fn reach(
    givers: &Givers,
    identity: &Identity,
    record: &ModelRecord,
) -> Result<(Vec<Session>, Manifest), String> {
    match givers {
        Givers::Nodes(nodes) => {
            let sessions = dial(nodes, Purpose::Weights, identity).await;
            let manifest = manifest(&sessions, record).await?;
            Ok((sessions, manifest))
        }
        Givers::Coordinators(coordinators) => {
            let mut why = "no coordinator passes it on".to_owned();
            for coordinator in coordinators {
                let sessions = dial(&[*coordinator], Purpose::Relay, identity).await;
                match manifest(&sessions, record).await {
                    Ok(manifest) => return Ok((sessions, manifest)),
                    Err(error) => why = format!("no coordinator passes it on: {error}"),
                }
            }
            Err(why)
        }
    }
}

async fn dial(sources: &[SocketAddr], purpose: Purpose, identity: &Identity) -> Vec<Session> {
    let mut dials = JoinSet::new();
    for address in sources.iter().copied() {
        let identity = identity.clone();
        dials.spawn(async move {
            let endpoint = Endpoint::client(any_port_toward(address), identity)?;
            endpoint.dial(address, purpose).await
        });
    }
    let mut sessions = Vec::new();
    while let Some(dialled) = dials.join_next().await {
        match dialled {
            Ok(Ok(session)) if sessions.len() < SOURCES => sessions.push(session),
            Ok(Err(error)) => tracing::info!(%error, "no weights from there"),
            _ => {}
        }
    }
    sessions
}

/// The manifest of the first node that has one. All have the same, unless one of them lies: then
/// its own chunks fit and the whole does not.
async fn manifest(sessions: &[Session], record: &ModelRecord) -> Result<Manifest, String> {
    let mut why = "nobody is in reach".to_owned();
    for session in sessions {
        let asked = async {
            let (mut send, mut receive) = session.open().await?;
            send.send(&WeightsRequest::Manifest(record.name.clone())).await?;
            let manifest: Manifest = receive.expect(MANIFEST).await?;
            send.finish();
            manifest.check().map_err(LinkError::Closed)?;
            Ok::<Manifest, LinkError>(manifest)
        };
        match asked.await {
            Ok(manifest) => return Ok(manifest),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

struct Job {
    record: ModelRecord,
    partial: Partial,
    work: Mutex<Work>,
    pace: Pace,
    arrived: Mutex<u64>,
    total: u64,
    progress: Box<dyn Fn(u64, u64) + Send + Sync>,
}

enum Stop {
    /// What this node gives is not what it should be.
    Damaged,
    /// This node gives no more.
    Source(String),
    Disk(io::Error),
}

impl Job {
    /// Takes pieces from one node until nothing is missing, or the node fails.
    async fn take_from(self: Arc<Self>, session: Session) -> Result<(), Stop> {
        let mut buffer = Vec::new();
        loop {
            let next = self.work().next();
            let Some(piece) = next else {
                if self.work().is_waiting() {
                    // A piece that is under way elsewhere may come back.
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                return Ok(());
            };
            let kept = match self.piece(&session, piece, &mut buffer).await {
                Ok(()) => {
                    let (this, bytes) = (self.clone(), std::mem::take(&mut buffer));
                    let kept = blocking(move || Ok((this.partial.keep(piece, &bytes)?, bytes))).await;
                    kept.map_err(Stop::Disk).map(|(kept, bytes)| {
                        let len = bytes.len();
                        buffer = bytes;
                        kept.then_some(len)
                    })
                }
                Err(error) => Err(Stop::Source(error.to_string())),
            };
            match kept {
                Ok(Some(len)) => self.count(len),
                Ok(None) => {
                    self.work().failed(piece);
                    session.close(DAMAGED);
                    return Err(Stop::Damaged);
                }
                Err(stop) => {
                    self.work().failed(piece);
                    return Err(stop);
                }
            }
        }
    }

    async fn piece(&self, session: &Session, piece: Piece, buffer: &mut Vec<u8>) -> Result<(), LinkError> {
        let len = self.partial.len(piece);
        self.pace.admit(len).await;
        let (mut send, mut receive) = session.open().await?;
        let request = WeightsRequest::Chunk {
            model: self.record.name.clone(),
            file: piece.file,
            chunk: piece.chunk,
        };
        send.send(&request).await?;
        send.finish();
        buffer.resize(len, 0);
        tokio::time::timeout(CHUNK, receive.fill(buffer))
            .await
            .map_err(|_| LinkError::Deadline(CHUNK))?
    }

    fn count(&self, len: usize) {
        self.work().arrived();
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        *arrived += len as u64;
        (self.progress)(*arrived, self.total);
    }

    /// Bytes that are there, of this attempt and earlier ones.
    fn brought(&self) -> u64 {
        *self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
