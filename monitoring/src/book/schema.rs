//! The book's database.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

/// The version of what stands below.
const VERSION: i64 = 3;
/// How long another process that looks at the database is waited for.
const BUSY: Duration = Duration::from_secs(10);

const TABLES: &str = "
-- Blocks of values, in the order in which they came.
CREATE TABLE blocks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    first INTEGER NOT NULL,
    count INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    -- The peer that is to have it next.
    owed TEXT,
    body BLOB NOT NULL,
    signature BLOB NOT NULL,
    UNIQUE (vm, epoch, first)
) STRICT;
CREATE INDEX owed ON blocks (owed, id) WHERE owed IS NOT NULL;
CREATE INDEX of_vm_owed ON blocks (vm, id) WHERE owed IS NOT NULL;
CREATE INDEX of_vm_free ON blocks (vm, id) WHERE owed IS NULL;

-- Which numbers came, of each epoch, and up to which they went from here since.
CREATE TABLE runs (
    vm BLOB NOT NULL, epoch INTEGER NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, taken INTEGER NOT NULL,
    gone INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (vm, epoch)
) STRICT, WITHOUT ROWID;

-- Values that had to go before the next site had them.
CREATE TABLE dropped (vm BLOB PRIMARY KEY, count INTEGER NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE producers (
    vm BLOB PRIMARY KEY, epoch INTEGER NOT NULL, packed INTEGER NOT NULL, state BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE owners (
    vm BLOB NOT NULL, epoch INTEGER NOT NULL, key BLOB NOT NULL, PRIMARY KEY (vm, epoch)
) STRICT, WITHOUT ROWID;

CREATE TABLE paths (vm BLOB PRIMARY KEY, up TEXT) STRICT, WITHOUT ROWID;

CREATE TABLE sections (
    vm BLOB NOT NULL, id BLOB NOT NULL, body BLOB NOT NULL, PRIMARY KEY (vm, id)
) STRICT, WITHOUT ROWID;
";

/// What version 2 has beyond the first.
const USAGE_TABLES: &str = "
-- Statements of usage: of each VM and epoch the newest, and the first of each hour.
CREATE TABLE usage (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    final INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    -- The peer that it came from; none if it was made here.
    via TEXT,
    -- The peer that it is for; none at the VM's primary.
    up TEXT,
    -- The peer that is to have it next.
    owed TEXT,
    body BLOB NOT NULL,
    owner BLOB NOT NULL,
    signature BLOB NOT NULL,
    UNIQUE (vm, epoch, until_ms, final)
) STRICT;
CREATE INDEX usage_owed ON usage (owed, id) WHERE owed IS NOT NULL;

-- What is being added up here, with the key that signs for it.
CREATE TABLE tallies (
    vm BLOB NOT NULL, epoch INTEGER NOT NULL, owner BLOB NOT NULL, tally BLOB NOT NULL,
    PRIMARY KEY (vm, epoch)
) STRICT, WITHOUT ROWID;
";

/// What version 3 has beyond the second.
const VIOLATION_TABLES: &str = "
-- Limits of service that were broken, each with the block that tells it.
CREATE TABLE violations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    number INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    measure TEXT NOT NULL,
    condition TEXT NOT NULL,
    value REAL,
    body BLOB NOT NULL,
    signature BLOB NOT NULL,
    UNIQUE (vm, epoch, number)
) STRICT;
";

/// Why the book does not work.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// SQLite says no.
    #[error("the monitoring database failed; look after its disk")]
    Sqlite(#[from] rusqlite::Error),
    /// It was made by another version of this program.
    #[error(
        "{path} has version {found}, this program knows {VERSION}; use the program that made it"
    )]
    Version {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
}

/// Opens the database, making it if there is none.
pub(super) fn open(path: &Path) -> Result<Connection, BookError> {
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    // A commit that has returned is on the disk.
    db.pragma_update(None, "synchronous", "FULL")?;
    let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    // What each version has beyond the one before.
    const STEPS: [&str; VERSION as usize] = [TABLES, USAGE_TABLES, VIOLATION_TABLES];
    let missing = usize::try_from(found).ok().and_then(|found| STEPS.get(found..));
    let Some(missing) = missing else {
        return Err(BookError::Version { path: path.to_owned(), found });
    };
    if !missing.is_empty() {
        let tables = missing.concat();
        db.execute_batch(&format!(
            "BEGIN IMMEDIATE; {tables} PRAGMA user_version = {VERSION}; COMMIT;"
        ))?;
    }
    Ok(db)
}
