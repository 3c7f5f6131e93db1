//! The store as a file system that the kernel asks: what each call does is in the crate's
//! documentation.
//!
//! Here calls are translated and nothing is decided.
//! The session's threads hand each call to the store's queue together with its reply, and take the
//! next; the reply is sent when the answer is there.
//! Nothing of files is cached by the kernel (direct I/O, attributes and names without time to live),
//! so that a file that was refused is seen to be its old version by the next call.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, Session, SessionACL, SessionUnmounter, TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;
use rustix::mount::UnmountFlags;

use crate::name::{Folder, NAME_MAX, Name};
use crate::queue::Queue;
use crate::refusal::Refusal;
use crate::store::{Attributes, Change, FILES_MAX, Job, Node, Owner, Position, Process, Store};

/// How long the kernel may take what it knows of a file for true.
const NO_TIME: Duration = Duration::ZERO;

/// The same of a directory: there are three, which never change. Else the kernel asks for each of
/// them, and for its permissions, whenever a file is opened: four of ten calls for each row.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Largest write that comes in one piece. The kernel cuts larger ones, and keeps others out in
/// between.
const WRITE_MAX: u32 = 1024 * 1024;

/// Threads that take calls from the kernel.
const THREADS: usize = 2;

/// Refusals that are told to the log in a second.
const REPORTS_MAX: u32 = 10;

/// Blocks in which `statfs` counts.
const BLOCK: u64 = 512;

/// What a mount is called in the kernel's table.
const SOURCE: &str = "kpi-fs";

/// Who may use the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The user that runs the file system.
    Owner,
    /// Everybody, as their permission bits say; both directories are like `/tmp`.
    Everyone,
}

/// Why a folder cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// It is one already.
    #[error("{0} is a mount of kpi-fs already; unmount it first: umount {0}")]
    Mounted(PathBuf),
    /// A dead one lies there and does not go away.
    #[error("{folder} is a mount whose program is gone, and cannot be unmounted: {source}")]
    Dead {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database would lie in its own mount.
    #[error("{0} lies inside the folder to mount; put the database elsewhere")]
    Inside(PathBuf),
    /// The folder is no folder, `/dev/fuse` is not there, rights are missing.
    #[error(
        "{folder} cannot be mounted: {source}; is it a folder, is there /dev/fuse, are you root?"
    )]
    Io {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes a folder ready to be mounted, before the store is opened.
///
/// A mount that a killed `kpi-fs` has left is taken away; answers whether there was one.
pub fn prepare(folder: &Path, database: &Path) -> Result<bool, MountError> {
    let error = |source| MountError::Io { folder: folder.to_owned(), source };
    // The kernel asks the program itself for this, and answers nothing out of what it remembers.
    let was_dead = match rustix::fs::statvfs(folder) {
        Err(rustix::io::Errno::NOTCONN) => {
            rustix::mount::unmount(folder, UnmountFlags::DETACH)
                .map_err(|e| MountError::Dead { folder: folder.to_owned(), source: e.into() })?;
            true
        }
        _ => false,
    };
    let full = folder.canonicalize().map_err(error)?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(error)?;
    if is_mount(&table, &full) {
        return Err(MountError::Mounted(full));
    }
    let place = match database.parent() {
        Some(parent) if parent != Path::new("") => parent.canonicalize().map_err(error)?,
        _ => std::env::current_dir().map_err(error)?,
    };
    if place.starts_with(&full) {
        return Err(MountError::Inside(database.to_owned()));
    }
    Ok(was_dead)
}

/// Whether a table of mounts (`proc_pid_mountinfo(5)`) has one of ours at `folder`.
fn is_mount(table: &str, folder: &Path) -> bool {
    table.lines().any(|line| {
        let (Some((left, right)), Some(wanted)) = (line.split_once(" - "), folder.to_str()) else {
            return false;
        };
        let place = left.split(' ').nth(4).unwrap_or_default();
        // The kernel writes a space in a path so.
        let is_here = place.replace("\\040", " ") == wanted;
        is_here && right.split(' ').nth(1) == Some(SOURCE)
    })
}

/// A file system that is mounted.
pub struct Mount {
    session: Session<Files>,
    store: JoinHandle<()>,
    folder: PathBuf,
}

/// Ends a mount from another thread.
pub struct Unmount {
    session: SessionUnmounter,
    folder: PathBuf,
}

/// How a mount ended, or will.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It is gone.
    Unmounted,
    /// It is gone from its folder, and lives on until the last open file is closed.
    Detached,
}

