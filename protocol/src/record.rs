//! A row as it lies on a disk: JSON, with its type and a version beside it.

use crate::row::Row;

/// The version of the row types that this release writes. It reads this one and all before it.
pub const ROW_VERSION: u32 = 2;

/// One row of a journal in its stored form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// [`Row::kind`].
    pub kind: String,
    /// The version of the row types that it was written with.
    pub version: u32,
    /// The row as JSON.
    pub body: String,
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// A later release wrote it.
    #[error("a later release wrote it (version {0}, this program knows {ROW_VERSION})")]
    Newer(u32),
    /// It is no row.
    #[error("it is not a row")]
    Json(#[from] serde_json::Error),
    /// Its type column is of another row.
    #[error("its body is of type {0}")]
    Kind(&'static str),
}

impl Record {
    /// The stored form of a row.
    pub fn of(row: &Row) -> Self {
        let body = serde_json::to_string(row).expect("rows are plain data");
        Self { kind: row.kind().to_owned(), version: ROW_VERSION, body }
    }

    /// The row.
    ///
    /// # Errors
    ///
    /// If a later release wrote it, or it was damaged.
    pub fn row(&self) -> Result<Row, Unreadable> {
        if self.version > ROW_VERSION {
            return Err(Unreadable::Newer(self.version));
        }
        let row: Row = serde_json::from_str(&self.body)?;
        if row.kind() != self.kind {
            return Err(Unreadable::Kind(row.kind()));
        }
        Ok(row)
    }
}
