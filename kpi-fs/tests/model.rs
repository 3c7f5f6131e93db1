//! The store against a model of it in a few plain vectors: random operations, one after another.
//!
//! 20,000 operations by default; `SOJOURN_KPI_FULL=1` makes it a million. A failure says its seed,
//! and `SOJOURN_KPI_SEED=NUMBER` runs that one alone.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test's helpers are tests, too")]

use std::collections::BTreeMap;

use kpi_fs::csv;
use kpi_fs::name::{Folder, Name};
use kpi_fs::outbox::{Outbox, Values};
use kpi_fs::store::{Job, Limits, Owner, Position, Process, Store};

/// Operations of one run; each run has a seed and a database of its own.
const RUN: usize = 500;

const OWNER: Owner = Owner { uid: 0, gid: 0, mode: 0o644 };

/// Small, so that limits are met.
const LIMITS: Limits = Limits { quota: 40_000, file: 20_000, rows: 1 << 30 };

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Values by their columns' names, which a table puts in an order of its own.
type Row = BTreeMap<String, String>;

/// A file in the model: a byte, and whether it was written since the file was stored.
#[derive(Clone, Default)]
struct File {
    name: String,
    stored: Option<Vec<u8>>,
    has_header: bool,
    now: Vec<(u8, bool)>,
    /// Whether there is anything that is not stored, if only the fact that it is there.
    is_changed: bool,
    /// Handles that made it so, and processes, where they are known.
    writers: Vec<Writer>,
    /// Who wrote the last byte.
    tail: Option<Writer>,
    is_linked: bool,
}

type Writer = (u64, Option<u64>);

/// Whether a close by the process is one by a writer.
fn is_closed_by(writers: &[Writer], handle: u64, process: u64) -> bool {
    let mut own = writers.iter().filter(|writer| writer.0 == handle).peekable();
    let is_any = own.peek().is_some();
    let known: Vec<u64> = own.filter_map(|writer| writer.1).collect();
    is_any && (known.is_empty() || known.contains(&process))
}

#[derive(Default)]
struct Model {
    /// By the store's numbers.
    files: BTreeMap<u64, File>,
    /// Handle to file, and the writers one of whom must hear of a refusal.
    handles: BTreeMap<u64, (u64, Option<Vec<Writer>>)>,
    rows: Vec<(String, Row)>,
}

impl Model {
    fn find(&self, name: &str) -> Option<u64> {
        let mut found = self.files.iter().filter(|(_, file)| file.is_linked && file.name == name);
        found.next().map(|(number, _)| *number)
    }

    fn used(&self) -> usize {
        self.files
            .values()
            .map(|file| file.now.len().max(file.stored.as_ref().map_or(0, Vec::len)))
            .sum()
    }

    fn fits(&self, file: u64, size: usize) -> bool {
        let found = &self.files[&file];
        let stored = found.stored.as_ref().map_or(0, Vec::len);
        let used = self.used() - found.now.len().max(stored) + size.max(stored);
        let quota = usize::try_from(LIMITS.quota).unwrap();
        let limit = usize::try_from(LIMITS.file).unwrap();
        size <= found.now.len() || (size <= limit && used <= quota)
    }

    /// Whether the write is taken.
    fn write(&mut self, writer: Writer, at: Option<usize>, data: &[u8]) -> bool {
        let handle = writer.0;
        let (number, refused) = self.handles[&handle].clone();
        if refused.is_some() {
            return false;
        }
        let old = self.files[&number].now.len();
        let at = at.unwrap_or(old);
        if data.is_empty() {
            return true;
        }
        if !self.fits(number, old.max(at + data.len())) {
            self.refuse(writer);
            return false;
        }
        let file = self.files.get_mut(&number).unwrap();
        let before = file.now.clone();
        if file.now.len() < at + data.len() {
            file.now.resize(at + data.len(), (0, true));
        }
        for (index, byte) in data.iter().enumerate() {
            file.now[at + index] = (*byte, true);
        }
        // A new end of a line where there was none makes both its neighbours new.
        for (index, byte) in data.iter().enumerate() {
            let place = at + index;
            if *byte == b'\n' && before.get(place).is_some_and(|old| old.0 != b'\n') {
                if place > 0 {
                    file.now[place - 1].1 = true;
                }
                if let Some(next) = file.now.get_mut(place + 1) {
                    next.1 = true;
                }
            }
        }
        if at + data.len() == file.now.len() {
            file.tail = Some(writer);
        }
        file.is_changed = true;
        file.writers.push(writer);
        true
    }

