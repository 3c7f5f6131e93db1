//! A mount of its own for a test, which leaves nothing behind.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kpi_fs::outbox::{Outbox, Row, Values};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A running `kpi-fs mount`.
pub(crate) struct Mounted {
    child: Option<Child>,
    arguments: Vec<String>,
    temp: TempDir,
    database: PathBuf,
}

/// Whether mounts can be made here; says so if not.
pub(crate) fn can_mount() -> bool {
    let why = match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        Err(error) => format!("/dev/fuse: {error}"),
        Ok(_) if !rustix::process::geteuid().is_root() => "not root".to_owned(),
        Ok(_) => return true,
    };
    let required = std::env::var("SOJOURN_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == "fuse"), "fuse is required: {why}");
    eprintln!("skipped: no mounts here: {why}");
    false
}

impl Mounted {
    /// Mounts a new database, if that can be done here.
    pub(crate) fn new(arguments: &[&str]) -> Option<Self> {
        let temp = tempfile::tempdir().unwrap();
        let database = temp.path().join("kpi.db");
        Self::with(temp, database, arguments)
    }

    /// Mounts the database, which may be anywhere, in a folder of `temp`.
    pub(crate) fn with(temp: TempDir, database: PathBuf, arguments: &[&str]) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        std::fs::create_dir_all(temp.path().join("kpi")).unwrap();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut mounted = Self { child: None, arguments, temp, database };
        mounted.start();
        Some(mounted)
    }

    /// Starts the program again, and waits until the folder is mounted.
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut child = Command::new(env!("CARGO_BIN_EXE_kpi-fs"))
            .arg("mount")
            .arg(self.folder())
            .arg("--database")
            .arg(&self.database)
            .args(&self.arguments)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(self.temp.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        self.child = Some(child);
        assert!(line.contains("is mounted"), "{}", self.log());
    }

    /// What the program has said of refusals.
    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        let file = std::fs::File::open(self.temp.path().join("log")).unwrap();
        file.take(1 << 20).read_to_string(&mut text).unwrap();
        text
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        // It was not waited for, so that the number is its own.
        kill_process(pid, signal).unwrap();
    }

    /// Kills the program and leaves the mount.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.take().unwrap().wait().unwrap();
    }

    /// Ends the program in order; answers whether it succeeded.
    pub(crate) fn stop(&mut self) -> bool {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for the program's end; answers whether it succeeded.
    pub(crate) fn wait(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                return status.success();
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.log());
            std::thread::yield_now();
        }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.temp.path().join("kpi")
    }

    /// A file of `unencrypted/`.
    pub(crate) fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder().join("unencrypted").join(name)
    }

    /// A file of `encrypted/`.
    pub(crate) fn sealed(&self, name: &str) -> PathBuf {
        self.folder().join("encrypted").join(name)
    }

    pub(crate) fn database(&self) -> &Path {
        &self.database
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// All rows, in order.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let outbox = Outbox::open(&self.database).unwrap();
        let mut rows: Vec<Row> = Vec::new();
        loop {
            let more = outbox.after(rows.last().map_or(0, |row| row.seq), usize::MAX).unwrap();
            if more.is_empty() {
                return rows;
            }
            rows.extend(more);
        }
    }

    /// The rows of a table, as `column=value` with spaces between.
    pub(crate) fn table(&self, name: &str) -> Vec<String> {
        let rows = self.rows().into_iter().filter(|row| row.table == name);
        rows.map(|row| shown(&row)).collect()
    }
}

/// A row as `column=value`, with spaces between.
pub(crate) fn shown(row: &Row) -> String {
    match &row.values {
        Values::Columns(columns) => {
            let columns = columns.iter().map(|(name, value)| format!("{name}={value}"));
            columns.collect::<Vec<_>>().join(" ")
        }
        Values::Content(content) => String::from_utf8_lossy(content).into_owned(),
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Gone already if it was stopped in order.
        let _ = unmount(self.folder(), UnmountFlags::DETACH);
    }
}

/// A small disk in memory, for a database that is to run out of space.
pub(crate) struct Disk(TempDir);

impl Disk {
    pub(crate) fn new(bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("kpi-test", folder.path(), "tmpfs", flags, options.as_c_str())
            .unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}
