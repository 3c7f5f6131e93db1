//! Builds the small real guest that the tests and the demo run: a bootable raw disk image.
//!
//! MBR with syslinux; partition 1 is FAT with a Debian cloud kernel and a busybox initramfs;
//! partition 2 is 1 MiB of raw data, whose first sector holds the guest's counter; partition 3 is
//! ext4, for the database of its KPIs.
//! The guest prints a line a second to its serial console:
//! `sojourn-guest counter=17 uptime=9 boot=ab12cd34 since=8`. `counter` is on the disk before it is
//! printed; `uptime` (lines since boot), `boot` (random) and `since` (the counter found at boot) are
//! kept in memory only. So `counter = since + uptime` holds for ever, unless a disk and a memory of
//! different moments were put together.
//!
//! Where it finds a virtio-serial port named `sojourn.kpi`, it also mounts `kpi-fs` and runs a small
//! application (`guest_image/kpi.sh`), whose table `web` has a row a second: `current_users`, which
//! `guest_image/visitors.sh` tells from the counter, and `requests`; before each it says so on the
//! console.
//!
//! Everything but `kpi-fs` comes from Debian packages that are fetched and unpacked, never
//! installed, so no step needs root.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::shell::{cargo, root};

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// First sector of partition 1.
const BOOT_START: u64 = 2048;
/// Sectors of partition 1: 26 MiB.
const BOOT_SECTORS: u64 = 26 * 2048;
/// First sector of partition 2.
const DATA_START: u64 = BOOT_START + BOOT_SECTORS;
/// Sectors of partition 2: 1 MiB.
const DATA_SECTORS: u64 = 2048;
/// First sector of partition 3.
const KPI_START: u64 = DATA_START + DATA_SECTORS;
/// Sectors of partition 3: 12 MiB, for 2 MiB of rows, SQLite's log of 4 MiB, and ext4's own.
const KPI_SECTORS: u64 = 12 * 2048;
/// Bytes of the image: the partitions and 1 MiB before them.
const IMAGE_BYTES: u64 = (KPI_START + KPI_SECTORS) * SECTOR;

/// The package that depends on the newest kernel for cloud guests.
const KERNEL_META: &str = "linux-image-cloud-amd64";
/// Packages besides the kernel that the image and its making need.
const PACKAGES: [&str; 3] = ["busybox-static", "mtools", "syslinux"];
/// Kernel modules that the guest loads, if the kernel does not contain them already.
const MODULES: [&str; 6] =
    ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "button", "evdev"];
/// Those that it loads later, for the KPI file system.
const KPI_MODULES: [&str; 1] = ["fuse"];

/// Most bytes of the program `kpi-fs`.
const KPI_FS_MAX: usize = 6 << 20;

const SYSLINUX_CFG: &str = "\
DEFAULT guest
PROMPT 0
TIMEOUT 0
LABEL guest
  LINUX vmlinuz
  INITRD initrd
  APPEND console=ttyS0 quiet panic=-1
";

/// The guest's own files: where they lie in it, and what they are.
const SCRIPTS: [(&str, &str); 4] = [
    ("init", include_str!("guest_image/init.sh")),
    ("bin/kpi", include_str!("guest_image/kpi.sh")),
    ("bin/visitors", include_str!("guest_image/visitors.sh")),
    ("srv/cgi-bin/session", include_str!("guest_image/session.sh")),
];