impl Mount {
    /// Mounts `store` at `folder`, which [`prepare`] has made ready.
    pub fn new(store: Store, folder: &Path, audience: Audience) -> Result<Self, MountError> {
        let error = |source| MountError::Io { folder: folder.to_owned(), source };
        let folder = folder.canonicalize().map_err(error)?;
        let (queue, thread) = Queue::start(store).map_err(error)?;
        let files = Files {
            queue,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            audience,
            started: SystemTime::now(),
            reports: Arc::new(Reports { told: Mutex::new((Instant::now(), 0)) }),
        };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(SOURCE.into()),
            MountOption::Subtype(SOURCE.into()),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
            MountOption::NoAtime,
        ];
        config.acl = match audience {
            Audience::Owner => SessionACL::Owner,
            Audience::Everyone => SessionACL::All,
        };
        config.n_threads = Some(THREADS);
        let session = Session::new(files, &folder, &config).map_err(error)?;
        Ok(Self { session, store: thread, folder })
    }

    /// What ends the mount.
    pub fn unmount(&mut self) -> Unmount {
        Unmount { session: self.session.unmount_callable(), folder: self.folder.clone() }
    }

    /// Serves the file system until it is unmounted, and closes the store.
    pub fn run(self) -> io::Result<()> {
        let ended = self.session.run();
        let store = self.store.join();
        ended?;
        store.map_err(|_| io::Error::other("the store's thread has panicked"))
    }
}

impl Unmount {
    /// Unmounts; where files are open, the folder is freed and their users are let finish.
    pub fn run(&mut self) -> io::Result<Ending> {
        match self.session.unmount() {
            Ok(()) => Ok(Ending::Unmounted),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                rustix::mount::unmount(&self.folder, UnmountFlags::DETACH)?;
                Ok(Ending::Detached)
            }
            Err(error) => Err(error),
        }
    }
}

/// Tells the log what applications see as a number, but not without end.
struct Reports {
    /// When the second began, and how many were told in it.
    told: Mutex<(Instant, u32)>,
}

impl Reports {
    fn tell(&self, what: &str, name: &OsStr, refusal: &Refusal) {
        let mut told = self.told.lock().expect("nobody panics with it");
        if told.0.elapsed() > Duration::from_secs(1) {
            *told = (Instant::now(), 0);
        }
        told.1 += 1;
        if told.1 <= REPORTS_MAX {
            tracing::warn!("{what} {:?} refused: {refusal}", name.to_string_lossy());
        }
    }

    fn tell_of(&self, what: &str, store: &Store, file: u64, refusal: &Refusal) {
        self.tell(what, OsStr::new(store.name(file).unwrap_or_default()), refusal);
    }
}

struct Files {
    queue: Queue,
    uid: u32,
    gid: u32,
    audience: Audience,
    started: SystemTime,
    reports: Arc<Reports>,
}

fn errno(refusal: &Refusal) -> Errno {
    Errno::from_i32(refusal.errno().raw_os_error())
}

impl Files {
    fn directory(&self, node: Node) -> FileAttr {
        let perm = match (node, self.audience) {
            (Node::Folder(_), Audience::Everyone) => 0o1777,
            _ => 0o755,
        };
        FileAttr {
            ino: INodeNo(node.number()),
            size: 0,
            blocks: 0,
            atime: self.started,
            mtime: self.started,
            ctime: self.started,
            crtime: self.started,
            kind: FileType::Directory,
            perm,
            nlink: if node == Node::Root { 4 } else { 2 },
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: 4_096,
            flags: 0,
        }
    }

    /// The directory that has files.
    fn folder(parent: INodeNo) -> Result<Folder, Refusal> {
        match Node::of(parent.0) {
            Node::Folder(folder) => Ok(folder),
            Node::Root => Err(Refusal::NotHere),
            Node::File(_) => Err(Refusal::NotDirectory),
        }
    }

    /// A job about an open file.
    fn store(&self, job: Job, ino: INodeNo, reply: ReplyEmpty) {
        let reports = Arc::clone(&self.reports);
        self.queue.make(job, move |store, done| match done {
            Ok(()) => reply.ok(),
            Err(refusal) => {
                reports.tell_of("what was written to", store, ino.0, &refusal);
                reply.error(errno(&refusal));
            }
        });
    }
}

fn attributes(found: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(found.number),
        size: found.size,
        blocks: found.size.div_ceil(BLOCK),
        atime: found.modified,
        mtime: found.modified,
        ctime: found.changed,
        crtime: found.changed,
        kind: FileType::RegularFile,
        perm: u16::try_from(found.mode & 0o7777).expect("twelve bits"),
        nlink: u32::from(found.is_linked),
        uid: found.uid,
        gid: found.gid,
        rdev: 0,
        blksize: 4_096,
        flags: 0,
    }
}

