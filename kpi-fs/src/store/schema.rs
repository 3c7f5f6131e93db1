//! The database as it must be before anything is asked of it.

use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags};

use crate::csv::{COLUMNS_MAX, LINE_MAX};

/// The schema that this program writes. A newer one is refused.
const SCHEMA: i64 = 1;

/// Oldest SQLite whose WAL mode is trusted: the one that is built in.
const MIN_SQLITE: i32 = 3_050_000;

/// Bytes of pages that a connection keeps in memory, in KiB.
const CACHE_KIB: i64 = 8 * 1024;

/// Bytes to which the log is cut after it was larger.
const LOG_KEPT: i64 = 64 * 1024 * 1024;

/// Longest value, and longest row, that the database takes.
const VALUE_MAX: i32 = 64 * 1024 * 1024;

/// Longest statement: one with all the columns that there may be.
const STATEMENT_MAX: i32 = 256 * 1024;

/// How long one writer waits for another, in milliseconds.
const BUSY_MS: u64 = 10_000;

/// Statements that a connection keeps ready.
const STATEMENTS: usize = 256;

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// SQLite is too old.
    #[error("this program needs SQLite 3.50 or later, and was built with {0}")]
    Old(&'static str),
    /// A later release wrote it.
    #[error(
        "{path} was written by a newer release (schema {found}, this program knows {SCHEMA}); \
         run that release"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// Another `kpi-fs` has it.
    #[error("{0} is in use by another kpi-fs; stop that one, or name another database")]
    InUse(PathBuf),
    /// No rights, no space, a damaged file.
    #[error("{path} cannot be used: {source}; free space or repair it, then start again")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The lock beside it cannot be made.
    #[error("{path} cannot be locked: {source}; make its folder writable")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// No name that an application chooses has a slash, so that these tables are the store's alone.
const TABLES: &str = "
    CREATE TABLE \"kpi/files\" (
        id         INTEGER PRIMARY KEY,
        folder     TEXT NOT NULL CHECK (folder IN ('unencrypted', 'encrypted')),
        name       TEXT NOT NULL COLLATE NOCASE,
        mode       INTEGER NOT NULL,
        uid        INTEGER NOT NULL,
        gid        INTEGER NOT NULL,
        mtime_ns   INTEGER NOT NULL,
        content    INTEGER NOT NULL UNIQUE,
        size       INTEGER NOT NULL,
        has_header INTEGER NOT NULL CHECK (has_header IN (0, 1)),
        UNIQUE (folder, name)
    ) STRICT;
    CREATE TABLE \"kpi/chunks\" (
        id   INTEGER PRIMARY KEY,
        data BLOB NOT NULL
    ) STRICT;
    CREATE TABLE \"kpi/outbox\" (
        seq   INTEGER PRIMARY KEY AUTOINCREMENT,
        name  TEXT NOT NULL,
        bytes INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE \"kpi/state\" (
        one          INTEGER PRIMARY KEY CHECK (one = 1),
        acknowledged INTEGER NOT NULL,
        dropped      INTEGER NOT NULL
    ) STRICT;
    INSERT INTO \"kpi/state\" VALUES (1, 0, 0);
";

/// Opens the database to write, making it if there is none.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    let error = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let db = Connection::open(path).map_err(error)?;
    let found = || -> rusqlite::Result<i64> {
        guard(&db)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "journal_size_limit", LOG_KEPT)?;
        db.pragma_query_value(None, "user_version", |row| row.get(0))
    };
    let found = found().map_err(error)?;
    check_version(path, found)?;
    if found == 0 {
        let batch = format!("BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;");
        db.execute_batch(&batch).map_err(error)?;
    }
    Ok(db)
}

/// Opens the database to look, and to acknowledge rows.
pub(crate) fn open_beside(path: &Path) -> Result<Connection, OpenError> {
    let error = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(error)?;
    let found = || -> rusqlite::Result<i64> {
        guard(&db)?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_query_value(None, "user_version", |row| row.get(0))
    };
    let found = found().map_err(error)?;
    check_version(path, found)?;
    Ok(db)
}

fn check_version(path: &Path, found: i64) -> Result<(), OpenError> {
    if rusqlite::version_number() < MIN_SQLITE {
        return Err(OpenError::Old(rusqlite::version()));
    }
    if found > SCHEMA {
        return Err(OpenError::Newer { path: path.to_owned(), found });
    }
    Ok(())
}

/// What holds for every connection: names and values in the database come from strangers.
fn guard(db: &Connection) -> rusqlite::Result<()> {
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    let columns = i32::try_from(COLUMNS_MAX + 8).expect("small");
    for (limit, value) in [
        (Limit::SQLITE_LIMIT_LENGTH, VALUE_MAX),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, STATEMENT_MAX),
        (Limit::SQLITE_LIMIT_COLUMN, columns),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, columns + 64),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 2),
        (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, columns),
    ] {
        db.set_limit(limit, value)?;
    }
    db.pragma_update(None, "cache_size", -CACHE_KIB)?;
    db.busy_timeout(std::time::Duration::from_millis(BUSY_MS))?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(())
}

const _: () = assert!(LINE_MAX as i64 * 2 < VALUE_MAX as i64, "a row must fit");
