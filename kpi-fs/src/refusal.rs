//! Everything that the file system says no to, and the errno that says it.
//!
//! An application sees the errno alone, at `write`, `close`, `fsync` or `rename`; the text is for
//! the one who runs `kpi-fs`, which prints it.

use rustix::io::Errno;

/// Why something was refused. The table of errnos in the crate's documentation is made of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A file's name that cannot become a table's.
    #[error(
        "{0:?} is no name for a table; use a letter or _, then letters, digits and _ - . , \
         and neither sqlite_ nor kpi_ at the start"
    )]
    Name(String),
    /// A name above [`crate::name::NAME_MAX`] bytes.
    #[error("the name has {0} bytes; use {max} at most", max = crate::name::NAME_MAX)]
    NameLong(usize),
    /// Tables do not tell letters' cases apart.
    #[error("{0:?} differs from a file that is there only in the case of its letters; rename one")]
    NameCase(String),
    /// A byte that is not text.
    #[error("byte {at} is no text; write UTF-8 without control characters")]
    Text {
        /// Where in the file, from its start.
        at: u64,
    },
    /// A line above [`crate::csv::LINE_MAX`] bytes.
    #[error("the line at byte {at} is too long; write {max} bytes at most", max = crate::csv::LINE_MAX)]
    Line {
        /// Where the line starts.
        at: u64,
    },
    /// A quote that opens or closes nowhere.
    #[error("the line at byte {at} has a misplaced quote; quote whole fields, and double inside")]
    Quote {
        /// Where the line starts.
        at: u64,
    },
    /// A line with another number of fields than the file has columns.
    #[error("the line at byte {at} has {found} fields and the file {columns} columns")]
    Fields {
        /// Where the line starts.
        at: u64,
        /// Its fields.
        found: usize,
        /// The file's columns.
        columns: usize,
    },
    /// More columns than [`crate::csv::COLUMNS_MAX`].
    #[error("there would be {0} columns; use {max} at most", max = crate::csv::COLUMNS_MAX)]
    Columns(usize),
    /// The first of several lines has a field that cannot name a column.
    #[error("{0:?} is no name for a column; name it like a file, or leave the first line empty")]
    Column(String),
    /// A name that two columns would have.
    #[error("two columns are named {0:?}, letters' cases not told apart; rename one")]
    ColumnTwice(String),
    /// A file above its limit.
    #[error("the file would have {size} bytes; {limit} are allowed")]
    Large {
        /// Its size then.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The quota is used up.
    #[error("the files would have {used} bytes; the quota is {quota}; delete or shorten some")]
    Quota {
        /// The sum of their sizes then.
        used: u64,
        /// The quota.
        quota: u64,
    },
    /// Too many files, or tables that still have rows.
    #[error("there are {0} files already; delete some")]
    Files(usize),
    /// Too many open files.
    #[error("{0} files are open already; close some")]
    Handles(usize),
    /// The disk under the database is full.
    #[error("the disk that has the database is full; free space, then write again")]
    Disk,
    /// The database does not do its work.
    #[error("the database failed: {0}; look after its disk")]
    Database(String),
    /// No such file.
    #[error("no such file")]
    NotFound,
    /// There is one already.
    #[error("there is such a file already")]
    Exists,
    /// A directory where a file is meant.
    #[error("a directory is no file")]
    IsDirectory,
    /// A file where a directory is meant.
    #[error("a file is no directory")]
    NotDirectory,
    /// The two directories are two kinds of files.
    #[error("a file does not move between the directories; copy it")]
    OtherKind,
    /// Links, devices, directories, files beside the two directories.
    #[error("only plain files are here, in unencrypted/ and encrypted/")]
    NotHere,
    /// A descriptor that does not allow it.
    #[error("the file is not open for that")]
    Handle,
    /// Flags or sizes that mean nothing here.
    #[error("that argument means nothing here")]
    Argument,
    /// What is not done here at all.
    #[error("not supported here")]
    Unsupported,
}

