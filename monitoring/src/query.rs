//! Values as users see them, and SQL over those of one VM.
//!
//! A query gets a database of its own, in memory, which holds the values of one VM and nothing else:
//!
//! - `measures (seq, at_ms, received_ms, measure, format, of, value)`: every value;
//! - a table for each file that the application writes, such as `web (at_ms, current_users, …)`: its
//!   raw values, those of one row of it in one row.
//!
//! It can only read, and is ended when it takes too long or gives too much.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use model::monitoring::{Format, Measure, SectionId};
use model::{Epoch, Monitoring, Time};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
pub use rusqlite::types::Value as Cell;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params_from_iter};

use crate::block::{Reading, Value};
use crate::book::Kept;
use crate::seal::OpeningKey;

/// Rows of one answer.
pub const MAX_ROWS: usize = 10_000;
/// Bytes of one answer, about.
pub const MAX_BYTES: usize = 8 << 20;
/// Characters of one query.
pub const MAX_QUERY: usize = 16 << 10;
/// How long a query may run.
pub const TIME: Duration = Duration::from_secs(2);
/// Steps of SQLite's machine between two looks at the time.
const STEPS: std::os::raw::c_int = 1_000;

/// A value with all that is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// The epoch in which it was told.
    pub epoch: Epoch,
    /// Its number in the VM's life.
    pub number: u64,
    /// When, by the clock of the site that measured it.
    pub at: Time,
    /// When it came here, by this site's clock.
    pub received: Time,
    /// What was measured.
    pub measure: Measure,
    /// What it is of the measured values that it stands for.
    pub format: Format,
    /// How many those are.
    pub of: u32,
    /// The value.
    pub reading: Reading,
}

/// Reads the values of blocks, with the VM's opening key if this site has it.
///
/// Values whose section is not known here are left out. A sealed part that cannot be opened gives
/// no values; how many there are of these is told beside.
pub fn values(
    blocks: &[Kept],
    sections: &HashMap<SectionId, Monitoring>,
    key: Option<&OpeningKey>,
) -> (Vec<Seen>, u64) {
    let (mut all, mut hidden) = (Vec::new(), 0);
    for kept in blocks {
        let Ok(block) = kept.block() else { continue };
        let Some(section) = sections.get(&block.section) else { continue };
        let place = (block.vm, block.epoch, block.first);
        let opened = match &block.sealed {
            None => vec![],
            Some(sealed) => {
                key.and_then(|key| key.values(place, sealed).ok()).unwrap_or_else(|| {
                    hidden += u64::from(sealed.count);
                    vec![]
                })
            }
        };
        for (number, value) in (block.first..).zip(block.open.into_iter().chain(opened)) {
            let Value { specifier, after_ms, of, reading } = value;
            let Some(specifier) = section.specifiers.get(usize::from(specifier)) else { continue };
            let reading = match (reading, key) {
                (Reading::Content(content), Some(key)) => match key.file(&content) {
                    Some(Ok(opened)) => Reading::Content(opened),
                    _ => Reading::Content(content),
                },
                (reading, _) => reading,
            };
            all.push(Seen {
                epoch: block.epoch,
                number,
                at: Time(block.at.0.saturating_add_signed(after_ms)),
                received: kept.received,
                measure: specifier.measure.clone(),
                format: specifier.format,
                of,
                reading,
            });
        }
    }
    (all, hidden)
}

/// What a query gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<Cell>>,
    /// There would have been more.
    pub is_cut: bool,
}

/// Why a query gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// It is too long.
    #[error("the query is longer than {MAX_QUERY} characters")]
    Long,
    /// It took too long.
    #[error("the query ran for more than {TIME:?}; ask for less, such as with a limit or a WHERE")]
    Time,
    /// SQLite does not understand it, or it does more than read.
    #[error("{0}; a query reads from measures{1}")]
    Sql(String, String),
}

/// Runs one query over the values.
pub fn run(values: &[Seen], sql: &str) -> Result<Table, QueryError> {
    if sql.len() > MAX_QUERY {
        return Err(QueryError::Long);
    }
    let mut tables = String::new();
    let failed = |error: &rusqlite::Error, tables: &str| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::OperationInterrupted) => QueryError::Time,
        _ => QueryError::Sql(error.to_string(), tables.to_owned()),
    };
    let mut db = fill(values, &mut tables).map_err(|error| failed(&error, &tables))?;
    lock_down(&mut db).map_err(|error| failed(&error, &tables))?;
    read(&db, sql).map_err(|error| failed(&error, &tables))
}