    fn refuse(&mut self, writer: Writer) {
        let number = self.handles[&writer.0].0;
        let writers = &self.files[&number].writers;
        let mut own: Vec<Writer> = writers.iter().filter(|w| w.0 == writer.0).copied().collect();
        own.push(writer);
        self.handles.get_mut(&writer.0).unwrap().1 = Some(own);
    }

    fn resize(&mut self, number: u64, size: usize) -> bool {
        if !self.fits(number, size) {
            return false;
        }
        let file = self.files.get_mut(&number).unwrap();
        let is_cut = size < file.now.len();
        file.now.resize(size, (0, true));
        if let Some(last) = file.now.last_mut().filter(|last| is_cut && last.0 != b'\n') {
            last.1 = true;
        }
        file.is_changed = true;
        file.tail = None;
        true
    }

    /// Stores a file; whether it is one.
    fn store(&mut self, number: u64, by: Option<Writer>) -> bool {
        let file = self.files.get_mut(&number).unwrap();
        let is_by =
            |tail: &Writer| by.is_some_and(|by| by == *tail || by.0 == tail.0 && by.1.is_none());
        let held = file.tail.filter(|tail| !is_by(tail) && file.writers.contains(tail));
        let bytes: Vec<u8> = file.now.iter().map(|byte| byte.0).collect();
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let end = if held.is_some() { whole } else { bytes.len() };
        let is_held = end < bytes.len();
        let is_kpi = !file.name.starts_with('.');
        let made = if is_kpi { rows(file, &bytes, end) } else { Some((false, Vec::new())) };
        let Some((has_header, rows)) = made else { return false };
        file.has_header = has_header;
        file.stored = Some(bytes);
        for (index, byte) in file.now.iter_mut().enumerate() {
            byte.1 = is_held && index >= end;
        }
        file.is_changed = is_held;
        file.tail = file.tail.filter(|_| is_held);
        let tail = file.tail;
        file.writers.retain(|writer| Some(*writer) == tail);
        let name = file.name.clone();
        self.rows.extend(rows.into_iter().map(|row| (name.clone(), row)));
        true
    }

    /// What happens when a close or fsync is refused.
    fn give_up(&mut self, handle: u64) {
        let number = self.handles[&handle].0;
        let writers = self.files[&number].writers.clone();
        if writers.iter().any(|writer| writer.0 == handle) {
            for writer in writers {
                self.refuse((writer.0, None));
            }
            self.revert(number);
        }
        self.handles.get_mut(&handle).unwrap().1 = None;
    }

    fn revert(&mut self, number: u64) {
        let file = self.files.get_mut(&number).unwrap();
        let stored = file.stored.clone().unwrap_or_default();
        file.now = stored.into_iter().map(|byte| (byte, false)).collect();
        file.is_changed = false;
        file.writers.clear();
        file.tail = None;
    }

    fn close(&mut self, handle: u64) {
        let (number, _) = self.handles.remove(&handle).unwrap();
        let file = self.files.get_mut(&number).unwrap();
        file.writers.retain(|writer| writer.0 != handle);
        if self.handles.values().any(|other| other.0 == number) {
            return;
        }
        if self.files[&number].is_linked && self.files[&number].stored.is_some() {
            self.revert(number);
        } else {
            self.files.remove(&number);
        }
    }
}

/// Whether the first line names columns, and the rows of new lines that end before `end`.
fn rows(file: &File, bytes: &[u8], end: usize) -> Option<(bool, Vec<Row>)> {
    let mut lines = Vec::new();
    let mut at = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let seen = if text.is_empty() { line.len() } else { text.len() };
        let is_new = file.now[at..at + seen].iter().any(|byte| byte.1);
        lines.push((at, text, is_new));
        at += line.len();
    }
    if end == 0 {
        return Some((false, Vec::new()));
    }
    let is_all_new = file.stored.as_ref().is_none_or(Vec::is_empty) || lines[0].2;
    let has_header = if is_all_new { lines.len() > 1 } else { file.has_header };
    let named = if has_header { csv::header(lines[0].1).ok()? } else { None };
    let data = &lines[usize::from(has_header)..];
    let data: Vec<_> = data.iter().filter(|line| line.0 < end).collect();
    let Some(first) = data.first() else { return Some((has_header, Vec::new())) };
    let columns = match named {
        Some(columns) => columns,
        None => csv::unnamed(csv::fields(first.1, 0).ok()?.len()),
    };
    let columns: Vec<String> = columns.iter().map(|name| name.as_str().to_owned()).collect();
    let mut rows = Vec::new();
    for (_, text, is_new) in data {
        if is_all_new || *is_new {
            let fields = csv::fields(text, 0).ok()?;
            csv::check(&fields, columns.len(), 0).ok()?;
            let values = fields.into_iter().map(|field| field.into_owned());
            rows.push(columns.iter().cloned().zip(values).collect());
        }
    }
    Some((has_header, rows))
}

