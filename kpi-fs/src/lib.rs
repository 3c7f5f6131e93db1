//! The KPI file system: an application writes its key performance indicators to plain files, and
//! each line becomes a row of a database.
//!
//! The paper that this project follows asks that "the application software should not have to be
//! altered" (section IV-A): it does plain file I/O in a folder, behind which is one SQLite database
//! per VM. The program `kpi-fs` mounts the folder, in the guest or on the host.
//!
//! ```text
//!   application        kernel          mount             queue            store
//!   write, close ────▶ FUSE ────▶ calls, errnos ────▶ one thread ────▶ SQLite: chunks of files,
//!                                                     group commit       a table per file, outbox
//!                                                                          │ triggers, a bell
//!   whoever delivers rows ◀──────────────────────────────────────────── outbox
//! ```
//!
//! # Files and rows
//!
//! - There are two directories. A file of `unencrypted/` is CSV, by the table of [`csv`]; a file of
//!   `encrypted/` is opaque.
//! - A file is **stored** by a close or an `fsync` after writes that are not stored yet, by a rename,
//!   and by `truncate` with a path. Neither a second close nor one without writes gives a row.
//!   A close is that of any descriptor (the kernel does not tell which is the last) by a process
//!   that wrote what is not stored: those that a started program has inherited and closes store
//!   nothing, so that a program may start another one in the middle of a line. (Of a truncation the
//!   kernel does not say whose it is: if there was nothing else, any close stores it.)
//! - A stored file of `unencrypted/` gives a row for each line that is **new**: a byte was written
//!   into it since the file was stored last. Appending gives rows for what was appended, writing
//!   the file anew (`>`) gives all of it, equal or not; an overwritten line in the middle gives one.
//!   If the first line is written, all are new.
//! - Whether the first line names the columns is decided when it is stored: it does if there is
//!   another line then. A file that grows by appends from one line on has no names. To have no
//!   names with many lines at once, leave the first line empty.
//! - A last line without its end is a line at a close or `fsync`, but not while the one who wrote
//!   it has it open and somebody else stores the file.
//! - The table is named like the file, in the database and in the outbox (`encrypted/NAME` for those
//!   of `encrypted/`), and has `kpi_seq` (the row's number, which never comes again in any table),
//!   `kpi_saved_ms` (the time it was stored), and a text column for each of the file's; a file of
//!   `encrypted/` has its bytes in `content`. Columns that a later header brings are added.
//!   Tables do not tell letters' cases apart. `"NAME/numbers"` is a view of the values as numbers,
//!   NULL where a text is none.
//! - A table outlives its file, with its rows. A file of the same name goes on in it.
//!
//! # What holds
//!
//! - Readers see what was written at once, stored or not.
//! - After `close` or `fsync` returned 0, the file and its rows are durable (SQLite's WAL with
//!   `synchronous=FULL`), all or none, and read back byte for byte.
//! - After an error, the stored version is what is there; a new file is gone when it is closed.
//!   What several have written is given up together; each descriptor that was written to says so
//!   at its writes, up to and with its next `fsync` or close.
//!   (A shell does not look at what `close` answers: `echo 1,2 >> f` is silent. `cp`, `dd`, `sed`,
//!   `tee` and what syncs are not. `kpi-fs` says it in its log.)
//! - After `write` was refused (EDQUOT, EFBIG, ENOSPC) everything through that descriptor is, up to
//!   and with the next close or `fsync`: else what came before would be stored as if it were whole.
//! - A write is taken whole or not at all, up to 1 MiB; with `O_APPEND` it goes behind whatever is
//!   there by then. So whole lines of several processes are not torn.
//! - A truncation (`>`) takes nothing away until the file is stored: after a crash before that, the
//!   old version is there.
//! - A rename stores the file under its new name, with what was written to it so far, and gives
//!   rows of all its lines there, at once with taking away what had that name; or it is refused and
//!   nothing has changed. Write to a scratch name to have no rows before.
//! - A name that starts with `.` or `#` or ends with `~` is a **scratch** name: a file without rows
//!   and rules, of which editors and `write, then rename` programs make use.
//! - A file that is removed lives until it is closed; nothing that is written to it gives a row.
//! - Rows are kept up to a limit, the oldest go first, and those that had not been acknowledged are
//!   counted ([`outbox`]).
//!
//! # What programs do here
//!
//! | program | does |
//! | --- | --- |
//! | `echo 5 > f`, `>>`, `tee`, `cp`, `dd` | as files; rows at the close |
//! | `{ a; b; } > f` | each program that ends has closed the file: rows come as they end |
//! | `mv .tmp f`, `mv f g` | rows under the new name |
//! | `mv` between the two directories | EXDEV, so that `mv` copies |
//! | `sed -i` | writes a temporary file whose name is a table's (`sedXXXXXX`), renames it: rows in both; a file of several lines that was appended to without names is refused (EINVAL), as it is written anew |
//! | vim, emacs | their swap and backup files have scratch names; emacs' lock is a link and refused, which it passes over |
//! | `mmap` | privately, to read; shared mappings are refused (ENODEV): files are not cached |
//! | `flock`, `fcntl` locks | work among the programs of this machine |
//! | `df` | tells the quota; `df -i` the number of files |
//! | `chmod`, `chown`, `touch -d` | are durable when they return; access times are the modification's |
//!
//! # Errnos
//!
//! | errno | at | why |
//! | --- | --- | --- |
//! | EINVAL | create, rename | a name outside the set of [`name`] |
//! | EINVAL | close, fsync, rename | a line with another number of fields; a misplaced quote; a first line with what cannot name a column, or names one twice |
//! | EINVAL | rename | `RENAME_EXCHANGE`, `RENAME_WHITEOUT` |
//! | ENAMETOOLONG | all with names | above 64 bytes |
//! | EEXIST | create, rename | another file's name differs only in letters' cases; `O_EXCL`, `RENAME_NOREPLACE` |
//! | EILSEQ | close, fsync, rename | what is not UTF-8; control characters other than tab and the line's end |
//! | EMSGSIZE | close, fsync, rename | a line above 64 KiB |
//! | E2BIG | close, fsync, rename | more than 128 columns in a line, or in the table together |
//! | EFBIG | write, truncate | a file above the limit; above 512 KiB in `encrypted/` |
//! | EDQUOT | write, truncate | the quota: the sum of the files' sizes, each the larger of its stored version and what it is becoming |
//! | EDQUOT | create | 1,024 files |
//! | EDQUOT | close, fsync, rename | 2,048 tables, all with files |
//! | ENOSPC | write, close, fsync, rename, … | the disk under the database is full |
//! | EIO | all | the database does not work |
//! | ENFILE | open | 16,384 open files |
//! | EPERM | mkdir, rmdir, symlink, link, mknod, create in the root | only plain files are here |
//! | EXDEV | rename | from one directory to the other |
//! | EISDIR, ENOTDIR, ENOENT, EBADF | all | as everywhere |
//! | EOPNOTSUPP | fallocate, extended attributes | not supported |
//! | ENOTTY | ioctl | not supported |
//! | ENODEV | mmap | a shared mapping |
//!
//! # What of pjdfstest does not apply
//!
//! What is done with links, devices, FIFOs, sockets and directories (`link`, `symlink`, `mkfifo`,
//! `mknod`, `mkdir`, `rmdir`, and the parts of `rename`, `unlink`, `open`, `chmod`, `chown` that
//! are about those): they are refused, EPERM. Names above 64 bytes or outside the set: refused.
//! Access times of their own. Sparse contents and `truncate` to more in `unencrypted/`: zeros are
//! no text. Set-user-id bits mean nothing, mounts are `nosuid`. Permissions are checked by the
//! kernel (`default_permissions`). Random reads, writes and truncations are held against a buffer
//! by the tests, as fsx does, on a scratch file.
//!
//! # A static program
//!
//! For guests the program is one file without dependencies: `cargo xtask guest-image` builds it,
//! and so does
//!
//! ```text
//! RUSTFLAGS="-C target-feature=+crt-static" cargo build -p kpi-fs --profile guest \
//!     --target x86_64-unknown-linux-gnu --target-dir target/guest-build
//! ```
//!
//! with the C library's static half, which Debian has in `libc6-dev`, where compilers need it
//! anyway. (A target folder of its own, so that these flags do not make everything else be built
//! again; with `--target`, so that they do not reach what runs during the build.)
//!
//! What is different in it: names of hosts, in `probe --url`.
//! They are looked up in `/etc/hosts`, without which not even `localhost` is known, and by the name
//! servers of `/etc/resolv.conf`.
//! Other sources of `/etc/nsswitch.conf` are plug-ins of the C library that was linked, and are
//! passed over where they cannot be loaded; where the guest has another version of it, an address
//! instead of a name avoids them.
//! Nothing else here looks up names, users, groups or locales.
//!
//! Mounting is by the system call, as root, without libfuse; other users need `fusermount3`.

pub mod csv;
pub mod export;
#[doc(hidden)]
pub mod fuzzing;
pub mod listen;
pub mod mount;
pub mod name;
pub mod outbox;
pub mod probe;
mod queue;
pub mod refusal;
pub mod seal;
pub mod store;