fn read(db: &Connection, sql: &str) -> rusqlite::Result<Table> {
    let mut query = db.prepare(sql)?;
    let columns: Vec<String> = query.column_names().map(str::to_owned).collect();
    let mut found = query.query([])?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.next()? {
        if rows.len() >= MAX_ROWS || bytes >= MAX_BYTES {
            return Ok(Table { columns, rows, is_cut: true });
        }
        let cells = (0..columns.len()).map(|at| row.get_ref(at).map(Cell::try_from));
        let cells = cells
            .map(|cell| Ok(cell?.unwrap_or(Cell::Null)))
            .collect::<rusqlite::Result<Vec<Cell>>>()?;
        bytes += cells.iter().map(size).sum::<usize>();
        rows.push(cells);
    }
    Ok(Table { columns, rows, is_cut: false })
}

fn size(cell: &Cell) -> usize {
    match cell {
        Cell::Text(text) => text.len(),
        Cell::Blob(bytes) => bytes.len(),
        _ => 8,
    }
}

fn fill(values: &[Seen], tables: &mut String) -> rusqlite::Result<Connection> {
    let db = Connection::open_in_memory()?;
    db.execute_batch(
        "CREATE TABLE measures (seq INTEGER, at_ms INTEGER, received_ms INTEGER, measure TEXT,
            format TEXT, \"of\" INTEGER, value); BEGIN",
    )?;
    let mut insert = db.prepare("INSERT INTO measures VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
    // By file: its columns, and its rows with their times and fields.
    type File = (Vec<String>, Vec<(u64, HashMap<String, Cell>)>);
    let mut files: BTreeMap<&str, File> = BTreeMap::new();
    let mut values: Vec<&Seen> = values.iter().collect();
    values.sort_by_key(|seen| (seen.epoch, seen.number));
    for seen in values {
        let value = cell(&seen.reading);
        insert.execute((
            i64::try_from(seen.number).unwrap_or(i64::MAX),
            i64::try_from(seen.at.0).unwrap_or(i64::MAX),
            i64::try_from(seen.received.0).unwrap_or(i64::MAX),
            seen.measure.to_string(),
            seen.format.to_string(),
            seen.of,
            &value,
        ))?;
        let Measure::Kpi { table, column } = &seen.measure else { continue };
        if seen.format != Format::Raw {
            continue;
        }
        let (columns, rows) = files.entry(table).or_default();
        if !columns.contains(column) {
            columns.push(column.clone());
        }
        // Values of one moment are of one row, until a column comes again.
        let fits = |(at, fields): &&mut (u64, HashMap<String, Cell>)| {
            *at == seen.at.0 && !fields.contains_key(column)
        };
        match rows.last_mut().filter(fits) {
            Some((_, fields)) => _ = fields.insert(column.clone(), value),
            None => rows.push((seen.at.0, HashMap::from([(column.clone(), value)]))),
        }
    }
    drop(insert);
    let mut made = vec!["measures".to_owned()];
    for (file, (mut columns, rows)) in files {
        // Names of KPIs have nothing in them that would end a quoted name. SQLite does not tell
        // letters' cases apart, and has names of its own; what collides is in `measures` alone.
        let name = file.to_ascii_lowercase();
        if made.contains(&name) || name.starts_with("sqlite_") {
            continue;
        }
        made.push(name);
        let mut taken = vec!["at_ms".to_owned()];
        columns.retain(|column| {
            let column = column.to_ascii_lowercase();
            let is_new = !taken.contains(&column);
            taken.push(column);
            is_new
        });
        tables.push_str(&format!(", {file} (at_ms, {})", columns.join(", ")));
        let quoted: Vec<String> = columns.iter().map(|column| format!("\"{column}\"")).collect();
        db.execute_batch(&format!("CREATE TABLE \"{file}\" (at_ms, {})", quoted.join(", ")))?;
        let places = vec!["?"; columns.len() + 1].join(", ");
        let mut insert = db.prepare(&format!("INSERT INTO \"{file}\" VALUES ({places})"))?;
        for (at, mut fields) in rows {
            let at = Cell::Integer(i64::try_from(at).unwrap_or(i64::MAX));
            let fields = columns.iter().map(|column| fields.remove(column).unwrap_or(Cell::Null));
            insert.execute(params_from_iter(std::iter::once(at).chain(fields)))?;
        }
    }
    db.execute_batch("COMMIT")?;
    Ok(db)
}

fn cell(reading: &Reading) -> Cell {
    match reading {
        Reading::Integer(number) => Cell::Integer(*number),
        Reading::Number(number) => Cell::Real(*number),
        Reading::Text(text) => Cell::Text(text.clone()),
        Reading::Content(content) => Cell::Blob(content.clone()),
    }
}

fn lock_down(db: &mut Connection) -> rusqlite::Result<()> {
    let mebibyte = 1 << 20;
    db.set_limit(Limit::SQLITE_LIMIT_LENGTH, mebibyte)?;
    db.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    db.authorizer(Some(|context: AuthContext<'_>| match context.action {
        AuthAction::Select | AuthAction::Read { .. } => Authorization::Allow,
        AuthAction::Function { function_name: "load_extension" } => Authorization::Deny,
        AuthAction::Function { .. } => Authorization::Allow,
        _ => Authorization::Deny,
    }))?;
    let end = Instant::now() + TIME;
    db.progress_handler(STEPS, Some(move || Instant::now() > end))
}