struct Run {
    path: std::path::PathBuf,
    store: Option<Store>,
    model: Model,
    random: Random,
    seen: usize,
    log: Vec<String>,
}

const NAMES: [&str; 4] = ["users", "load", ".tmp", "Web-1.csv"];

impl Run {
    fn new(folder: &std::path::Path, seed: u64) -> Self {
        let path = folder.join(format!("{seed}.db"));
        let store = Store::open(&path, LIMITS).unwrap();
        let model = Model::default();
        Self { path, store: Some(store), model, random: Random(seed), seen: 0, log: Vec::new() }
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().unwrap()
    }

    fn data(&mut self) -> Vec<u8> {
        let mut data = Vec::new();
        match self.random.below(50) {
            0 => data.extend_from_slice(b"a,b\n"),
            1 => data.extend_from_slice(b"\n"),
            2 => data.extend_from_slice(b"1,2,3\n"),
            3 => data.extend_from_slice(b"\"x,y\",z\n"),
            4 => data.extend_from_slice(b"x"),
            5 => data.extend_from_slice(b"half,"),
            // Beyond a chunk.
            6 => {
                data = vec![b'L'; 3_000 + self.random.below(3_000)];
                data.extend_from_slice(b",1\n");
            }
            7 => data.push(0),
            8 => data.extend_from_slice(b"one\n"),
            _ => {
                for _ in 0..=self.random.below(3) {
                    let line = format!("x{},y{}\n", self.random.below(30), self.random.below(30));
                    data.extend_from_slice(line.as_bytes());
                }
            }
        }
        data
    }

    fn handle(&mut self) -> Option<u64> {
        let handles: Vec<u64> = self.model.handles.keys().copied().collect();
        if handles.is_empty() { None } else { Some(*self.random.pick(&handles)) }
    }

    /// Mostly the same one.
    fn process(&mut self) -> u64 {
        if self.random.below(6) == 0 { 2 } else { 1 }
    }

