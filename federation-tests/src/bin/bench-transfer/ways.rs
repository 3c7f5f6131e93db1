//! The ways in which a file can be moved from the source to the target: ours, and those of others.
//!
//! Every program is started anew for each run and ended after it, so that what it took of
//! processors is counted whole, its start included. By the clock a run begins with the word to
//! begin: for our ends and the bare ones when both processes stand ready, for the others when the
//! server listens and the client is started. It ends when the target's file is on stable storage.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use federation_tests::bench::Failure;
use model::Carrier;

use crate::bare;
use crate::end::{self, Pair, Seconds, Transfer};
use crate::place::{Place, SOURCE, TARGET};
use crate::program::{Program, until};

/// Ports of servers at the source.
const SSH_PORT: u16 = 7022;
const RSYNC_PORT: u16 = 7873;
const NBD_PORT: u16 = 7809;
/// Where Debian and others have it: it demands to be run by its whole path.
const SSHD: &str = "/usr/sbin/sshd";
/// What an sshd wants to be there; Debian's service makes it when it starts.
const SSHD_FOLDER: &str = "/run/sshd";
/// Who is asked for by nbdcopy with TLS.
const NBD_USER: &str = "bench";

/// A way to move a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Ours, over this carrier, or over the one that the path decides for.
    Ours(Option<Carrier>),
    /// TLS over as many TCP connections as ours, and nothing else.
    Bare,
    /// From an sshd, with the fastest cipher that it has.
    Scp,
    /// From an rsync daemon, without encryption.
    Rsync,
    /// nbdcopy from nbdkit, without encryption.
    Nbd,
    /// The same over TLS with a shared key.
    NbdTls,
}

impl Way {
    pub(crate) const QUIC: Self = Self::Ours(Some(Carrier::Quic));
    pub(crate) const TLS: Self = Self::Ours(Some(Carrier::Tls));
    pub(crate) const AUTO: Self = Self::Ours(None);

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours(Some(Carrier::Quic)) => "ours, QUIC",
            Self::Ours(Some(Carrier::Tls)) => "ours, TLS",
            Self::Ours(None) => "ours, auto",
            Self::Bare => "bare TLS",
            Self::Scp => "scp",
            Self::Rsync => "rsync daemon",
            Self::Nbd => "nbdcopy",
            Self::NbdTls => "nbdcopy, TLS",
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Ours(_))
    }
}

/// What is to be moved.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) file: PathBuf,
    /// What the target has already, if it has something.
    pub(crate) old: Option<PathBuf>,
    /// A run that is not over by then has failed.
    pub(crate) limit: Duration,
}

/// What a run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    /// Infinite if it was not over at the limit; then the next two say nothing.
    pub(crate) seconds: f64,
    /// Processor seconds at either end.
    pub(crate) source: f64,
    pub(crate) target: f64,
    pub(crate) wire: u64,
    /// Packets that an emulator was too slow for.
    pub(crate) missed: u64,
}

/// Keys and configurations of the peers' programs, in a folder of their own.
pub(crate) struct Peers {
    folder: PathBuf,
}

