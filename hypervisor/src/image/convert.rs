//! From an inspected image to a raw disk.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use model::Bytes;
use rustix::fs::SeekFrom;
use tokio::process::Command;
use tokio::time::timeout;

use super::{ImageError, ImageFormat, inspect, open_plain};
use crate::files;
use crate::qemu::last_words;
use crate::user::{User, guest_user, set_owner};

/// Bytes that are compared with zero, and left out where they are, at a time.
const BLOCK: usize = 64 << 10;
/// Files that `qemu-img` may have open.
const OPEN_FILES: u32 = 64;

/// What one conversion may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertLimits {
    /// The largest disk.
    pub virtual_size: Bytes,
    /// Processor time.
    pub cpu: Duration,
    /// Time by the clock.
    pub time: Duration,
    /// Address space.
    pub memory: Bytes,
    /// The user that `qemu-img` runs as when we are root; none means `nobody`.
    pub user: Option<String>,
}

impl ConvertLimits {
    /// Ample limits for a disk of at most `virtual_size`.
    pub fn new(virtual_size: Bytes) -> Self {
        Self {
            virtual_size,
            cpu: Duration::from_secs(3600),
            time: Duration::from_secs(4 * 3600),
            memory: Bytes::mib(1024),
            user: None,
        }
    }
}

/// Makes the raw disk `target` of the image `source`, which must be of `format`, and returns its size.
///
/// The disk appears under its name when it is complete and synced; on failure nothing is left.
/// A raw image is copied by ourselves, without its holes and zeros. For the others `qemu-img` is
/// handed the file, and the image belongs to its user meanwhile.
pub async fn convert_to_raw(
    source: &Path,
    format: ImageFormat,
    target: &Path,
    limits: &ConvertLimits,
) -> Result<Bytes, ImageError> {
    let inspection = inspect(source, limits.virtual_size)?;
    if inspection.format != format {
        let found = inspection.format;
        return Err(ImageError::Format { path: source.to_owned(), found, said: format });
    }
    let partial = files::partial(target);
    files::remove(&partial)?;
    let made = async {
        let write = |error| ImageError::Write { path: target.to_owned(), source: error };
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
            .map_err(write)?;
        if format == ImageFormat::Raw {
            copy(open_plain(source)?, file, source, target).await?;
        } else {
            let output = fs::canonicalize(&partial).map_err(write)?;
            convert(source, format, &output, limits).await?;
        }
        files::sync(&partial).await?;
        let size = fs::metadata(&partial).map_err(write)?.len();
        files::complete(&partial, target)?;
        Ok(Bytes(size))
    };
    made.await.inspect_err(|_| {
        let _ = files::remove(&partial);
    })
}

async fn copy(input: File, output: File, from: &Path, to: &Path) -> Result<(), ImageError> {
    let (from, to) = (from.to_owned(), to.to_owned());
    let copying = tokio::task::spawn_blocking(move || copy_sparsely(&input, &output));
    match copying.await.expect("copying does not panic") {
        Ok(()) => Ok(()),
        Err(CopyError::Read(source)) => Err(ImageError::Read { path: from, source }),
        Err(CopyError::Write(source)) => Err(ImageError::Write { path: to, source }),
    }
}

enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies what is neither a hole nor zero; the target is new and reads as zero elsewhere.
fn copy_sparsely(input: &File, output: &File) -> Result<(), CopyError> {
    let read = |errno: rustix::io::Errno| CopyError::Read(errno.into());
    let length = input.metadata().map_err(CopyError::Read)?.len();
    output.set_len(length).map_err(CopyError::Write)?;
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    while at < length {
        at = match rustix::fs::seek(input, SeekFrom::Data(at)) {
            // There is no data from here on.
            Err(rustix::io::Errno::NXIO) => break,
            other => other.map_err(read)?,
        };
        let hole = rustix::fs::seek(input, SeekFrom::Hole(at)).map_err(read)?.min(length);
        while at < hole {
            let block = usize::try_from(hole - at).unwrap_or(BLOCK).min(BLOCK);
            let block = &mut buffer[..block];
            input.read_exact_at(block, at).map_err(CopyError::Read)?;
            if block.iter().any(|byte| *byte != 0) {
                output.write_all_at(block, at).map_err(CopyError::Write)?;
            }
            at += block.len() as u64;
        }
    }
    Ok(())
}

