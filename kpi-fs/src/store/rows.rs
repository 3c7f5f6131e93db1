//! Rows out of what was written.
//!
//! A stored file of `unencrypted/` gives a row for each line that is new, which is one that a
//! byte was written into since the file was last stored; with the first line, all are new.
//! A stored file of `encrypted/` gives one row with all of it.

use std::borrow::Cow;

use rusqlite::{Connection, ToSql, params_from_iter};

use super::content::View;
use super::draft::{CHUNK, Ranges};
use crate::csv::{self, COLUMNS_MAX, LINE_MAX};
use crate::name::{Folder, Identifier, Name};
use crate::refusal::Refusal;

/// Bytes that a row counts for beside its values.
pub(super) const ROW_OVERHEAD: u64 = 64;

/// Bytes that are read of a file at once, and what a line may need of them.
const PIECE: usize = 2 * LINE_MAX;

/// Rows after which old ones are removed, if they are too many.
const TRIM_EVERY: u64 = 1_024;

/// Old rows that are removed at once.
const TRIM_BATCH: i64 = 256;

/// Tables that there may be. With more, one without a file is removed.
const TABLES_MAX: i64 = 2_048;

/// What all rows have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ledger {
    /// The next row's number.
    pub next_seq: i64,
    /// What the rows that there are count for.
    pub bytes: u64,
    /// What they may.
    pub bytes_max: u64,
}

/// A file whose rows are to be made.
pub(super) struct Source<'a> {
    pub view: View<'a>,
    pub folder: Folder,
    pub name: &'a Name,
    /// What was written since it was stored; all of it if it never was.
    pub written: &'a Ranges,
    /// What the file's start said when it was stored.
    pub known: Option<&'a Head>,
    /// Where a line starts that somebody else is still writing.
    pub held: Option<u64>,
    pub now_ms: i64,
}

/// What a file's start says.
#[derive(Debug, Clone)]
pub(super) struct Head {
    /// Behind the first line.
    first_end: u64,
    /// Up to where a write may change the line that tells the columns: the first, or the one
    /// after an empty header.
    end: u64,
    columns: Vec<Identifier>,
}

/// What came of it.
pub(super) struct Made {
    pub has_header: bool,
    /// `None` if there is no line that tells.
    pub head: Option<Head>,
}

impl Made {
    const NOTHING: Self = Self { has_header: false, head: None };
}

impl Source<'_> {
    /// Makes the rows of what is new.
    pub(super) fn rows(&self, ledger: &mut Ledger) -> Result<Made, Refusal> {
        let Name::Kpi(name) = self.name else { return Ok(Made::NOTHING) };
        match self.folder {
            Folder::Unencrypted => self.lines(name, ledger),
            Folder::Encrypted => {
                let size = self.view.size();
                if size > 0 && self.written.start().is_some() {
                    let len = usize::try_from(size).map_err(|_| Refusal::Argument)?;
                    let content = self.view.read(0, len)?;
                    let table = Table::opaque(self.view.db, name, ledger)?;
                    table.insert(self.view.db, &Values::Opaque(content), self.now_ms, ledger)?;
                    trim(self.view.db, ledger)?;
                }
                Ok(Made::NOTHING)
            }
        }
    }

    fn lines(&self, name: &Identifier, ledger: &mut Ledger) -> Result<Made, Refusal> {
        let size = self.view.size();
        let end = self.held.unwrap_or(size);
        if end == 0 {
            return Ok(Made::NOTHING);
        }
        let known = self.known.filter(|head| !self.written.touch(0, head.end));
        let old = self.view.stored.filter(|stored| stored.size > 0);
        let (head, has_header, is_all_new) = match (known, old) {
            (Some(head), Some(old)) => (head.clone(), old.has_header, false),
            _ => {
                let Some(first) = Lines::new(&self.view, 0, size).next()? else {
                    return Ok(Made::NOTHING);
                };
                let old = old.filter(|_| !first.is_new(self.written));
                let has_header = old.map_or(first.end < size, |old| old.has_header);
                let Some(head) = self.head(&first, has_header, end)? else {
                    return Ok(Made { has_header, head: None });
                };
                (head, has_header, old.is_none())
            }
        };
        let start = match self.written.start() {
            _ if is_all_new => 0,
            Some(start) => line_start(&self.view, start)?,
            None => size,
        };
        let start = if has_header { start.max(head.first_end) } else { start };
        let mut table = None;
        let mut made = 0_u64;
        let mut lines = Lines::new(&self.view, start, end);
        while let Some(line) = lines.next()? {
            if !is_all_new && line.start >= self.written.end() {
                break;
            }
            if !is_all_new && !line.is_new(self.written) {
                continue;
            }
            let fields = csv::fields(&line.bytes, line.start)?;
            csv::check(&fields, head.columns.len(), line.start)?;
            let table = match &mut table {
                Some(table) => table,
                None => table.insert(Table::of_lines(self.view.db, name, &head.columns, ledger)?),
            };
            table.insert(self.view.db, &Values::Text(fields), self.now_ms, ledger)?;
            made += 1;
            if made.is_multiple_of(TRIM_EVERY) {
                trim(self.view.db, ledger)?;
            }
        }
        trim(self.view.db, ledger)?;
        Ok(Made { has_header, head: Some(head) })
    }

    /// What the first line says, or the one behind an empty header; `None` if that one is not
    /// there before `end`.
    fn head(&self, first: &Line, has_header: bool, end: u64) -> Result<Option<Head>, Refusal> {
        let first_end = first.end;
        if has_header && let Some(columns) = csv::header(&first.bytes)? {
            return Ok(Some(Head { first_end, end: first.reach(), columns }));
        }
        let row = match has_header {
            true => Lines::new(&self.view, first_end, end).next()?,
            false => Some(first.clone()),
        };
        let Some(row) = row else { return Ok(None) };
        let columns = csv::unnamed(csv::fields(&row.bytes, row.start)?.len());
        Ok(Some(Head { first_end, end: row.reach(), columns }))
    }
}