/// Builds the image as `out`, or returns at once when `out` is there and made from the same inputs.
///
/// The inputs are recorded beside it, in `<out>.stamp`.
pub(crate) fn build(out: &Path) -> Result<()> {
    let kernel = newest_kernel()?;
    let program = static_kpi_fs()?;
    let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(&program));
    let inputs = format!(
        "{kernel}\n{PACKAGES:?}\n{MODULES:?}\n{KPI_MODULES:?}\n{KPI_START}\n{IMAGE_BYTES}\n\
         {digest}\n{SYSLINUX_CFG}{SCRIPTS:?}"
    );
    let stamp = beside(out, ".stamp");
    if out.exists() && fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == inputs) {
        return Ok(());
    }
    let folder = out.parent().context("the image's path names no file")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let work = Workspace::new(folder)?;
    let root = unpack(&work.0, &kernel)?;
    let initrd = work.0.join("initrd");
    fs::write(&initrd, initramfs(&root, &program)?)?;
    // The BIOS takes longer to load a byte than the kernel to unpack it, and disks get moved.
    let initrd_gz = beside(&initrd, ".gz");
    fs::write(&initrd_gz, run(Command::new("gzip").args(["-9nc"]).arg(&initrd))?)?;
    let image = work.0.join("disk.raw");
    write_image(&work.0, &root, &initrd_gz, &image)?;
    // The stamp goes first and comes back last: a build that is cut off is built again.
    let _ = fs::remove_file(&stamp);
    fs::rename(&image, out).with_context(|| format!("cannot write {}", out.display()))?;
    fs::write(&stamp, inputs).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Builds `kpi-fs` as a static program, if need be; gives its bytes.
fn static_kpi_fs() -> Result<Vec<u8>> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    const FOLDER: &str = "target/guest-build";
    crate::shell::run(
        cargo()
            .args(["build", "--quiet", "--package", "kpi-fs", "--profile", "guest"])
            // A target makes the flags those of the program alone, and not of what runs during the
            // build; a folder of its own keeps them from having everything else built again.
            .args(["--target", TARGET, "--target-dir", FOLDER])
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static"),
    )?;
    let path = root().join(FOLDER).join(TARGET).join("guest/kpi-fs");
    let program = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
    ensure!(is_static(&program), "{} wants a loader, and is to be static", path.display());
    let size = program.len();
    ensure!(size <= KPI_FS_MAX, "kpi-fs has {size} bytes, and {KPI_FS_MAX} are its limit");
    Ok(program)
}

/// Whether a 64-bit ELF program names no loader (`elf(5)`: no program header of type `PT_INTERP`).
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: usize = 3;
    let bytes =
        |at: usize, len: usize| elf.get(at..).and_then(|rest| rest.get(..len)).unwrap_or_default();
    let number = |at: usize, len: usize| {
        bytes(at, len).iter().rev().fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let mut kinds = (0..count).map(|at| number(table.saturating_add(at * size), 4));
    bytes(0, 5) == b"\x7fELF\x02" && count > 0 && kinds.all(|kind| kind != PT_INTERP)
}

/// A folder of this build alone, removed at its end.
struct Workspace(PathBuf);

