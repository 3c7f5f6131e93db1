//! The rows, for whoever delivers them.
//!
//! A trigger on each table notes every new row in the outbox, under a sequence number that never
//! comes again, and the row is committed with its note or not at all.
//! Delivery is the reader's: it reads what comes after the last number that it has, delivers it,
//! acknowledges it, and is told of new rows by a [`Bell`] if it is in the same process.
//! Acknowledged rows stay as history until there are too many ([`crate::store::Limits::rows`]);
//! rows that had to go before anybody acknowledged them are counted.

use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};
use serde::Serialize;

use crate::refusal::Refusal;
use crate::store::{OpenError, open_beside};

/// Rows that are read at once.
pub const BATCH_ROWS: usize = 1_000;

/// Bytes of values after which no further row is read at once.
const BATCH_BYTES: i64 = 8 * 1024 * 1024;

/// A row of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its number: above all that were before it, in any table.
    pub seq: i64,
    /// The table: the file's name, with `encrypted/` before it for one of that directory.
    pub table: String,
    /// When it was stored, in milliseconds since 1970.
    pub saved_ms: i64,
    /// What it has.
    #[serde(flatten)]
    pub values: Values,
}

/// What a row has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Values {
    /// A field for each column, as it was written; those that the file did not have are left out.
    #[serde(serialize_with = "as_map")]
    Columns(Vec<(String, String)>),
    /// A whole file of `encrypted/`.
    #[serde(serialize_with = "as_base64")]
    Content(Vec<u8>),
}

fn as_map<S: serde::Serializer>(
    columns: &[(String, String)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(columns.iter().map(|(name, value)| (name, value)))
}

fn as_base64<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&data_encoding::BASE64.encode(bytes))
}

/// Where delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct State {
    /// The last row that there was; 0 if there was none.
    pub last: i64,
    /// The last that was acknowledged.
    pub acknowledged: i64,
    /// Rows that were removed before they were acknowledged.
    pub dropped: i64,
}

/// A connection to the database beside the store's, in the same process or another.
#[derive(Debug)]
pub struct Outbox {
    db: Connection,
}

impl Outbox {
    /// Opens the outbox of the store at `path`, which must exist.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self { db: open_beside(path)? })
    }

    /// The next rows after number `seq`, in order; at most `max` and [`BATCH_ROWS`], and fewer if
    /// they are large.
    pub fn after(&self, seq: i64, max: usize) -> Result<Vec<Row>, Refusal> {
        // Notes and rows are read of one state, so that none is removed in between.
        let db = self.db.unchecked_transaction()?;
        let mut notes = db.prepare_cached(
            "SELECT seq, name, bytes FROM \"kpi/outbox\" WHERE seq > ?1 ORDER BY seq LIMIT ?2",
        )?;
        let max = i64::try_from(max.min(BATCH_ROWS)).expect("small");
        let mut notes = notes.query(params![seq, max])?;
        let mut rows = Vec::new();
        let mut bytes = 0;
        while let Some(note) = notes.next()?
            && bytes < BATCH_BYTES
        {
            let (seq, table): (i64, String) = (note.get(0)?, note.get(1)?);
            bytes += note.get::<_, i64>(2)?;
            rows.extend(row(&db, seq, table)?);
        }
        Ok(rows)
    }

    /// Notes that all rows up to `seq` have reached whoever answers for them now.
    pub fn acknowledge(&self, seq: i64) -> Result<(), Refusal> {
        let seq = seq.min(self.state()?.last);
        self.db
            .prepare_cached("UPDATE \"kpi/state\" SET acknowledged = max(acknowledged, ?1)")?
            .execute([seq])?;
        Ok(())
    }

    /// Where delivery stands.
    pub fn state(&self) -> Result<State, Refusal> {
        let state = self
            .db
            .prepare_cached(
                "SELECT ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'kpi/outbox'), 0),
                    acknowledged, dropped
             FROM \"kpi/state\"",
            )?
            .query_row([], |row| {
                Ok(State { last: row.get(0)?, acknowledged: row.get(1)?, dropped: row.get(2)? })
            })?;
        Ok(state)
    }
}

fn row(db: &Connection, seq: i64, table: String) -> Result<Option<Row>, Refusal> {
    // The name is a table's of ours, in which nothing needs escaping.
    let mut query = db.prepare_cached(&format!("SELECT * FROM \"{table}\" WHERE kpi_seq = ?1"))?;
    let names: Vec<String> = query.column_names().map(str::to_owned).collect();
    let mut found = query.query([seq])?;
    let Some(row) = found.next()? else { return Ok(None) };
    let saved_ms = row.get(1)?;
    let mut columns = Vec::with_capacity(names.len());
    for (index, name) in names.into_iter().enumerate().skip(2) {
        match row.get_ref(index)? {
            ValueRef::Text(text) => {
                columns.push((name, String::from_utf8_lossy(text).into_owned()));
            }
            ValueRef::Blob(content) => {
                let values = Values::Content(content.to_vec());
                return Ok(Some(Row { seq, table, saved_ms, values }));
            }
            _ => {}
        }
    }
    Ok(Some(Row { seq, table, saved_ms, values: Values::Columns(columns) }))
}

/// Tells of new rows.
#[derive(Debug, Default)]
pub struct Bell {
    last: Mutex<i64>,
    rung: Condvar,
}

impl Bell {
    /// Waits until there is a row after number `seq`, at most for `limit`; answers the last one's.
    pub fn wait(&self, seq: i64, limit: Duration) -> i64 {
        let end = Instant::now() + limit;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        while *last <= seq {
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                break;
            }
            last = self.rung.wait_timeout(last, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        *last
    }

    pub(crate) fn ring(&self, seq: i64) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = seq;
        self.rung.notify_all();
    }
}
