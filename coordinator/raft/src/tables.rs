//! Small helpers over redb: one value per key, encoded as stored values of `pomona-wire`.

use pomona_wire::stored::{self, Added};
use redb::{Database, ReadableDatabase, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A table of single values.
pub(crate) type Values = TableDefinition<'static, &'static str, &'static [u8]>;

pub(crate) type DbResult<T> = Result<T, redb::Error>;

pub(crate) fn encode<T: Serialize>(value: &T) -> std::io::Result<Vec<u8>> {
    stored::encode(value).map_err(std::io::Error::other)
}

pub(crate) fn encode_since<T: Serialize>(value: &T, since: u8) -> std::io::Result<Vec<u8>> {
    stored::encode_since(value, since).map_err(std::io::Error::other)
}

pub(crate) fn encode_grown<T: Serialize>(value: &T, added: Added<'_>, since: u8) -> std::io::Result<Vec<u8>> {
    stored::encode_grown(value, added, since).map_err(std::io::Error::other)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> std::io::Result<T> {
    decode_grown(bytes, &[])
}

pub(crate) fn decode_grown<T: DeserializeOwned>(bytes: &[u8], added: Added<'_>) -> std::io::Result<T> {
    stored::decode_grown(bytes, added).map_err(std::io::Error::other)
}

/// Runs one transaction and syncs it.
pub(crate) fn write<T>(db: &Database, change: impl FnOnce(&WriteTransaction) -> DbResult<T>) -> DbResult<T> {
    let transaction = db.begin_write()?;
    let value = change(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

pub(crate) fn put<T: Serialize>(
    transaction: &WriteTransaction,
    table: Values,
    key: &str,
    value: &T,
) -> DbResult<()> {
    put_bytes(transaction, table, key, &encode(value)?)
}

pub(crate) fn put_bytes(
    transaction: &WriteTransaction,
    table: Values,
    key: &str,
    bytes: &[u8],
) -> DbResult<()> {
    let mut table = transaction.open_table(table)?;
    table.insert(key, bytes)?;
    Ok(())
}

pub(crate) fn get<T: DeserializeOwned>(db: &Database, table: Values, key: &str) -> DbResult<Option<T>> {
    get_grown(db, table, key, &[])
}

/// As [`get`], of a value that has grown at its end.
pub(crate) fn get_grown<T: DeserializeOwned>(
    db: &Database,
    table: Values,
    key: &str,
    added: Added<'_>,
) -> DbResult<Option<T>> {
    let table = db.begin_read()?.open_table(table)?;
    let value = table
        .get(key)?
        .map(|guard| decode_grown(guard.value(), added))
        .transpose()?;
    Ok(value)
}