fn open_flags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(u32::from_ne_bytes(flags.to_ne_bytes()))
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Else a truncation at open comes as one by path, which would be stored at once and so
        // take the stored version away before there is another.
        config
            .add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC)
            .map_err(|_| io::Error::other("this kernel is too old: no atomic truncation"))?;
        // `max_write` is within what the library allows.
        config.set_max_write(WRITE_MAX).map_err(|_| io::Error::other("writes are too large"))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let folder = match Node::of(parent.0) {
            Node::Root => {
                match Folder::from_name(name.as_bytes()) {
                    Some(folder) => {
                        let attr = self.directory(Node::Folder(folder));
                        reply.entry(&FOR_EVER, &attr, Generation(0));
                    }
                    None => reply.error(Errno::ENOENT),
                }
                return;
            }
            Node::Folder(folder) => folder,
            Node::File(_) => return reply.error(Errno::ENOTDIR),
        };
        let name = name.to_owned();
        self.queue.look(move |store| {
            let found = store.find(folder, name.as_bytes()).and_then(|file| store.attributes(file));
            match found {
                Ok(found) => reply.entry(&NO_TIME, &attributes(&found), Generation(0)),
                Err(refusal) => reply.error(errno(&refusal)),
            }
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let node = Node::of(ino.0);
        let Node::File(file) = node else {
            return reply.attr(&FOR_EVER, &self.directory(node));
        };
        self.queue.look(move |store| match store.attributes(file) {
            Ok(found) => reply.attr(&NO_TIME, &attributes(&found)),
            Err(refusal) => reply.error(errno(&refusal)),
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Node::File(file) = Node::of(ino.0) else { return reply.error(Errno::EPERM) };
        let answer = move |store: &mut Store, done: Result<(), Refusal>| match done
            .and_then(|()| store.attributes(file))
        {
            Ok(found) => reply.attr(&NO_TIME, &attributes(&found)),
            Err(refusal) => reply.error(errno(&refusal)),
        };
        match (size, handle) {
            (Some(size), Some(handle)) => self.queue.look(move |store| {
                let done = store.truncate(handle.0, size);
                answer(store, done);
            }),
            (Some(size), None) => self.queue.make(Job::Truncate { file, size }, answer),
            (None, _) => {
                let modified = mtime.map(|time| match time {
                    TimeOrNow::SpecificTime(time) => time,
                    TimeOrNow::Now => SystemTime::now(),
                });
                let change = Change { mode, uid, gid, modified };
                self.queue.make(Job::Change { file, change }, answer);
            }
        }
    }

    fn mknod(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        self.reports.tell("a device", name, &Refusal::NotHere);
        reply.error(errno(&Refusal::NotHere));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.reports.tell("a directory", name, &Refusal::NotHere);
        reply.error(errno(&Refusal::NotHere));
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(&Refusal::NotHere));
    }

    fn symlink(&self, _: &Request, _: INodeNo, name: &OsStr, _: &Path, reply: ReplyEntry) {
        self.reports.tell("a link", name, &Refusal::NotHere);
        reply.error(errno(&Refusal::NotHere));
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.reports.tell("a link", name, &Refusal::NotHere);
        reply.error(errno(&Refusal::NotHere));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let job = Self::folder(parent)
            .and_then(|folder| Ok(Job::Unlink { folder, name: Name::parse(name.as_bytes())? }));
        match job {
            Ok(job) => self.queue.make(job, move |_, done| match done {
                Ok(()) => reply.ok(),
                Err(refusal) => reply.error(errno(&refusal)),
            }),
            Err(refusal) => reply.error(errno(&refusal)),
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let job = || {
            let (folder, to) = (Self::folder(parent)?, Self::folder(new_parent)?);
            if folder != to {
                return Err(Refusal::OtherKind);
            }
            // The kernel itself refuses to replace what is there if told so; the other flags ask
            // for what makes no sense here.
            if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
                return Err(Refusal::Argument);
            }
            let (from, to) = (Name::parse(name.as_bytes())?, Name::parse(new_name.as_bytes())?);
            Ok(Job::Rename { folder, from, to })
        };
        let job = match job() {
            Ok(job) => job,
            Err(refusal) => {
                self.reports.tell("a name", new_name, &refusal);
                return reply.error(errno(&refusal));
            }
        };
        let (new_name, reports) = (new_name.to_owned(), Arc::clone(&self.reports));
        self.queue.make(job, move |_, done| match done {
            Ok(()) => reply.ok(),
            Err(refusal) => {
                reports.tell("a file's new name", &new_name, &refusal);
                reply.error(errno(&refusal));
            }
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Node::File(file) = Node::of(ino.0) else { return reply.error(Errno::EISDIR) };
        let is_cut = open_flags(flags.0).contains(OFlags::TRUNC);
        self.queue.look(move |store| {
            let opened = store.open_handle(file).and_then(|handle| {
                if is_cut {
                    // Cannot be over a limit.
                    store.truncate(handle, 0).inspect_err(|_| store.release(handle))?;
                }
                Ok(handle)
            });
            match opened {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
                Err(refusal) => reply.error(errno(&refusal)),
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let folder = match Self::folder(parent) {
            Ok(folder) => folder,
            Err(refusal) => return reply.error(errno(&refusal)),
        };
        let owner = Owner { uid: request.uid(), gid: request.gid(), mode: mode & 0o7777 };
        let (name, reports) = (name.to_owned(), Arc::clone(&self.reports));
        self.queue.look(move |store| {
            let made = store.create(folder, name.as_bytes(), owner);
            match made.and_then(|(file, handle)| Ok((store.attributes(file)?, handle))) {
                Ok((found, handle)) => reply.created(
                    &NO_TIME,
                    &attributes(&found),
                    Generation(0),
                    FileHandle(handle),
                    FopenFlags::FOPEN_DIRECT_IO,
                ),
                Err(refusal) => {
                    reports.tell("a file's name", &name, &refusal);
                    reply.error(errno(&refusal));
                }
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = usize::try_from(size.min(WRITE_MAX)).expect("32 bits");
        self.queue.look(move |store| match store.read(ino.0, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(refusal) => reply.error(errno(&refusal)),
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Direct writes come with it always.
        let Some(owner) = owner else { return reply.error(Errno::EIO) };
        let process = Process(owner.0);
        let is_append = open_flags(flags.0).contains(OFlags::APPEND);
        let at = if is_append { Position::End } else { Position::At(offset) };
        let len = u32::try_from(data.len()).expect("at most WRITE_MAX");
        let (data, reports) = (data.to_vec(), Arc::clone(&self.reports));
        self.queue.look(move |store| match store.write(handle.0, process, at, &data) {
            Ok(()) => reply.written(len),
            Err(refusal) => {
                reports.tell_of("a write to", store, ino.0, &refusal);
                reply.error(errno(&refusal));
            }
        });
    }

    fn flush(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.store(Job::Flush(handle.0, Process(owner.0)), ino, reply);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.store(Job::Fsync(handle.0), ino, reply);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.queue.look(move |store| {
            store.release(handle.0);
            reply.ok();
        });
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        // An entry's offset is its own number, which stays while others come and go; the two dots
        // come first with 1 and 2.
        let node = Node::of(ino.0);
        let above = if node == Node::Root { node } else { Node::Root };
        if let Node::File(_) = node {
            return reply.error(Errno::ENOTDIR);
        }
        for (place, number, name) in [(1, node.number(), "."), (2, above.number(), "..")] {
            if offset < place && reply.add(INodeNo(number), place, FileType::Directory, name) {
                return reply.ok();
            }
        }
        let Node::Folder(folder) = node else {
            for (place, folder) in (3..).zip(Folder::ALL) {
                let number = INodeNo(Node::Folder(folder).number());
                if offset < place && reply.add(number, place, FileType::Directory, folder.as_str())
                {
                    break;
                }
            }
            return reply.ok();
        };
        self.queue.look(move |store| {
            for (number, name) in store.list(folder, offset) {
                if reply.add(INodeNo(number), number, FileType::RegularFile, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // Names are durable before the calls that change them return.
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.queue.look(move |store| {
            let (used, quota) = store.usage();
            let (blocks, free) = (quota / BLOCK, quota.saturating_sub(used) / BLOCK);
            let files = FILES_MAX as u64;
            let free_files = files - store.count() as u64;
            let block = u32::try_from(BLOCK).expect("small");
            let name = u32::try_from(NAME_MAX).expect("small");
            reply.statfs(blocks, free, free, files, free_files, block, name, block);
        });
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel has looked at the permission bits.
        reply.ok();
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(&Refusal::Unsupported));
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(errno(&Refusal::Unsupported));
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(errno(&Refusal::Unsupported));
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(&Refusal::Unsupported));
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel then reads and writes.
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        // The kernel then takes a file for one without holes.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(&Refusal::Unsupported));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_mounts_are_found_in_the_kernels_table() {
        let table = "22 1 0:20 / /proc rw - proc proc rw\n\
            90 22 0:50 / /srv/my\\040kpi rw,nosuid - fuse.kpi-fs kpi-fs rw,user_id=0\n\
            91 22 0:51 / /srv/other rw - fuse.sshfs host: rw\n";
        assert!(is_mount(table, Path::new("/srv/my kpi")));
        assert!(!is_mount(table, Path::new("/srv/other")));
        assert!(!is_mount(table, Path::new("/srv")));
    }
}
