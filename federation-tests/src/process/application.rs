//! An application in a guest that writes its figures to files.
//!
//! The KPI file system is the real one, without its mount: the store, its rows, and what it says
//! through a port. The port is the socket of a simulated guest, at which it listens as a
//! hypervisor does for a real one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kpi_fs::listen::{Door, SocketFile};
use kpi_fs::name::Folder;
use kpi_fs::outbox::{Bell, Outbox};
use kpi_fs::store::{Job, Limits, Owner, Position, Process, Store};

/// An application, and the KPI file system that it writes to.
pub struct Application {
    database: PathBuf,
    store: Mutex<Store>,
    bell: Arc<Bell>,
    port: Option<SocketFile>,
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
        self.disconnect();
        let open = || Outbox::open(&self.database).expect("the store is open");
        let door = Door::open(&guest.join("kpi")).expect("nobody else listens");
        let served = door.serve([open(), open()], self.bell.clone());
        self.port = Some(served.expect("threads can be started"));
    }

    /// Speaks through no port.
    pub fn disconnect(&mut self) {
        if let Some(port) = self.port.take() {
            port.remove();
        }
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

impl Drop for Application {
    fn drop(&mut self) {
        self.disconnect();
    }
}