impl Peers {
    /// Makes them, below `folder`.
    pub(crate) fn new(folder: &Path) -> Result<Self, Failure> {
        let folder = folder.join("peers");
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        for key in ["host", "user"] {
            let mut make = Command::new("ssh-keygen");
            make.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(key));
            if !make.status()?.success() {
                return Err("ssh-keygen makes no key: is openssh-client installed?".into());
            }
        }
        let (path, mut key) = (folder.display(), [0; 32]);
        let sshd = format!(
            "HostKey {path}/host\nAuthorizedKeysFile {path}/user.pub\nPidFile none\n\
             ListenAddress {}\nPort {SSH_PORT}\nStrictModes no\nUsePAM no\nUseDNS no\n\
             PasswordAuthentication no\nPermitRootLogin prohibit-password\n\
             Subsystem sftp internal-sftp\n",
            SOURCE.address()
        );
        std::fs::write(folder.join("sshd.conf"), sshd)?;
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        let key = data_encoding::HEXLOWER.encode(&key);
        std::fs::write(folder.join("nbd.psk"), format!("{NBD_USER}:{key}\n"))?;
        std::fs::set_permissions(folder.join("nbd.psk"), PermissionsExt::from_mode(0o600))?;
        std::fs::create_dir_all(SSHD_FOLDER)?;
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// The server at the source, its port, and the client at the target.
    fn programs(&self, way: Way, place: &Place, job: &Job, target: &Path) -> Option<Programs> {
        let (address, file) = (SOURCE.address(), job.file.display());
        let server = |name: &str| place.command(SOURCE, name);
        let client = |name: &str| place.command(TARGET, name);
        Some(match way {
            Way::Ours(_) | Way::Bare => return None,
            Way::Scp => {
                let mut sshd = server(SSHD);
                sshd.args(["-D", "-e", "-q", "-f", &self.path("sshd.conf")]);
                let mut scp = client("scp");
                scp.args(["-q", "-F", "none", "-c", "aes128-gcm@openssh.com", "-B"]);
                scp.args(["-i", &self.path("user"), "-P", &SSH_PORT.to_string()]);
                scp.args(["-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]);
                scp.args(["-o", &format!("UserKnownHostsFile={}", self.path("known"))]);
                scp.arg(format!("root@{address}:{file}")).arg(target);
                Programs { server: sshd, port: SSH_PORT, client: scp }
            }
            Way::Rsync => {
                let mut daemon = server("rsync");
                daemon.args(["--daemon", "--no-detach", "--config", &self.path("rsync.conf")]);
                let port = RSYNC_PORT.to_string();
                daemon.args(["--address", &address.to_string(), "--port", &port]);
                let name = job.file.file_name()?.to_str()?;
                let mut rsync = client("rsync");
                rsync.args(["--sparse", "--ignore-times", "--inplace"]);
                rsync.arg(format!("rsync://{address}:{port}/files/{name}")).arg(target);
                Programs { server: daemon, port: RSYNC_PORT, client: rsync }
            }
            Way::Nbd | Way::NbdTls => {
                let port = NBD_PORT.to_string();
                let mut nbdkit = server("nbdkit");
                nbdkit.args(["-f", "-r", "-i", &address.to_string(), "-p", &port]);
                let mut uri = format!("nbd://{address}:{port}/");
                if way == Way::NbdTls {
                    let keys = self.path("nbd.psk");
                    nbdkit.args(["--tls=require", &format!("--tls-psk={keys}")]);
                    uri = format!("nbds://{NBD_USER}@{address}:{port}/?tls-psk-file={keys}");
                }
                nbdkit.args(["file", &file.to_string()]);
                let mut nbdcopy = client("nbdcopy");
                nbdcopy.arg(uri).arg(target);
                Programs { server: nbdkit, port: NBD_PORT, client: nbdcopy }
            }
        })
    }

    /// What the rsync daemon may show: the folder of one file.
    fn configure_rsync(&self, job: &Job) -> Result<(), Failure> {
        let folder = job.file.parent().ok_or("the file lies in no folder")?;
        let text = format!(
            "use chroot = no\nuid = root\ngid = root\nlog file = {}\n[files]\npath = {}\n\
             read only = yes\n",
            self.path("rsync.log"),
            folder.display()
        );
        Ok(std::fs::write(self.folder.join("rsync.conf"), text)?)
    }

    fn run(
        &self,
        way: Way,
        place: &Place,
        job: &Job,
        target: &Path,
    ) -> Result<Option<Seconds>, Failure> {
        self.configure_rsync(job)?;
        let programs = self.programs(way, place, job, target);
        let Programs { mut server, port, mut client } =
            programs.ok_or("that is no way of others")?;
        let server = server.stdin(Stdio::null()).stdout(Stdio::null());
        let server = Program::start(&format!("the server of {}", way.name()), server)?;
        until("the server listens", || place.is_listened_at(SOURCE, port))?;
        let begun = Instant::now();
        let client = client.stdin(Stdio::null()).stdout(Stdio::null());
        let client = Program::start(&format!("the client of {}", way.name()), client)?;
        let Some(took) = client.ended(begun + job.limit)? else { return Ok(None) };
        File::open(target)?.sync_all()?;
        let clock = begun.elapsed().as_secs_f64();
        Ok(Some(Seconds { clock, source: server.stop()?, target: took }))
    }
}

struct Programs {
    server: Command,
    port: u16,
    client: Command,
}

/// Moves a file, and holds what came against what was sent. The target's folder is in `folder`
/// meanwhile.
pub(crate) fn run(
    way: Way,
    place: &Place,
    job: &Job,
    peers: &Peers,
    folder: &Path,
) -> Result<Taken, Failure> {
    let folder = folder.join("target");
    remove(&folder)?;
    std::fs::create_dir(&folder)?;
    let target = folder.join(end::file_name());
    let deadline = |begun: Instant| begun + job.limit;
    let (wire, missed) = (place.wire_bytes()?, place.missed());
    let seconds = match way {
        Way::Ours(carrier) => {
            let (file, basis) = (Some(job.file.clone()), job.old.clone());
            let transfer = Transfer { file, folder: folder.clone(), basis };
            Pair::start(place, carrier, &[transfer])?.run(1, deadline)?
        }
        Way::Bare => {
            let (from, to) = (job.file.display().to_string(), target.display().to_string());
            bare::run(place, &from, &to, job.file.metadata()?.len(), deadline)?
        }
        _ => {
            if let Some(old) = &job.old {
                // It is changed in place.
                copy(old, &target)?;
            }
            peers.run(way, place, job, &target)?
        }
    };
    let (wire, missed) = (place.wire_bytes()? - wire, place.missed() - missed);
    if seconds.is_none() {
        place.clear();
    }
    if seconds.is_some() && !is_same(&job.file, &target)? {
        return Err(format!("{}: what came is not what was sent", way.name()).into());
    }
    remove(&folder)?;
    let never = Seconds { clock: f64::INFINITY, source: 0.0, target: 0.0 };
    let Seconds { clock, source, target } = seconds.unwrap_or(never);
    Ok(Taken { seconds: clock, source, target, wire, missed })
}

/// Copies a file with its holes.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let mut cp = Command::new("cp");
    if cp.arg("--sparse=always").args([from, to]).status()?.success() {
        Ok(())
    } else {
        Err(format!("{} cannot be copied", from.display()).into())
    }
}

fn remove(folder: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(folder) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(why.into()),
        _ => Ok(()),
    }
}

fn is_same(one: &Path, other: &Path) -> Result<bool, Failure> {
    let mut files = [File::open(one)?, File::open(other)?];
    if files[0].metadata()?.len() != files[1].metadata()?.len() {
        return Ok(false);
    }
    let mut pieces = [vec![0; 1 << 20], vec![0; 1 << 20]];
    loop {
        let mut got = [0; 2];
        for (at, file) in files.iter_mut().enumerate() {
            got[at] = fill(file, &mut pieces[at])?;
        }
        if got[0] != got[1] || pieces[0][..got[0]] != pieces[1][..got[1]] {
            return Ok(false);
        }
        if got[0] == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full, or the file over.
fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            got => filled += got,
        }
    }
    Ok(filled)
}
