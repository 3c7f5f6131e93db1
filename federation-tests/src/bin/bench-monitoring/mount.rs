//! The KPI file system, mounted on this machine by its own program.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use federation_tests::bench::Failure;
use federation_tests::process::sojourn;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// How long the program may take to end.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A mount, which ends with this.
pub(crate) struct Mount {
    folder: PathBuf,
    database: PathBuf,
    process: Child,
}

impl Mount {
    /// Mounts at `folder`, which is made; rows leave through `socket`, if there is one.
    pub(crate) fn new(
        folder: &Path,
        database: &Path,
        socket: Option<&Path>,
    ) -> Result<Self, Failure> {
        std::fs::create_dir_all(folder)?;
        let mut command = Command::new(sojourn().with_file_name("kpi-fs"));
        command.arg("mount").arg(folder).arg("--database").arg(database);
        if let Some(socket) = socket {
            command.arg("--listen").arg(socket);
        }
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let mut said = String::new();
        BufReader::new(process.stdout.take().expect("it is piped")).read_line(&mut said)?;
        let (folder, database) = (folder.to_owned(), database.to_owned());
        let mount = Self { folder, database, process };
        if said.contains("is mounted") {
            Ok(mount)
        } else {
            Err("kpi-fs does not mount: is there /dev/fuse, are you root?".into())
        }
    }

    /// A file of `unencrypted/`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join("unencrypted").join(name)
    }

    /// The database behind it.
    pub(crate) fn database(&self) -> &Path {
        &self.database
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let number = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        let _ = number.map(|pid| kill_process(pid, Signal::TERM));
        let until = Instant::now() + END_LIMIT;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = unmount(&self.folder, UnmountFlags::DETACH);
    }
}