/// Where the line that has the byte at `offset` starts.
pub(super) fn line_start(view: &View<'_>, offset: u64) -> Result<u64, Refusal> {
    // Lines that are stored are never longer; their end may be of two bytes.
    let last = offset.saturating_sub(LINE_MAX as u64 + 2);
    let mut to = offset;
    // Backwards, at first a little: an append starts where a line does.
    let mut step = 1;
    while to > last {
        let from = to.saturating_sub(step).max(last);
        let piece = view.read(from, usize::try_from(to - from).expect("at most a line"))?;
        if let Some(index) = piece.iter().rposition(|byte| *byte == b'\n') {
            return Ok(from + index as u64 + 1);
        }
        to = from;
        step = (step * 8).min(CHUNK);
    }
    if to == 0 { Ok(0) } else { Err(Refusal::Line { at: to }) }
}

/// One line of a file.
#[derive(Debug, Clone)]
struct Line {
    /// Without its `\n`.
    bytes: Vec<u8>,
    start: u64,
    /// Behind its `\n`, or the file's end.
    end: u64,
}

impl Line {
    /// Behind its last byte and the one after it, at which it goes on if it has no end yet.
    fn reach(&self) -> u64 {
        self.end.max(self.start + self.bytes.len() as u64 + 1)
    }

    /// Whether a byte of it was written; of an empty one, its end.
    fn is_new(&self, written: &Ranges) -> bool {
        match self.bytes.len() {
            0 => written.touch(self.start, self.end),
            len => written.touch(self.start, self.start + len as u64),
        }
    }
}

/// Reads lines, a piece of the file in memory at a time.
struct Lines<'a> {
    view: &'a View<'a>,
    /// Where `piece` starts in the file.
    at: u64,
    end: u64,
    piece: Vec<u8>,
    used: usize,
    /// Bytes to read next: few at first, most files are short.
    step: usize,
}

impl<'a> Lines<'a> {
    fn new(view: &'a View<'a>, start: u64, end: u64) -> Self {
        Self { view, at: start, end, piece: Vec::new(), used: 0, step: 4_096 }
    }

    fn next(&mut self) -> Result<Option<Line>, Refusal> {
        loop {
            let start = self.at + self.used as u64;
            let rest = &self.piece[self.used..];
            let found = rest.iter().position(|byte| *byte == b'\n');
            let is_last = self.at + self.piece.len() as u64 >= self.end;
            let (len, end) = match found {
                Some(len) => (len, len + 1),
                None if is_last && rest.is_empty() => return Ok(None),
                None if is_last => (rest.len(), rest.len()),
                None if rest.len() >= PIECE => return Err(Refusal::Line { at: start }),
                None => {
                    self.piece.drain(..self.used);
                    self.used = 0;
                    self.at = start;
                    let next = self.at + self.piece.len() as u64;
                    let rest = usize::try_from(self.end - next).unwrap_or(PIECE);
                    let wanted = rest.min(self.step);
                    self.step = (self.step * 2).min(PIECE);
                    let more = self.view.read(next, wanted)?;
                    self.piece.extend_from_slice(&more);
                    continue;
                }
            };
            let line = Line { bytes: rest[..len].to_vec(), start, end: start + end as u64 };
            self.used += end;
            return Ok(Some(line));
        }
    }
}

/// What a row has beside its number and time.
enum Values<'a> {
    /// A field for each column of the file.
    Text(Vec<Cow<'a, str>>),
    /// A whole file.
    Opaque(Vec<u8>),
}

/// A table that rows go into.
struct Table {
    insert: String,
}

