//! Connecting to the Unix sockets in guests' runtime folders.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;

use crate::Error;

/// The host's end of a guest's KPI port, in its runtime folder.
pub(crate) const KPI: &str = "kpi";

/// Connects to the socket `name` in `folder`, which may lie as deep as it wants.
///
/// A socket's path may have 107 bytes only, so the kernel is given our own descriptor of the socket.
/// It is found without following a link: the folder is the guest's user's, and a QEMU that was
/// broken out of could put a link there to a socket that only we may talk to.
pub(crate) async fn connect_in(folder: &Path, name: &str) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::open(folder.join(name), flags, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

/// Connects to a KPI port; none when nothing listens there.
pub(crate) async fn connect_kpi(folder: &Path) -> Result<Option<UnixStream>, Error> {
    let error = |source| Error::Io { doing: "connect to", path: folder.join(KPI), source };
    match connect_in(folder, KPI).await {
        Ok(stream) => Ok(Some(stream)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            let why = "it serves one connection at a time and more wait already, close those";
            Err(error(io::Error::new(ErrorKind::WouldBlock, why)))
        }
        Err(e) => Err(error(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_link_in_the_place_of_a_socket_is_not_followed() {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let _listener = UnixListener::bind(folder.path().join("real")).unwrap();
        connect_in(folder.path(), "real").await.unwrap();
        symlink("real", folder.path().join(KPI)).unwrap();
        let refused = connect_in(folder.path(), KPI).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(connect_kpi(folder.path()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_port_without_a_listener_is_none_and_one_that_is_taken_an_error() {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let deep = folder.path().join("deep".repeat(40));
        fs::create_dir(&deep).unwrap();
        assert!(connect_kpi(&deep).await.unwrap().is_none());
        fs::write(deep.join(KPI), "no socket").unwrap();
        assert!(connect_kpi(&deep).await.unwrap().is_none());
        fs::remove_file(deep.join(KPI)).unwrap();
        let listener = listen_in(&deep);
        // Nobody is served here: the listener's queue fills.
        let mut waiting = Vec::new();
        let error = loop {
            match connect_kpi(&deep).await {
                Ok(stream) => waiting.push(stream.expect("it listens")),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10, "the queue has no end");
        };
        let Error::Io { source, .. } = &error else { panic!("{error:?}") };
        assert!(source.to_string().contains("one connection at a time"), "{source}");
        drop(listener);
        assert!(connect_kpi(&deep).await.unwrap().is_none());
    }

    /// Listens as QEMU does, with a queue of one.
    fn listen_in(folder: &Path) -> rustix::fd::OwnedFd {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
        let opened = fs::File::open(folder).unwrap();
        let path = format!("/proc/self/fd/{}/{KPI}", opened.as_raw_fd());
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(path).unwrap()).unwrap();
        listen(&listener, 1).unwrap();
        listener
    }
}
