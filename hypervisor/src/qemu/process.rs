//! A guest's process, found by the lock that it holds on its pid file.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Flock, FlockType, Pid, PidfdFlags, Signal, fcntl_getlk, pidfd_open, pidfd_send_signal,
};
use tokio::time::sleep;

use crate::Error;

/// Between two looks at whether a process has ended.
const END_LOOK: Duration = Duration::from_millis(10);

/// A process that lived when it was found. What is sent to it reaches it or nobody.
#[derive(Debug)]
pub(crate) struct Process {
    fd: OwnedFd,
    pid: Pid,
}

impl Process {
    /// The process that holds the lock on the pid file, if there is one.
    pub(crate) fn find(pid_file: &Path) -> Result<Option<Self>, Error> {
        let file = match File::open(pid_file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io("open", pid_file))?,
        };
        let error = |source: rustix::io::Errno| Error::Io {
            doing: "find the process of",
            path: pid_file.to_owned(),
            source: source.into(),
        };
        // The number could be reused between the two lines: ask again who holds the lock.
        let Some(pid) = holder(&file).map_err(error)? else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            other => other.map_err(error)?,
        };
        let still = holder(&file).map_err(error)? == Some(pid);
        Ok(still.then_some(Self { fd, pid }))
    }

    /// Ends it by force. One that has ended has ended.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        match pidfd_send_signal(&self.fd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(self.error("kill", errno.into())),
        }
    }

    /// Waits for its end; whether it came in time.
    pub(crate) async fn ended_within(&self, limit: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + limit;
        loop {
            // A pidfd is readable from its process's end on (pidfd_open(2)). It is looked at in
            // turns: tokio's own way of waiting for a foreign descriptor is not a safe function.
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&Timespec::default())) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(self.error("wait for", errno.into())),
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(END_LOOK).await;
        }
    }

    /// Its folder in `/proc`. What was read there is its own only if it has not ended since.
    pub(crate) fn proc_folder(&self) -> PathBuf {
        format!("/proc/{}", self.pid.as_raw_nonzero()).into()
    }

    fn error(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Io { doing, path: self.proc_folder(), source }
    }
}

fn holder(file: &File) -> rustix::io::Result<Option<Pid>> {
    let lock = fcntl_getlk(file, &Flock::from(FlockType::WriteLock))?;
    Ok(lock.and_then(|lock| lock.pid))
}