    fn commit(&mut self, job: Job) -> bool {
        let done = self.store().commit(&[job]).remove(0);
        if let Err(refusal) = &done {
            self.log.push(format!("  refused: {refusal}"));
        }
        done.is_ok()
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=11 => self.open(),
            12..=54 => self.write(),
            55..=60 => self.truncate(),
            61..=82 => self.flush(),
            83..=89 => {
                if let Some(handle) = self.handle() {
                    self.log.push(format!("release {handle}"));
                    self.store().release(handle);
                    self.model.close(handle);
                }
            }
            90..=92 => self.rename(),
            93..=94 => self.unlink(),
            95 => self.truncate_by_path(),
            96..=97 => self.flush_together(),
            98 => self.restart(),
            _ => {}
        }
    }

    fn open(&mut self) {
        if self.model.handles.len() > 5 {
            return;
        }
        let name = *self.random.pick(&NAMES);
        match self.model.find(name) {
            Some(number) => {
                let handle = self.store().open_handle(number).unwrap();
                self.log.push(format!("open {name} {handle}"));
                self.model.handles.insert(handle, (number, None));
            }
            None => {
                let made = self.store().create(Folder::Unencrypted, name.as_bytes(), OWNER);
                let (number, handle) = made.unwrap();
                self.log.push(format!("create {name} {handle}"));
                self.model.handles.insert(handle, (number, None));
                self.model.files.insert(
                    number,
                    File {
                        name: name.to_owned(),
                        is_changed: true,
                        writers: vec![(handle, None)],
                        is_linked: true,
                        ..File::default()
                    },
                );
            }
        }
    }

    fn write(&mut self) {
        let Some(handle) = self.handle() else { return };
        let data = self.data();
        let size = self.model.files[&self.model.handles[&handle].0].now.len();
        let at = match self.random.below(10) {
            0..=6 => None,
            7 => Some(0),
            8 => Some(self.random.below(size + 1)),
            _ => Some(size),
        };
        let position = at.map_or(Position::End, |at| Position::At(at as u64));
        let shown = String::from_utf8_lossy(&data[..data.len().min(20)]).into_owned();
        let process = self.process();
        let len = data.len();
        self.log.push(format!("write {handle} by {process} {position:?} {len} {shown:?}"));
        let done = self.store().write(handle, Process(process), position, &data);
        let expected = self.model.write((handle, Some(process)), at, &data);
        assert_eq!(done.is_ok(), expected, "{done:?}");
    }

    fn truncate(&mut self) {
        let Some(handle) = self.handle() else { return };
        let (number, refused) = self.model.handles[&handle].clone();
        let size = self.model.files[&number].now.len();
        let to = match self.random.below(4) {
            0 => 0,
            1 => size + self.random.below(3),
            _ => self.random.below(size + 1),
        };
        self.log.push(format!("truncate {handle} {to}"));
        let done = self.store().truncate(handle, to as u64);
        let expected = refused.is_none() && self.model.resize(number, to);
        assert_eq!(done.is_ok(), expected, "{done:?}");
        if expected {
            self.model.files.get_mut(&number).unwrap().writers.push((handle, None));
        } else if refused.is_none() {
            self.model.refuse((handle, None));
        }
    }

    fn flush(&mut self) {
        let Some(handle) = self.handle() else { return };
        let is_fsync = self.random.below(3) == 0;
        let process = self.process();
        let (job, by) = match is_fsync {
            true => (Job::Fsync(handle), None),
            false => (Job::Flush(handle, Process(process)), Some(process)),
        };
        self.log.push(format!("{job:?}"));
        let done = self.commit(job);
        let expected = self.expect_flush((handle, by));
        if !expected {
            self.model.give_up(handle);
        }
        assert_eq!(done, expected);
    }

    fn expect_flush(&mut self, by: Writer) -> bool {
        let (number, refused) = &self.model.handles[&by.0];
        let number = *number;
        let file = &self.model.files[&number];
        let is_theirs = |writers: &[Writer]| match by.1 {
            Some(process) => is_closed_by(writers, by.0, process),
            None => true,
        };
        if refused.as_ref().is_some_and(|writers| is_theirs(writers)) {
            return false;
        }
        let has_news = file.is_linked && file.is_changed && is_theirs(&file.writers);
        !has_news || self.model.store(number, Some(by))
    }

    /// Closes by several handles that wait together.
    fn flush_together(&mut self) {
        let handles: Vec<u64> = self.model.handles.keys().copied().collect();
        self.log.push(format!("flush together {handles:?}"));
        let jobs: Vec<Job> = handles.iter().map(|handle| Job::Flush(*handle, Process(1))).collect();
        let done = self.store().commit(&jobs);
        let before = self.model.handles.clone();
        let expected: Vec<bool> =
            handles.iter().map(|handle| self.expect_flush((*handle, Some(1)))).collect();
        for (handle, expected) in handles.iter().zip(&expected) {
            if !expected {
                self.model.give_up(*handle);
            }
        }
        // Those that were refused have all been told.
        for (handle, expected) in handles.iter().zip(&expected) {
            if !expected {
                self.model.handles.get_mut(handle).unwrap().1 = None;
            }
        }
        let done: Vec<bool> = done.iter().map(Result::is_ok).collect();
        assert_eq!(done, expected, "{before:?}");
    }

    fn rename(&mut self) {
        let (from, to) = (*self.random.pick(&NAMES), *self.random.pick(&NAMES));
        let name = |name: &str| Name::parse(name.as_bytes()).unwrap();
        self.log.push(format!("rename {from} {to}"));
        let folder = Folder::Unencrypted;
        let done = self.commit(Job::Rename { folder, from: name(from), to: name(to) });
        let Some(number) = self.model.find(from) else { return assert!(!done) };
        if from == to {
            return assert!(done);
        }
        let replaced = self.model.find(to);
        let before = self.model.files.clone();
        if let Some(replaced) = replaced {
            self.model.files.get_mut(&replaced).unwrap().is_linked = false;
        }
        let file = self.model.files.get_mut(&number).unwrap();
        file.name = to.to_owned();
        for byte in &mut file.now {
            byte.1 = true;
        }
        let expected = self.model.store(number, None);
        if !expected {
            self.model.files = before;
        } else if let Some(replaced) = replaced {
            self.forget_if_closed(replaced);
        }
        assert_eq!(done, expected);
    }

    fn forget_if_closed(&mut self, number: u64) {
        if !self.model.handles.values().any(|found| found.0 == number) {
            self.model.files.remove(&number);
        }
    }

    fn unlink(&mut self) {
        let name = *self.random.pick(&NAMES);
        self.log.push(format!("unlink {name}"));
        let parsed = Name::parse(name.as_bytes()).unwrap();
        let done = self.commit(Job::Unlink { folder: Folder::Unencrypted, name: parsed });
        let found = self.model.find(name);
        assert_eq!(done, found.is_some());
        if let Some(number) = found {
            self.model.files.get_mut(&number).unwrap().is_linked = false;
            self.forget_if_closed(number);
        }
    }

    fn truncate_by_path(&mut self) {
        let name = *self.random.pick(&NAMES);
        let Some(number) = self.model.find(name) else { return };
        let size = self.random.below(self.model.files[&number].now.len() + 1);
        self.log.push(format!("truncate {name} {size}"));
        let done = self.commit(Job::Truncate { file: number, size: size as u64 });
        let before = self.model.files.clone();
        let expected = self.model.resize(number, size) && self.model.store(number, None);
        if !expected {
            self.model.files = before;
        }
        assert_eq!(done, expected);
    }

    /// The process ends here, and another begins.
    fn restart(&mut self) {
        self.log.push("restart".to_owned());
        self.store = None;
        self.store = Some(Store::open(&self.path, LIMITS).unwrap());
        self.model.handles.clear();
        self.model.files.retain(|_, file| file.is_linked && file.stored.is_some());
        let numbers: Vec<u64> = self.model.files.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.model.revert(number));
    }

    fn compare(&mut self) {
        let expected = self.model.used() as u64;
        assert_eq!(self.store().usage().0, expected, "bytes used");
        for (number, file) in &self.model.files {
            let store = self.store.as_ref().unwrap();
            assert_eq!(store.attributes(*number).unwrap().size, file.now.len() as u64);
            let bytes = store.read(*number, 0, 1 << 20).unwrap();
            let expected: Vec<u8> = file.now.iter().map(|byte| byte.0).collect();
            assert!(bytes == expected, "{} reads {bytes:?}, not {expected:?}", file.name);
        }
        let mut names: Vec<&str> =
            self.model.files.values().filter(|f| f.is_linked).map(|f| f.name.as_str()).collect();
        names.sort_unstable();
        let store = self.store.as_ref().unwrap();
        let mut listed: Vec<&str> = store.list(Folder::Unencrypted, 0).map(|f| f.1).collect();
        listed.sort_unstable();
        assert_eq!(listed, names);
    }

    fn compare_rows(&mut self) {
        let outbox = Outbox::open(&self.path).unwrap();
        loop {
            let rows = outbox.after(self.seen as i64, 1_000).unwrap();
            if rows.is_empty() {
                break;
            }
            for row in rows {
                let expected = self.model.rows.get(self.seen);
                let Values::Columns(columns) = row.values else { panic!("lines only") };
                let values: Row = columns.into_iter().collect();
                assert_eq!(Some(&(row.table, values)), expected);
                self.seen += 1;
                assert_eq!(row.seq, self.seen as i64);
            }
        }
        assert_eq!(
            self.seen,
            self.model.rows.len(),
            "rows are missing: {:?}",
            self.model.rows.last()
        );
    }

    fn run(&mut self) {
        for step in 0..RUN {
            self.step();
            self.compare();
            if step % 10 == 0 || step + 1 == RUN {
                self.compare_rows();
            }
        }
    }
}