impl Workspace {
    fn new(parent: &Path) -> Result<Self> {
        let path = parent.join(format!(".guest-image-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(fs::canonicalize(path)?))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Runs a program and gives back what it printed.
fn run(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed ({}): {}", output.status, said.trim());
    }
    Ok(output.stdout)
}

/// The name of the kernel package that Debian's cloud kernel stands for now.
fn newest_kernel() -> Result<String> {
    let depends = run(Command::new("apt-cache").args(["depends", KERNEL_META]))
        .context("the guest image is made from Debian packages, on a Debian machine")?;
    String::from_utf8_lossy(&depends)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("apt knows no {KERNEL_META}, run: apt-get update"))
}

/// Fetches the packages and unpacks them into one tree.
fn unpack(work: &Path, kernel: &str) -> Result<PathBuf> {
    let debs = work.join("debs");
    let root = work.join("root");
    fs::create_dir(&debs)?;
    fs::create_dir(&root)?;
    run(Command::new("apt-get").arg("download").arg(kernel).args(PACKAGES).current_dir(&debs))
        .context("cannot fetch the packages of the guest image, perhaps run: apt-get update")?;
    for deb in fs::read_dir(&debs)? {
        run(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(&root))?;
    }
    Ok(root)
}

/// The only entry of a folder whose name starts with `prefix`.
fn entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    bail!("no {prefix}* in {}", folder.display())
}

fn initramfs(root: &Path, kpi_fs: &[u8]) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    let folders = [
        "bin",
        "data",
        "dev",
        "kpi",
        "modules",
        "modules/kpi",
        "proc",
        "run",
        "srv",
        "srv/cgi-bin",
        "sys",
    ];
    for folder in folders {
        cpio.add(folder, 0o040_755, b"");
    }
    for (place, script) in SCRIPTS {
        cpio.add(place, 0o100_755, script.as_bytes());
    }
    let busybox = fs::read(root.join("bin/busybox")).context("no busybox in its package")?;
    cpio.add("bin/busybox", 0o100_755, &busybox);
    cpio.add("bin/kpi-fs", 0o100_755, kpi_fs);
    let tree = entry(&root.join("lib/modules"), "")?;
    let mut modules = Vec::new();
    for name in MODULES {
        collect_module(&tree, name, &mut modules)?;
    }
    let at_boot = modules.len();
    for name in KPI_MODULES {
        collect_module(&tree, name, &mut modules)?;
    }
    for (at, (name, content)) in modules.iter().enumerate() {
        let folder = if at < at_boot { "modules" } else { "modules/kpi" };
        cpio.add(&format!("{folder}/{at:02}-{name}.ko"), 0o100_644, content);
    }
    Ok(cpio.finish())
}

/// Adds a module after those that it depends on. What the kernel contains needs no module.
fn collect_module(tree: &Path, name: &str, found: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    if found.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let Some(path) = find_module(&tree.join("kernel"), name)? else {
        let builtin = fs::read_to_string(tree.join("modules.builtin"))?;
        let inside = builtin.lines().any(|line| module_name(Path::new(line)) == name);
        ensure!(inside, "the kernel has no module {name}");
        return Ok(());
    };
    let content = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => run(Command::new("xz").arg("-dc").arg(&path))?,
        _ => fs::read(&path)?,
    };
    for dependency in module_depends(&content) {
        collect_module(tree, &dependency, found)?;
    }
    found.push((name.to_owned(), content));
    Ok(())
}

fn find_module(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_module(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if module_name(&entry.path()) == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// `virtio_pci` for `kernel/drivers/virtio/virtio-pci.ko.xz`: the kernel takes both for one name.
fn module_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match name.split_once(".ko") {
        Some((stem, _)) => stem.replace('-', "_"),
        None => String::new(),
    }
}

/// The modules that a module names in its `.modinfo` section.
fn module_depends(content: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = content.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let list = content[at + key.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list).replace('-', "_");
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// An archive in the "new ASCII" cpio format, as the kernel reads it
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("files of the initramfs are small");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        // inode, mode, uid, gid, links, time, size, device numbers (4), name's size, no checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }
}

fn write_image(work: &Path, root: &Path, initrd: &Path, image: &Path) -> Result<()> {
    let mut file = File::create(image)?;
    file.set_len(IMAGE_BYTES)?;
    let mbr = fs::read(root.join("usr/lib/SYSLINUX/mbr.bin"))
        .or_else(|_| fs::read(root.join("usr/lib/syslinux/mbr/mbr.bin")))
        .context("no mbr.bin in syslinux's package")?;
    ensure!(mbr.len() <= 440, "mbr.bin is too long for a boot sector");
    file.write_all(&mbr)?;
    file.seek(SeekFrom::Start(446))?;
    file.write_all(&partition(0x80, 0x0e, BOOT_START, BOOT_SECTORS))?;
    file.write_all(&partition(0, 0xda, DATA_START, DATA_SECTORS))?;
    file.write_all(&partition(0, 0x83, KPI_START, KPI_SECTORS))?;
    file.seek(SeekFrom::Start(510))?;
    file.write_all(&[0x55, 0xaa])?;
    drop(file);

    let cfg = work.join("syslinux.cfg");
    fs::write(&cfg, SYSLINUX_CFG)?;
    let path = format!(
        "{}:{}",
        root.join("usr/bin").display(),
        std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned())
    );
    // mtools looks for its programs' names, and syslinux for mtools, on the path.
    let tool = |name: &str| {
        let mut command = Command::new(root.join("usr/bin").join(name));
        command.env("PATH", &path).env("MTOOLS_SKIP_CHECK", "1").current_dir(work);
        command
    };
    let drive = format!("{}@@{}", image.display(), BOOT_START * SECTOR);
    run(tool("mformat")
        .args(["-i", &drive, "-N", "50a10000", "-v", "SOJOURN", "-h", "255", "-s", "63"])
        .args(["-T", &BOOT_SECTORS.to_string(), "-H", &BOOT_START.to_string(), "::"]))?;
    let offset = (BOOT_START * SECTOR).to_string();
    run(tool("syslinux").args(["--install", "--offset", &offset]).arg(image))?;
    let kernel = entry(&root.join("boot"), "vmlinuz-")?;
    for (source, name) in
        [(&kernel, "vmlinuz"), (&initrd.to_owned(), "initrd"), (&cfg, "syslinux.cfg")]
    {
        run(tool("mcopy").args(["-i", &drive]).arg(source).arg(format!("::{name}")))?;
    }
    make_ext4(image, KPI_START * SECTOR, KPI_SECTORS * SECTOR)?;
    File::open(image)?.sync_all()?;
    Ok(())
}

