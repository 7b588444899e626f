//! The Raft log and vote in redb. Every write is synced before it is acknowledged.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{Entry, LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError, Vote};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::TypeConfig;
use crate::network::since;
use crate::tables::{DbResult, Values, decode, encode_since, get, put, write};

const LOG: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("raft_log");
const META: Values = TableDefinition::new("raft_meta");

type IoError = StorageIOError<u64>;
type Fault = StorageError<u64>;

#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    db: Arc<Database>,
}

impl LogStore {
    pub(crate) fn new(db: Arc<Database>) -> DbResult<Self> {
        write(&db, |transaction| {
            transaction.open_table(LOG)?;
            transaction.open_table(META)?;
            Ok(())
        })?;
        Ok(Self { db })
    }

    fn entries(&self, bounds: (Bound<u64>, Bound<u64>)) -> DbResult<Vec<Entry<TypeConfig>>> {
        let table = self.db.begin_read()?.open_table(LOG)?;
        let mut entries = Vec::new();
        for item in table.range::<u64>(bounds)? {
            let (_, value) = item?;
            entries.push(decode(value.value())?);
        }
        Ok(entries)
    }

    fn state(&self) -> DbResult<LogState<TypeConfig>> {
        let purged: Option<LogId<u64>> = get(&self.db, META, "purged")?;
        let table = self.db.begin_read()?.open_table(LOG)?;
        let last: Option<Entry<TypeConfig>> = table
            .last()?
            .map(|(_, value)| decode(value.value()))
            .transpose()?;
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last.map(|entry| entry.log_id).or(purged),
        })
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>, Fault> {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        self.entries(bounds)
            .map_err(|error| IoError::read_logs(&error).into())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, Fault> {
        self.state().map_err(|error| IoError::read_logs(&error).into())
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), Fault> {
        write(&self.db, |transaction| put(transaction, META, "vote", vote))
            .map_err(|error| IoError::write_vote(&error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Fault> {
        get(&self.db, META, "vote").map_err(|error| IoError::read_vote(&error).into())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), Fault>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry<TypeConfig>> = entries.into_iter().collect();
        write(&self.db, |transaction| {
            let mut table = transaction.open_table(LOG)?;
            for entry in &entries {
                let bytes = encode_since(entry, since(entry))?;
                table.insert(entry.log_id.index, bytes.as_slice())?;
            }
            Ok(())
        })
        .map_err(|error| IoError::write_logs(&error))?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), Fault> {
        write(&self.db, |transaction| {
            transaction
                .open_table(LOG)?
                .retain_in(log_id.index.., |_, _| false)?;
            Ok(())
        })
        .map_err(|error| IoError::write_logs(&error).into())
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), Fault> {
        write(&self.db, |transaction| {
            put(transaction, META, "purged", &log_id)?;
            transaction
                .open_table(LOG)?
                .retain_in(..=log_id.index, |_, _| false)?;
            Ok(())
        })
        .map_err(|error| IoError::write_logs(&error).into())
    }
}