impl Table {
    /// The table of a file of lines, made or widened so that it has the columns.
    fn of_lines(
        db: &Connection,
        name: &Identifier,
        columns: &[Identifier],
        ledger: &mut Ledger,
    ) -> Result<Self, Refusal> {
        let table = name.quoted();
        let mut there = columns_of(db, &table_name(name))?;
        if there.is_empty() {
            make_room(db, ledger)?;
            let list: String = columns.iter().map(|c| format!(", {} TEXT", c.quoted())).collect();
            db.execute_batch(&format!(
                "CREATE TABLE {table} (
                    kpi_seq INTEGER PRIMARY KEY, kpi_saved_ms INTEGER NOT NULL{list}) STRICT;"
            ))?;
            there = columns.to_vec();
            attach(db, &table_name(name), &there)?;
        }
        let missing: Vec<&Identifier> =
            columns.iter().filter(|column| !there.iter().any(|c| c.is_like(column))).collect();
        if !missing.is_empty() {
            if there.len() + missing.len() > COLUMNS_MAX {
                return Err(Refusal::Columns(there.len() + missing.len()));
            }
            for column in missing {
                let column = column.clone();
                db.execute_batch(&format!(
                    "ALTER TABLE {table} ADD COLUMN {} TEXT",
                    column.quoted()
                ))?;
                there.push(column);
            }
            attach(db, &table_name(name), &there)?;
        }
        let names: String = columns.iter().map(|c| format!(", {}", c.quoted())).collect();
        let places = ", ?".repeat(columns.len());
        let insert =
            format!("INSERT INTO {table} (kpi_seq, kpi_saved_ms{names}) VALUES (?, ?{places})");
        Ok(Self { insert })
    }

    /// The table of a file that nobody here can read.
    fn opaque(db: &Connection, name: &Identifier, ledger: &mut Ledger) -> Result<Self, Refusal> {
        let table = Folder::Encrypted.table(name);
        if columns_of(db, &table)?.is_empty() {
            make_room(db, ledger)?;
            db.execute_batch(&format!(
                "CREATE TABLE \"{table}\" (
                    kpi_seq INTEGER PRIMARY KEY, kpi_saved_ms INTEGER NOT NULL,
                    content BLOB NOT NULL) STRICT;"
            ))?;
            let content = Identifier::of_column("content").expect("a name");
            attach_outbox(db, &table, &[content])?;
        }
        let insert =
            format!("INSERT INTO \"{table}\" (kpi_seq, kpi_saved_ms, content) VALUES (?1, ?2, ?3)");
        Ok(Self { insert })
    }

    /// Adds a row, whose values are text or bytes.
    fn insert(
        &self,
        db: &Connection,
        values: &Values<'_>,
        now_ms: i64,
        ledger: &mut Ledger,
    ) -> Result<(), Refusal> {
        let fixed: [&dyn ToSql; 2] = [&ledger.next_seq, &now_ms];
        let (bytes, values) = match values {
            Values::Text(fields) => {
                let bytes: usize = fields.iter().map(|field| field.len()).sum();
                (bytes, fields.iter().map(|field| field as &dyn ToSql).collect())
            }
            Values::Opaque(content) => (content.len(), vec![content as &dyn ToSql]),
        };
        let values: Vec<&dyn ToSql> = values;
        db.prepare_cached(&self.insert)?
            .execute(params_from_iter(fixed.into_iter().chain(values)))?;
        ledger.next_seq += 1;
        ledger.bytes += bytes as u64 + ROW_OVERHEAD;
        Ok(())
    }
}

fn table_name(name: &Identifier) -> String {
    Folder::Unencrypted.table(name)
}

/// The application's columns of a table; none if there is no such table.
fn columns_of(db: &Connection, table: &str) -> Result<Vec<Identifier>, Refusal> {
    let mut query = db.prepare_cached(
        "SELECT name FROM pragma_table_info(?1) WHERE name NOT LIKE 'kpi\\_%' ESCAPE '\\'",
    )?;
    let names = query.query_map([table], |row| row.get::<_, String>(0))?;
    names.map(|name| Identifier::of_column(&name?)).collect()
}

/// Puts beside a table what depends on its columns: the trigger that notes new rows, and the view
/// of its values as numbers.
///
/// A value is a number where SQLite takes the whole text for one: `007` and `1e5` are, `5 users`
/// and an empty text are not, and show as NULL.
fn attach(db: &Connection, table: &str, columns: &[Identifier]) -> Result<(), Refusal> {
    attach_outbox(db, table, columns)?;
    let numbers: String = columns
        .iter()
        .map(|column| {
            let name = column.quoted();
            let number = format!("CAST({name} AS NUMERIC)");
            format!(", CASE WHEN {name} = {number} THEN {number} END AS {name}")
        })
        .collect();
    db.execute_batch(&format!(
        "DROP VIEW IF EXISTS \"{table}/numbers\";
         CREATE VIEW \"{table}/numbers\" AS SELECT kpi_seq, kpi_saved_ms{numbers} FROM \"{table}\";"
    ))?;
    Ok(())
}