/// Makes an empty file system, with a journal, inside of a file.
fn make_ext4(image: &Path, offset: u64, bytes: u64) -> Result<()> {
    // Nothing is left for the guest to initialise in the background.
    let options = format!("offset={offset},nodiscard,lazy_itable_init=0,lazy_journal_init=0");
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
    // It lies where only root has it on its path.
    run(Command::new("mke2fs")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-q", "-F", "-t", "ext4", "-b", "1024", "-m", "0", "-N", "64", "-E", &options])
        .arg(image)
        .arg(format!("{}k", bytes / 1024)))
    .map(drop)
    .context("the guest's disk needs mke2fs, of e2fsprogs")
}

/// An entry of the partition table. Only the sector numbers count for whoever reads it today; the
/// cylinder, head and sector fields hold the value for "beyond".
fn partition(status: u8, kind: u8, start: u64, sectors: u64) -> [u8; 16] {
    let word = |value: u64| u32::try_from(value).expect("the image is small").to_le_bytes();
    let mut entry = [status, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    entry[8..12].copy_from_slice(&word(start));
    entry[12..].copy_from_slice(&word(sectors));
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_padded_and_ends_with_its_trailer() {
        let mut cpio = Cpio::default();
        cpio.add("a", 0o100_644, b"xyz");
        let bytes = cpio.finish();
        assert!(bytes.starts_with(b"07070100000001000081a4"));
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[110..119], b"a\0xyz\x00070");
    }

    #[test]
    fn a_program_that_wants_a_loader_is_not_static() {
        // Cargo links programs of this machine dynamically.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own) && !is_static(b"#!/bin/sh") && !is_static(b""));
        let headers = 64_usize;
        let mut bare = vec![0; headers + 56];
        bare[..5].copy_from_slice(b"\x7fELF\x02");
        (bare[32], bare[54], bare[56], bare[headers]) = (64, 56, 1, 1);
        assert!(is_static(&bare));
        bare[headers] = 3;
        assert!(!is_static(&bare));
    }

    #[test]
    fn a_modules_dependencies_are_read_from_its_own_text() {
        let content = b"\x7fELF\0license=GPL\0depends=virtio,virtio-ring\0name=x\0";
        assert_eq!(module_depends(content), ["virtio", "virtio_ring"]);
        assert!(module_depends(b"\0depends=\0").is_empty());
        assert_eq!(module_name(Path::new("a/virtio-pci.ko.xz")), "virtio_pci");
    }
}