#[test]
fn random_operations_do_what_they_do_in_the_model() {
    // In memory where there is such a place: what is tested here is not the disk.
    let memory = std::path::Path::new("/dev/shm");
    let folder = match tempfile::tempdir_in(memory) {
        Ok(folder) => folder,
        Err(_) => tempfile::tempdir().unwrap(),
    };
    let operations =
        if std::env::var_os("SOJOURN_KPI_FULL").is_some() { 1_000_000 } else { 20_000 };
    let mut seeds = 0..(operations / RUN) as u64;
    if let Ok(seed) = std::env::var("SOJOURN_KPI_SEED") {
        let seed: u64 = seed.parse().unwrap();
        seeds = seed..seed + 1;
    }
    let mut rows = 0;
    for seed in seeds {
        let mut run = Run::new(folder.path(), seed);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.run()));
        if ended.is_err() {
            let log = run.log.iter().rev().take(60).rev();
            log.for_each(|line| println!("{line}"));
            panic!("seed {seed}, after {} operations", run.log.len());
        }
        rows += run.seen;
        drop(run);
        // One database at a time.
        for end in ["", "-wal", "-shm", "-lock"] {
            let _ = std::fs::remove_file(folder.path().join(format!("{seed}.db{end}")));
        }
    }
    println!("{operations} operations, {rows} rows");
    assert!(rows > operations / 20, "most files were refused: {rows} rows");
}
