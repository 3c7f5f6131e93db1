//! Durable rows a second: through the KPI file system, straight into SQLite, and into plain files.
//!
//! All lie in one folder. A row is one open, write and close of a file that is written anew
//! (`printf 'users,load\n5,0.7\n' > file`), by each writer of a file of its own; in SQLite it is
//! one row of a table of the writer's own, in WAL mode with `synchronous=FULL`; the plain file is
//! written anew and synced. Writers are threads of this process. Where there are 16, SQLite has two
//! ways: 16 connections that wait for one another, or one that commits together what waits, as the
//! KPI file system does; the faster one counts.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use federation_tests::bench::{Failure, median};
use kpi_fs::outbox::Outbox;
use rusqlite::{Connection, params};

use crate::Extent;
use crate::mount::Mount;
use federation_tests::bench::report::{Aim, report};

/// Writers at once.
const WRITERS: [usize; 2] = [1, 16];
/// Rows that one commit takes together where one connection has many writers, and that wait.
const BATCH: usize = 256;
/// How long one of many connections waits for the others.
const BUSY: Duration = Duration::from_secs(10);
/// Pages that a connection keeps in memory, as the KPI file system's does: 8 MiB.
const CACHE_KIB: i64 = 8 << 10;

/// Where rows go.
#[derive(Clone, Copy)]
enum Way {
    /// The KPI file system, through its mount.
    Files,
    /// SQLite, a connection for each writer.
    Connections,
    /// SQLite, one connection for all writers.
    Together,
    /// A plain file for each writer.
    Plain,
}

pub(crate) fn run(extent: &Extent) -> Result<(), Failure> {
    let (rounds, slice) = match extent.is_quick {
        true => (3, Duration::from_millis(700)),
        false => (9, Duration::from_secs(2)),
    };
    let folder = tempfile::Builder::new().prefix("sojourn-").tempdir()?;
    let mut bench = Bench::new(folder.path())?;
    println!(
        "Durable rows a second, each one open, write and close; medians of {rounds} rounds of \
         {slice:?}, turn and turn about:"
    );
    println!("writers  kpi-fs   SQLite   SQLite together   file and fsync   /SQLite   /file");
    for writers in WRITERS {
        let ways = match writers {
            1 => vec![Way::Files, Way::Connections, Way::Plain],
            _ => vec![Way::Files, Way::Connections, Way::Together, Way::Plain],
        };
        let mut all: Vec<Vec<f64>> = vec![vec![]; ways.len()];
        let (mut to_sqlite, mut to_plain) = (vec![], vec![]);
        bench.all(&ways, writers, slice / 4)?;
        for _ in 0..rounds {
            let rates = bench.all(&ways, writers, slice)?;
            let sqlite = rates[1..rates.len() - 1].iter().copied().fold(0.0, f64::max);
            to_sqlite.push(rates[0] / sqlite);
            to_plain.push(rates[0] / rates[rates.len() - 1]);
            all.iter_mut().zip(&rates).for_each(|(of_way, rate)| of_way.push(*rate));
        }
        let rate = |way: usize| median(all[way].clone());
        let together = if writers == 1 { "-".to_owned() } else { format!("{:.0}", rate(2)) };
        println!(
            "{writers:<8}{:>7.0}{:>9.0}{together:>18}{:>17.0}{:>10.2}{:>8.2}",
            rate(0),
            rate(1),
            rate(ways.len() - 1),
            median(to_sqlite.clone()),
            median(to_plain.clone())
        );
        report("of what SQLite does", median(to_sqlite), Aim::AtLeast(0.8));
        report("of what a file and fsync do", median(to_plain), Aim::AtLeast(0.5));
    }
    bench.check()
}

struct Bench {
    mount: Mount,
    folder: PathBuf,
    /// A connection for each writer.
    apart: Vec<Connection>,
    /// One for all.
    together: Connection,
}

impl Bench {
    fn new(folder: &Path) -> Result<Self, Failure> {
        let mount = Mount::new(&folder.join("kpi"), &folder.join("kpi.db"), None)?;
        let most = WRITERS[WRITERS.len() - 1];
        let apart = (0..most).map(|writer| open(&folder.join("apart.db"), writer..writer + 1));
        let apart = apart.collect::<rusqlite::Result<_>>()?;
        let together = open(&folder.join("together.db"), 0..most)?;
        together.set_prepared_statement_cache_capacity(2 * most);
        Ok(Self { mount, folder: folder.to_owned(), apart, together })
    }

    fn all(&mut self, ways: &[Way], writers: usize, slice: Duration) -> Result<Vec<f64>, Failure> {
        ways.iter().map(|way| self.rate(*way, writers, slice)).collect()
    }

