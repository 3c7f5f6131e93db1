//! The program under test, and the ones that a test may need.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustix::process::{Pid, Signal, kill_process};

/// The `sojourn` program of this build; it is built first where it is missing or older than its
/// sources. `SOJOURN_PROGRAM` names another one to test, such as one that is installed.
pub fn sojourn() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(program) = std::env::var_os("SOJOURN_PROGRAM") {
            return program.into();
        }
        let test = std::env::current_exe().expect("a test knows its own program");
        let folder = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps");
        let program = folder.join("sojourn");
        let lock = File::create(folder.join("sojourn.lock")).expect("the target folder is ours");
        lock.lock().expect("one test process at a time builds");
        if !is_fresh(&program) {
            let profile = folder.file_name().and_then(|name| name.to_str()).unwrap_or("debug");
            let profile = if profile == "debug" { "dev" } else { profile };
            let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
            build.args(["build", "--quiet", "--package", "cli", "--profile", profile]);
            build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
            let built = build.output().expect("cargo can be run");
            let words = String::from_utf8_lossy(&built.stderr);
            assert!(built.status.success(), "sojourn does not build:\n{words}");
        }
        program
    })
}

/// Whether the program is newer than every source that cargo noted beside it.
fn is_fresh(program: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let Some(made) = modified(program) else { return false };
    let Ok(noted) = std::fs::read_to_string(program.with_extension("d")) else { return false };
    let sources = noted.split_whitespace().skip(1);
    sources.map(Path::new).all(|path| modified(path).unwrap_or(SystemTime::now()) <= made)
}

/// Why a test that needs `what` cannot run here; it fails where `SOJOURN_REQUIRE` names it.
pub fn missing(what: &str, why: &str) {
    let required = std::env::var("SOJOURN_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == what), "{what} is required: {why}");
    eprintln!("skipped: {why}");
}

/// A clock that differs from this machine's.
///
/// Only the time of day differs: how long something takes is the same by every clock. It is made by
/// `libfaketime`, which a process loads before all else.
pub(super) struct Clock {
    library: PathBuf,
    seconds: i64,
}

impl Clock {
    /// One that is ahead by so many seconds; or why there is none.
    pub(super) fn ahead(seconds: i64) -> Result<Self, &'static str> {
        let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let files = folders.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
        let library = files.into_iter().find(|file| file.exists());
        let library = library.ok_or("no libfaketime: apt-get install faketime")?;
        Ok(Self { library, seconds })
    }

    /// The program, to be run with this clock. It becomes the very process that is started.
    pub(super) fn program(&self) -> Command {
        // The library leaves shared memory behind when its process is killed: not in a folder that
        // ends with the process.
        const RUN: &str = "mount -t tmpfs tmpfs /dev/shm && exec env \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", RUN, "sh"]);
        command.arg(format!("LD_PRELOAD={}", self.library.display()));
        command.arg(format!("FAKETIME={:+}", self.seconds));
        command.arg("FAKETIME_DONT_FAKE_MONOTONIC=1").arg(sojourn());
        command
    }
}

/// The disk of the test's real guest, or why there is none to test with.
pub fn guest_disk() -> Result<PathBuf, &'static str> {
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
    if !qemu.is_ok_and(|output| output.status.success()) {
        return Err("no qemu-system-x86_64: apt-get install qemu-system-x86 qemu-utils");
    }
    let disk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest/disk.raw");
    if disk.exists() { Ok(disk) } else { Err("no guest image: cargo xtask guest-image") }
}

/// Sends a signal to a child that was not waited for, so that the number is still its own.
pub(super) fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("it is our child");
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait in every federation of this process fail, so that all of them are taken down
/// in good order.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether [`interrupt`] was called.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