/// As a text, for whoever prints it.
pub fn show(cell: &Cell) -> String {
    match ValueRef::from(cell) {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => format!("({} bytes)", bytes.len()),
    }
}

#[cfg(test)]
mod tests {
    use model::monitoring::VmMeasure;

    use super::*;

    fn seen(number: u64, measure: Measure, reading: Reading) -> Seen {
        let at = Time(1_000 * number.div_ceil(2));
        Seen {
            epoch: Epoch(0),
            number,
            at,
            received: at,
            measure,
            format: Format::Raw,
            of: 1,
            reading,
        }
    }

    fn some() -> Vec<Seen> {
        let kpi = |text: &str| text.parse::<Measure>().unwrap();
        vec![
            seen(1, kpi("web.users"), Reading::Integer(5)),
            seen(2, kpi("web.load"), Reading::Text("0.50".into())),
            seen(3, kpi("web.users"), Reading::Integer(7)),
            seen(4, Measure::Vm(VmMeasure::CpuShare), Reading::Number(0.25)),
            seen(5, kpi("measures.x"), Reading::Integer(1)),
            // Two rows of one moment.
            Seen { at: Time(2_000), ..seen(6, kpi("web.users"), Reading::Integer(6)) },
        ]
    }

    fn text(sql: &str) -> String {
        let table = run(&some(), sql).unwrap();
        let rows = table.rows.iter().map(|row| row.iter().map(show).collect::<Vec<_>>().join(","));
        std::iter::once(table.columns.join(",")).chain(rows).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_file_is_a_table_and_everything_is_in_measures() {
        assert_eq!(text("SELECT * FROM web"), "at_ms,users,load 1000,5,0.50 2000,7, 2000,6,");
        assert_eq!(text("SELECT max(users) AS most FROM web"), "most 7");
        assert_eq!(
            text("SELECT seq, value FROM measures WHERE measure = 'cpu_share'"),
            "seq,value 4,0.25"
        );
        assert_eq!(text("SELECT count(*) AS n FROM measures"), "n 6");
    }

    #[test]
    fn a_query_can_do_nothing_but_read_its_own_vms_values() {
        for sql in [
            "",
            "nonsense",
            "SELECT * FROM nothing",
            "DELETE FROM web",
            "INSERT INTO web VALUES (1, 2, 3)",
            "UPDATE measures SET value = 1",
            "DROP TABLE web",
            "CREATE TABLE t (x)",
            "CREATE TEMP TABLE t (x)",
            "ATTACH '/etc/passwd' AS p",
            "ATTACH ':memory:' AS p",
            "PRAGMA writable_schema = 1",
            "PRAGMA user_version",
            "VACUUM INTO '/tmp/x'",
            "SELECT load_extension('x')",
            "BEGIN",
            "EXPLAIN DELETE FROM web",
            "SELECT 1; SELECT 2",
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT * FROM n",
            "SELECT zeroblob(2000000)",
        ] {
            let error = run(&some(), sql).unwrap_err();
            assert!(matches!(error, QueryError::Sql(..)), "{sql}: {error}");
            assert!(error.to_string().contains("web (at_ms, users, load)"), "{sql}: {error}");
        }
        let long = format!("SELECT 1 -- {}", "x".repeat(MAX_QUERY));
        assert!(matches!(run(&some(), &long), Err(QueryError::Long)));
    }

    #[test]
    fn a_query_that_never_ends_is_ended_and_one_that_gives_too_much_is_cut() {
        let many: Vec<Seen> = (0..2_000).flat_map(|_| some()).collect();
        let endless = "SELECT count(*) FROM measures a, measures b, measures c, measures d";
        assert!(matches!(run(&many, endless), Err(QueryError::Time)));
        let table = run(&many, "SELECT 1 FROM measures a, measures b").unwrap();
        assert_eq!((table.rows.len(), table.is_cut), (MAX_ROWS, true));
    }
}
