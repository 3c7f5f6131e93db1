//! An application in a guest that writes its figures to files.
//!
//! The KPI file system is the real one, without its mount: the store, its rows, and what it says
//! through a port. The port is the socket of a simulated guest, at which it listens as a
//! hypervisor does for a real one.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use kpi_fs::export;
use kpi_fs::name::Folder;
use kpi_fs::outbox::{Bell, Outbox};
use kpi_fs::store::{Job, Limits, Owner, Position, Process, Store};

/// Between two looks for somebody who connects.
const LOOK: Duration = Duration::from_millis(10);

/// An application, and the KPI file system that it writes to.
pub struct Application {
    database: PathBuf,
    store: Mutex<Store>,
    bell: Arc<Bell>,
    port: Option<Port>,
}

/// Listens in a guest's place, until it is dropped.
struct Port {
    socket: PathBuf,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Application {
    /// One whose database is this file.
    pub fn new(database: &Path) -> Self {
        let store = Store::open(database, Limits::default()).expect("the database can be opened");
        let bell = store.bell();
        Self { database: database.to_owned(), store: Mutex::new(store), bell, port: None }
    }

    /// Speaks from now on through the port of the guest whose runtime folder this is.
    pub fn connect(&mut self, guest: &Path) {
        self.port = None;
        let socket = guest.join("kpi");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("a short path");
        listener.set_nonblocking(true).expect("sockets can");
        let (database, bell) = (self.database.clone(), self.bell.clone());
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = std::thread::spawn(move || {
            let mut last = None;
            while !ended.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(LOOK);
                    continue;
                };
                stream.set_nonblocking(false).expect("sockets can");
                let open = || Outbox::open(&database).expect("the store is open");
                let words = stream.try_clone().expect("a descriptor is free");
                let kept = stream.try_clone().expect("a descriptor is free");
                export::start(stream, words, [open(), open()], bell.clone())
                    .expect("threads start");
                last = Some(kept);
            }
            if let Some(last) = last {
                let _ = last.shutdown(std::net::Shutdown::Both);
            }
        });
        self.port = Some(Port { socket, end, thread: Some(thread) });
    }

    /// Writes a file of `unencrypted/` anew and closes it, as `printf … > file` does.
    pub fn write(&self, file: &str, text: &str) {
        self.write_to(Folder::Unencrypted, file, text);
    }

    /// Writes a file of `encrypted/`.
    pub fn write_encrypted(&self, file: &str, text: &str) {
        self.write_to(Folder::Encrypted, file, text);
    }

    fn write_to(&self, folder: Folder, file: &str, text: &str) {
        let mut store = self.store.lock().expect("nobody panics with it");
        let owner = Owner { uid: 0, gid: 0, mode: 0o644 };
        let handle = match store.find(folder, file.as_bytes()) {
            Ok(found) => store.open_handle(found).expect("few are open"),
            Err(_) => store.create(folder, file.as_bytes(), owner).expect("a legal name").1,
        };
        let process = Process(1);
        store.truncate(handle, 0).expect("it is open");
        store.write(handle, process, Position::At(0), text.as_bytes()).expect("it fits");
        let done = store.commit(&[Job::Flush(handle, process)]);
        done.into_iter().for_each(|done| done.expect("it is legal"));
        store.release(handle);
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}
