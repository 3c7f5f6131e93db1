//! Rows through a Unix socket, for a mount on the host: the node connects.
//!
//! What is said is what [`crate::export`] says.
//! One client is served at a time, and the newest wins: one that has gone without a word, or does
//! not read, keeps nobody out.
//! A client has gone when it closes, or shuts down, its writing half.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::export::{PAUSE, Place, hear, send};
use crate::outbox::{Bell, Outbox};

/// Clients that wait to be let in.
const WAITING_MAX: i32 = 4;

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there.
    #[error("{0} is a socket on which another program listens; stop that one, or name another")]
    InUse(PathBuf),
    /// It is something else.
    #[error("{0} is there and no socket; name another, or remove it")]
    NoSocket(PathBuf),
    /// No folder, no rights, a name that is too long.
    #[error("{path} cannot be listened on: {source}; is its folder there, and writable?")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A socket that is listened on. Only the user that made it can connect.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    file: SocketFile,
}

/// The name of a socket in the file system.
#[derive(Debug, Clone)]
pub struct SocketFile {
    path: PathBuf,
    /// The device and number of the file, which tell it from one that has replaced it.
    identity: (u64, u64),
}

impl SocketFile {
    /// Removes the name, if it is still this socket's.
    pub fn remove(&self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("{} is left behind: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// A socket's folder, held open: addresses have 108 bytes, which a path may exceed, but not a name
/// in a folder that is named by its descriptor.
struct Folder(File);

impl Folder {
    fn open(path: &Path) -> io::Result<Self> {
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())?;
        Ok(Self(File::from(folder)))
    }

    fn address(&self, path: &Path) -> io::Result<PathBuf> {
        use std::os::fd::AsRawFd;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Path::new("/proc/self/fd").join(self.0.as_raw_fd().to_string()).join(name))
    }
}

impl Door {
    /// Listens at `path`. A socket that lies there and has no listener is replaced.
    pub fn open(path: &Path) -> Result<Self, ListenError> {
        let error = |source| ListenError::Io { path: path.to_owned(), source };
        let folder = Folder::open(path).map_err(error)?;
        let address = folder.address(path).map_err(error)?;
        match std::fs::symlink_metadata(&address) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ListenError::NoSocket(path.to_owned()));
            }
            Ok(_) => match UnixStream::connect(&address) {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(&address).map_err(error)?;
                }
                Ok(_) => return Err(ListenError::InUse(path.to_owned())),
                Err(other) => return Err(error(other)),
            },
            Err(none) if none.kind() == io::ErrorKind::NotFound => {}
            Err(other) => return Err(error(other)),
        }
        let listener = bind(&address).map_err(error)?;
        let identity = identity(&address).map_err(error)?;
        // The folder that the program works in may be another one at the end.
        let path = std::path::absolute(path).map_err(error)?;
        Ok(Self { listener, file: SocketFile { path, identity } })
    }

    /// Sends rows to whoever connects, in three threads that end with the process. Answers the
    /// socket's name, which is to be removed then.
    pub fn serve(self, outboxes: [Outbox; 2], bell: Arc<Bell>) -> io::Result<SocketFile> {
        let [sent, heard] = outboxes;
        let seat = Arc::new(Seat::default());
        let thread = |name: &str| thread::Builder::new().name(name.into());
        let own = Arc::clone(&seat);
        thread("rows").spawn(move || {
            own.serve_each(|client| send(&mut &client.stream, &sent, &bell, &client.place));
        })?;
        let own = Arc::clone(&seat);
        thread("words").spawn(move || {
            own.serve_each(|client| {
                hear(&mut &client.stream, &heard, &client.place, thread::sleep)
            });
        })?;
        let listener = self.listener;
        thread("door").spawn(move || {
            loop {
                match listener.accept() {
                    Ok((stream, _)) => seat.give_to(stream),
                    Err(error) => {
                        tracing::warn!("nobody is let in, tried again in {PAUSE:?}: {error}");
                        thread::sleep(PAUSE);
                    }
                }
            }
        })?;
        Ok(self.file)
    }
}

/// Binds and listens; nobody else can connect before the permissions are set.
fn bind(address: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(address)?)?;
    rustix::fs::chmod(address, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, WAITING_MAX)?;
    Ok(UnixListener::from(socket))
}

/// Who is connected.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    place: Place,
}

impl Client {
    /// Makes both directions end, also one that is held up.
    fn end(&self) {
        self.place.end();
        // It fails if the client has gone already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// The one client that is served, with how many there have been.
#[derive(Debug, Default)]
struct Seat {
    taken: Mutex<(u64, Option<Arc<Client>>)>,
    changed: Condvar,
}

impl Seat {
    fn give_to(&self, stream: UnixStream) {
        let client = Arc::new(Client { stream, place: Place::default() });
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 += 1;
        if let Some(before) = taken.1.replace(client) {
            before.end();
        }
        self.changed.notify_all();
    }

    /// Serves each client, one after the other, in one direction; whoever of the two directions
    /// ends first ends the other.
    fn serve_each(&self, direction: impl Fn(&Client) -> io::Result<()>) {
        let mut served = 0;
        loop {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            while taken.0 == served {
                taken = self.changed.wait(taken).unwrap_or_else(PoisonError::into_inner);
            }
            served = taken.0;
            let client = taken.1.clone();
            drop(taken);
            if let Some(client) = client {
                if let Err(error) = direction(&client) {
                    tracing::info!("a client has gone: {error}");
                }
                client.end();
            }
        }
    }
}