    /// Rows a second that so many writers get done.
    fn rate(&mut self, way: Way, writers: usize, slice: Duration) -> Result<f64, Failure> {
        let files = |file: &dyn Fn(usize) -> PathBuf, is_synced: bool| {
            let one = |writer| {
                let file = file(writer);
                move |n| write(&file, n, is_synced)
            };
            each((0..writers).map(one).collect(), slice)
        };
        match way {
            Way::Files => files(&|writer| self.mount.file(&format!("w{writer}")), false),
            Way::Plain => files(&|writer| self.folder.join(format!("plain{writer}")), true),
            Way::Connections => {
                let writers = self.apart.iter_mut().take(writers).enumerate();
                let one = |(writer, db)| {
                    // A connection may go to another thread, but not be in two.
                    let db: &mut Connection = db;
                    move |n| insert(db, writer, n)
                };
                each(writers.map(one).collect(), slice)
            }
            Way::Together => {
                let (rows, waiting) = sync_channel(BATCH);
                let db = &mut self.together;
                std::thread::scope(|scope| {
                    let owner = scope.spawn(move || commit(db, &waiting));
                    let one = |writer| {
                        let (rows, (done, kept)) = (rows.clone(), sync_channel(1));
                        move |n| {
                            rows.send((writer, n, done.clone()))?;
                            Ok(kept.recv()?)
                        }
                    };
                    let rate = each((0..writers).map(one).collect(), slice);
                    drop(rows);
                    owner.join().expect("it does not panic")?;
                    rate
                })
            }
        }
    }

    /// No row is lost, none comes twice: each file's rows are counted on.
    fn check(&self) -> Result<(), Failure> {
        let outbox = Outbox::open(self.mount.database())?;
        let db = Connection::open(self.mount.database())?;
        let state = outbox.state()?;
        let mut rows = state.dropped;
        for writer in 0..WRITERS[WRITERS.len() - 1] {
            let count = format!("SELECT count(*) FROM w{writer}");
            rows += db.query_row(&count, [], |row| row.get::<_, i64>(0))?;
        }
        if rows == state.last { Ok(()) } else { Err("rows were lost".into()) }
    }
}

/// Lets each writer write, until the time is over; answers how many rows a second there were.
fn each<W>(writers: Vec<W>, slice: Duration) -> Result<f64, Failure>
where
    W: FnMut(u64) -> Result<(), Failure> + Send,
{
    let begun = Instant::now();
    let rows: Result<u64, Failure> = std::thread::scope(|scope| {
        let one = |mut write: W| {
            scope.spawn(move || {
                let mut rows = 0;
                while begun.elapsed() < slice {
                    write(rows)?;
                    rows += 1;
                }
                Ok(rows)
            })
        };
        let threads: Vec<_> = writers.into_iter().map(one).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).sum()
    });
    Ok(rows? as f64 / begun.elapsed().as_secs_f64())
}

fn write(file: &Path, n: u64, is_synced: bool) -> Result<(), Failure> {
    let mut file = File::create(file)?;
    file.write_all(format!("users,load\n{n},0.7\n").as_bytes())?;
    if is_synced {
        file.sync_all()?;
    }
    Ok(())
}

fn open(path: &Path, writers: std::ops::Range<usize>) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "cache_size", -CACHE_KIB)?;
    for writer in writers {
        db.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS w{writer} (
                seq INTEGER PRIMARY KEY, saved_ms INTEGER NOT NULL, users TEXT, load TEXT) STRICT"
        ))?;
    }
    Ok(db)
}

fn insert(db: &Connection, writer: usize, n: u64) -> Result<(), Failure> {
    let saved = i64::try_from(federation_tests::bench::clock().0)?;
    let row = format!("INSERT INTO w{writer} (saved_ms, users, load) VALUES (?1, ?2, ?3)");
    db.prepare_cached(&row)?.execute(params![saved, n.to_string(), "0.7"])?;
    Ok(())
}

/// A row: its writer, what it says, and who waits for it.
type Row = (usize, u64, SyncSender<()>);

/// Commits what waits, together, until nobody can write any more.
fn commit(db: &Connection, waiting: &Receiver<Row>) -> Result<(), Failure> {
    while let Ok(first) = waiting.recv() {
        let rows: Vec<Row> = std::iter::once(first).chain(waiting.try_iter()).take(BATCH).collect();
        db.execute_batch("BEGIN IMMEDIATE")?;
        rows.iter().try_for_each(|(writer, n, _)| insert(db, *writer, *n))?;
        db.execute_batch("COMMIT")?;
        for (_, _, kept) in rows {
            // Whoever waits for it may have failed otherwise.
            let _ = kept.send(());
        }
    }
    Ok(())
}