fn attach_outbox(db: &Connection, table: &str, columns: &[Identifier]) -> Result<(), Refusal> {
    let bytes: String = columns
        .iter()
        .map(|column| format!(" + ifnull(octet_length(NEW.{}), 0)", column.quoted()))
        .collect();
    db.execute_batch(&format!(
        "DROP TRIGGER IF EXISTS \"{table}/outbox\";
         CREATE TRIGGER \"{table}/outbox\" AFTER INSERT ON \"{table}\" BEGIN
             INSERT INTO \"kpi/outbox\" (seq, name, bytes)
             VALUES (NEW.kpi_seq, '{table}', {ROW_OVERHEAD}{bytes});
         END;"
    ))?;
    Ok(())
}

/// Removes the oldest rows while all count for more than they may, and counts those that nobody
/// has acknowledged.
fn trim(db: &Connection, ledger: &mut Ledger) -> Result<(), Refusal> {
    while ledger.bytes > ledger.bytes_max {
        let mut query =
            db.prepare_cached("SELECT seq, name, bytes FROM \"kpi/outbox\" ORDER BY seq LIMIT ?1")?;
        let oldest = query.query_map([TRIM_BATCH], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
        })?;
        let oldest: Vec<_> = oldest.collect::<Result<_, _>>()?;
        let mut last = None;
        for (seq, table, bytes) in oldest {
            if ledger.bytes <= ledger.bytes_max {
                break;
            }
            db.prepare_cached(&format!("DELETE FROM \"{table}\" WHERE kpi_seq = ?1"))?
                .execute([seq])?;
            let bytes = u64::try_from(bytes).unwrap_or_default();
            ledger.bytes = ledger.bytes.saturating_sub(bytes);
            last = Some(seq);
        }
        let Some(last) = last else { return Ok(()) };
        forget_until(db, last)?;
    }
    Ok(())
}

/// Takes the outbox's notes up to `seq` away, and counts those that were not acknowledged.
fn forget_until(db: &Connection, seq: i64) -> Result<(), Refusal> {
    db.prepare_cached(
        "UPDATE \"kpi/state\" SET dropped = dropped +
            (SELECT count(*) FROM \"kpi/outbox\" WHERE seq <= ?1 AND seq > acknowledged)",
    )?
    .execute([seq])?;
    db.prepare_cached("DELETE FROM \"kpi/outbox\" WHERE seq <= ?1")?.execute([seq])?;
    Ok(())
}

/// Sees to it that there may be one more table.
fn make_room(db: &Connection, ledger: &mut Ledger) -> Result<(), Refusal> {
    let count: i64 = db
        .prepare_cached("SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'")?
        .query_row([], |row| row.get(0))?;
    if count < TABLES_MAX {
        return Ok(());
    }
    let tables = usize::try_from(count).unwrap_or_default();
    // The one whose last row is oldest, among those whose file is gone. Every table has a trigger.
    let orphan: Option<String> = db
        .prepare_cached(
            "SELECT tbl_name FROM sqlite_schema AS tables
             LEFT JOIN (SELECT name, max(seq) AS last FROM \"kpi/outbox\" GROUP BY name) AS seen
                 ON seen.name = tbl_name
             WHERE type = 'trigger' AND NOT EXISTS (
                 SELECT 1 FROM \"kpi/files\" AS files
                 WHERE lower(tbl_name) = lower(iif(folder = 'encrypted',
                     'encrypted/' || files.name, files.name)))
             ORDER BY ifnull(last, 0) LIMIT 1",
        )?
        .query_map([], |row| row.get(0))?
        .next()
        .transpose()?;
    let Some(orphan) = orphan else { return Err(Refusal::Files(tables)) };
    let bytes: i64 = db
        .prepare_cached("SELECT ifnull(sum(bytes), 0) FROM \"kpi/outbox\" WHERE name = ?1")?
        .query_row([&orphan], |row| row.get(0))?;
    ledger.bytes = ledger.bytes.saturating_sub(u64::try_from(bytes).unwrap_or_default());
    db.prepare_cached(
        "UPDATE \"kpi/state\" SET dropped = dropped +
            (SELECT count(*) FROM \"kpi/outbox\" WHERE name = ?1 AND seq > acknowledged)",
    )?
    .execute([&orphan])?;
    db.prepare_cached("DELETE FROM \"kpi/outbox\" WHERE name = ?1")?.execute([&orphan])?;
    db.execute_batch(&format!(
        "DROP VIEW IF EXISTS \"{orphan}/numbers\"; DROP TABLE \"{orphan}\";"
    ))?;
    Ok(())
}