/// A file that belongs to another user until this is dropped.
struct Lent {
    path: PathBuf,
    owner: (u32, u32),
}

impl Lent {
    fn to(user: &User, path: &Path) -> Result<Self, ImageError> {
        let read = |source| ImageError::Read { path: path.to_owned(), source };
        let metadata = fs::symlink_metadata(path).map_err(read)?;
        user.own(path)?;
        Ok(Self { path: path.to_owned(), owner: (metadata.uid(), metadata.gid()) })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Err(error) = set_owner(&self.path, self.owner.0, self.owner.1) {
            tracing::warn!(%error, "an image stays with the user that converted it");
        }
    }
}

async fn convert(
    source: &Path,
    format: ImageFormat,
    target: &Path,
    limits: &ConvertLimits,
) -> Result<(), ImageError> {
    let read = |error| ImageError::Read { path: source.to_owned(), source: error };
    // Absolute, so that no part of a name is taken for an option or a protocol.
    let input = fs::canonicalize(source).map_err(read)?;
    // prlimit (util-linux) sets the limits on itself and becomes qemu-img.
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--cpu={}", limits.cpu.as_secs()))
        .arg(format!("--as={}", limits.memory.0))
        .arg(format!("--fsize={}", limits.virtual_size.0))
        .arg(format!("--nofile={OPEN_FILES}"))
        .arg("--core=0")
        .args(["qemu-img", "convert", "-f", format.driver(), "-O", "raw"])
        .arg(&input)
        .arg(target)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let user = guest_user(limits.user.as_deref())?;
    let mut lent = Vec::new();
    if let Some(user) = &user {
        for path in [input.as_path(), target] {
            user.check_reach(path.parent().unwrap_or(path))?;
            lent.push(Lent::to(user, path)?);
        }
        command.uid(user.uid).gid(user.gid);
    }
    let output = timeout(limits.time, command.output())
        .await
        .map_err(|_| ImageError::Late { path: source.to_owned(), limit: limits.time })?
        .map_err(|source| ImageError::NotInstalled { program: "prlimit", source })?;
    // 127 and 126 are how prlimit says that it could not become the program.
    match output.status.code() {
        Some(0) => Ok(()),
        Some(126 | 127) => Err(ImageError::NotInstalled {
            program: "qemu-img",
            source: io::Error::other(last_words(&output.stderr)),
        }),
        _ => Err(ImageError::Convert {
            path: source.to_owned(),
            status: output.status.to_string(),
            stderr: last_words(&output.stderr),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::Refusal;

    const SIZE: usize = 3 << 20;

    /// A folder that another user may pass, with a raw disk of a few islands of data in it.
    fn folder() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let mut content = vec![0; SIZE];
        for at in [0, 70_000, 1 << 20, SIZE - 1] {
            content[at] = 7;
        }
        let raw = folder.path().join("source.raw");
        let file = File::create(&raw).unwrap();
        // Written in full, so that the zeros are data and not holes.
        file.write_all_at(&content, 0).unwrap();
        (folder, raw, content)
    }

    fn has_qemu_img() -> bool {
        let found = std::process::Command::new("qemu-img").arg("--version").output().is_ok();
        let required = std::env::var("SOJOURN_REQUIRE").unwrap_or_default();
        assert!(found || !required.split(',').any(|name| name == "qemu"), "no qemu-img");
        if !found {
            println!("skipped: no qemu-img");
        }
        found
    }

    /// Makes an image with `qemu-img`.
    fn made(raw: &Path, name: &str, arguments: &[&str]) -> PathBuf {
        let path = raw.with_file_name(name);
        let mut command = std::process::Command::new("qemu-img");
        command.args(["convert", "-f", "raw"]).args(arguments).arg(raw).arg(&path);
        assert!(command.status().unwrap().success());
        path
    }

    fn limits() -> ConvertLimits {
        ConvertLimits::new(Bytes(4 << 20))
    }

    #[tokio::test]
    async fn a_raw_image_is_copied_without_its_zeros() {
        let (folder, raw, content) = folder();
        let target = folder.path().join("disk0.raw");
        let size = convert_to_raw(&raw, ImageFormat::Raw, &target, &limits()).await.unwrap();
        assert_eq!(size, Bytes(SIZE as u64));
        assert!(fs::read(&target).unwrap() == content);
        assert!(fs::metadata(&target).unwrap().blocks() * 512 < SIZE as u64 / 4, "not sparse");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn every_format_becomes_the_disk_that_is_in_it() {
        if !has_qemu_img() {
            return;
        }
        let (folder, raw, content) = folder();
        let stream = ["-O", "vmdk", "-o", "subformat=streamOptimized"];
        let fixed = ["-O", "vpc", "-o", "subformat=fixed,force_size=on"];
        let images: [(&str, &[&str], ImageFormat); 7] = [
            ("a.qcow2", &["-O", "qcow2"], ImageFormat::Qcow2),
            ("b.qcow2", &["-O", "qcow2", "-c", "-o", "compat=0.10"], ImageFormat::Qcow2),
            ("a.vmdk", &["-O", "vmdk"], ImageFormat::Vmdk),
            ("b.vmdk", &stream, ImageFormat::Vmdk),
            ("a.vdi", &["-O", "vdi"], ImageFormat::Vdi),
            ("a.vhd", &["-O", "vpc", "-o", "force_size=on"], ImageFormat::Vhd),
            ("b.vhd", &fixed, ImageFormat::Vhd),
        ];
        for (name, arguments, format) in images {
            let image = made(&raw, name, arguments);
            let owner = fs::metadata(&image).unwrap().uid();
            let target = folder.path().join("disk0.raw");
            convert_to_raw(&image, format, &target, &limits())
                .await
                .unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert!(fs::read(&target).unwrap() == content, "{name}");
            assert_eq!(fs::metadata(&image).unwrap().uid(), owner);
        }
    }

    #[tokio::test]
    async fn an_image_is_refused_that_is_too_large_or_not_what_was_said() {
        let (folder, raw, _) = folder();
        let target = folder.path().join("disk0.raw");
        let small = ConvertLimits::new(Bytes(SIZE as u64 - 1));
        let error = convert_to_raw(&raw, ImageFormat::Raw, &target, &small).await.unwrap_err();
        let ImageError::Refused { source: Refusal::TooLarge { size, .. }, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(size, Bytes(SIZE as u64));
        let error = convert_to_raw(&raw, ImageFormat::Vmdk, &target, &limits()).await.unwrap_err();
        assert!(matches!(error, ImageError::Format { found: ImageFormat::Raw, .. }));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&raw, &link).unwrap();
        let error = convert_to_raw(&link, ImageFormat::Raw, &target, &limits()).await.unwrap_err();
        assert!(matches!(error, ImageError::Read { .. }), "a link was followed");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "something is left");
    }

    #[tokio::test]
    async fn a_reader_that_wants_too_much_is_ended_and_leaves_nothing() {
        if !has_qemu_img() {
            return;
        }
        let (folder, raw, _) = folder();
        let image = made(&raw, "a.qcow2", &["-O", "qcow2"]);
        let target = folder.path().join("disk0.raw");
        let tight = ConvertLimits { memory: Bytes::mib(8), ..limits() };
        let error = convert_to_raw(&image, ImageFormat::Qcow2, &target, &tight).await.unwrap_err();
        assert!(matches!(error, ImageError::Convert { .. } | ImageError::NotInstalled { .. }));
        let late = ConvertLimits { time: Duration::ZERO, ..limits() };
        let error = convert_to_raw(&image, ImageFormat::Qcow2, &target, &late).await.unwrap_err();
        assert!(matches!(error, ImageError::Late { .. }));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "something is left");
    }

    #[tokio::test]
    async fn a_header_that_lies_about_its_tables_does_not_get_past_the_limits() {
        if !has_qemu_img() {
            return;
        }
        let (folder, raw, _) = folder();
        let image = made(&raw, "a.qcow2", &["-O", "qcow2"]);
        // The first-level table has more entries than memory could hold.
        let file = File::options().write(true).open(&image).unwrap();
        file.write_all_at(&u32::MAX.to_be_bytes(), 36).unwrap();
        let target = folder.path().join("disk0.raw");
        let error = convert_to_raw(&image, ImageFormat::Qcow2, &target, &limits()).await;
        assert!(matches!(error, Err(ImageError::Convert { .. })), "{error:?}");
        assert!(!target.exists());
    }
}