impl Refusal {
    /// What the application gets to see.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Name(_)
            | Self::Quote { .. }
            | Self::Fields { .. }
            | Self::Column(_)
            | Self::ColumnTwice(_)
            | Self::Argument => Errno::INVAL,
            Self::NameLong(_) => Errno::NAMETOOLONG,
            Self::NameCase(_) | Self::Exists => Errno::EXIST,
            Self::Text { .. } => Errno::ILSEQ,
            Self::Line { .. } => Errno::MSGSIZE,
            Self::Columns(_) => Errno::TOOBIG,
            Self::Large { .. } => Errno::FBIG,
            Self::Quota { .. } | Self::Files(_) => Errno::DQUOT,
            Self::Handles(_) => Errno::NFILE,
            Self::Disk => Errno::NOSPC,
            Self::Database(_) => Errno::IO,
            Self::NotFound => Errno::NOENT,
            Self::IsDirectory => Errno::ISDIR,
            Self::NotDirectory => Errno::NOTDIR,
            Self::OtherKind => Errno::XDEV,
            Self::NotHere => Errno::PERM,
            Self::Handle => Errno::BADF,
            Self::Unsupported => Errno::OPNOTSUPP,
        }
    }

    /// Whether the database could not do it, rather than the application have asked for too much.
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self, Self::Disk | Self::Database(_))
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Disk,
            // SQLite calls a full disk by another name where it wrote to its shared memory or
            // could not extend a file.
            _ if is_full(&error) => Self::Disk,
            _ => Self::Database(error.to_string()),
        }
    }
}

fn is_full(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi;
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(ffi::SQLITE_IOERR_SHMSIZE | ffi::SQLITE_IOERR_SHMOPEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_row_in_the_documented_table_of_errnos() {
        let documented = include_str!("lib.rs");
        let all = [
            (Refusal::Name(String::new()), "EINVAL"),
            (Refusal::NameLong(65), "ENAMETOOLONG"),
            (Refusal::NameCase(String::new()), "EEXIST"),
            (Refusal::Text { at: 0 }, "EILSEQ"),
            (Refusal::Line { at: 0 }, "EMSGSIZE"),
            (Refusal::Quote { at: 0 }, "EINVAL"),
            (Refusal::Fields { at: 0, found: 1, columns: 2 }, "EINVAL"),
            (Refusal::Columns(129), "E2BIG"),
            (Refusal::Column(String::new()), "EINVAL"),
            (Refusal::ColumnTwice(String::new()), "EINVAL"),
            (Refusal::Large { size: 2, limit: 1 }, "EFBIG"),
            (Refusal::Quota { used: 2, quota: 1 }, "EDQUOT"),
            (Refusal::Files(1), "EDQUOT"),
            (Refusal::Handles(1), "ENFILE"),
            (Refusal::Disk, "ENOSPC"),
            (Refusal::Database(String::new()), "EIO"),
            (Refusal::NotFound, "ENOENT"),
            (Refusal::Exists, "EEXIST"),
            (Refusal::IsDirectory, "EISDIR"),
            (Refusal::NotDirectory, "ENOTDIR"),
            (Refusal::OtherKind, "EXDEV"),
            (Refusal::NotHere, "EPERM"),
            (Refusal::Handle, "EBADF"),
            (Refusal::Argument, "EINVAL"),
            (Refusal::Unsupported, "EOPNOTSUPP"),
        ];
        for (refusal, name) in all {
            let errno = refusal.errno();
            let number = match name {
                "EINVAL" => Errno::INVAL,
                "ENAMETOOLONG" => Errno::NAMETOOLONG,
                "EEXIST" => Errno::EXIST,
                "EILSEQ" => Errno::ILSEQ,
                "EMSGSIZE" => Errno::MSGSIZE,
                "E2BIG" => Errno::TOOBIG,
                "EFBIG" => Errno::FBIG,
                "EDQUOT" => Errno::DQUOT,
                "ENFILE" => Errno::NFILE,
                "ENOSPC" => Errno::NOSPC,
                "EIO" => Errno::IO,
                "ENOENT" => Errno::NOENT,
                "EISDIR" => Errno::ISDIR,
                "ENOTDIR" => Errno::NOTDIR,
                "EXDEV" => Errno::XDEV,
                "EPERM" => Errno::PERM,
                "EBADF" => Errno::BADF,
                "EOPNOTSUPP" => Errno::OPNOTSUPP,
                other => panic!("{other}"),
            };
            assert_eq!(errno, number, "{refusal:?}");
            let mut rows = documented.lines().filter_map(|line| line.strip_prefix("//! | "));
            let is_there = rows.any(|row| {
                row.split(" | ").next().is_some_and(|cell| cell.split(", ").any(|e| e == name))
            });
            assert!(is_there, "{name} is not in the table");
        }
    }
}
