//! Starting a guest's process: its folder, its rights, its command line.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::process::{ChildStdout, Command};
use tokio::time::sleep;

use super::host::{Facts, SANDBOX};
use super::network::Way;
use super::qmp::{Qmp, QmpError};
use super::{CONNECT_LOOK, CONSOLE, CONTROL, CPU, LOG, MACHINE, PID, STATUS};
use crate::socket::KPI;
use crate::user::User;
use crate::{Error, Instance, KPI_PORT, Launch, files};

/// For a process to open its sockets.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Slots on the guest's PCI bus, eight functions each. A saved state needs every device that it knows
/// where it was: whoever changes one here counts [`super::LAYOUT`] up.
const DISK_SLOT: usize = 0x08;
const NIC_SLOT: usize = 0x10;
const PORTS_SLOT: usize = 0x18;
const BALLOON_SLOT: usize = 0x19;
/// The number, in the guest's process, of the descriptor for its first card.
const FIRST_WAY: usize = 10;

/// Checks the VM's files, gives the guest's user its rights on them, makes a fresh runtime folder,
/// and returns QEMU's arguments.
pub(crate) fn prepare(
    launch: &Launch,
    facts: &Facts,
    user: Option<&User>,
    folder: &Path,
    ways: &[Way],
) -> Result<Vec<OsString>, Error> {
    let vm_folder = fs::canonicalize(&launch.folder)
        .map_err(Error::io("find the VM's folder", &launch.folder))?;
    let mut disks = Vec::new();
    for disk in &launch.descriptor.disks {
        let path = vm_folder.join(disk.file.file_name());
        files::check_disk(&path)?;
        disks.push(path);
    }
    if let Some(user) = user {
        open_for_passage(&vm_folder)?;
        user.check_reach(&vm_folder)?;
        disks.iter().try_for_each(|path| user.own(path))?;
    }
    files::remove_folder(folder)?;
    fs::create_dir(folder).map_err(Error::io("make folder", folder))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
        .map_err(Error::io("set the permissions of", folder))?;
    for name in [CONSOLE, LOG] {
        let path = folder.join(name);
        File::create(&path).map_err(Error::io("create", &path))?;
        user.map_or(Ok(()), |user| user.own(&path))?;
    }
    if let Some(user) = user {
        user.own(folder)?;
    }
    arguments(launch, facts, &disks, ways)
}

/// Lets others pass through the VM's own folder; what lies in it keeps its rights.
fn open_for_passage(folder: &Path) -> Result<(), Error> {
    let mode = fs::metadata(folder).map_err(Error::io("look at", folder))?.mode();
    if mode & 0o001 == 0 {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode & 0o7777 | 0o001))
            .map_err(Error::io("set the permissions of", folder))?;
    }
    Ok(())
}

fn arguments(
    launch: &Launch,
    facts: &Facts,
    disks: &[PathBuf],
    ways: &[Way],
) -> Result<Vec<OsString>, Error> {
    let descriptor = &launch.descriptor;
    let mut list: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(OsString::from));
    add(&["-name", &format!("guest={}", launch.instance)]);
    add(&["-S", "-nodefaults", "-no-user-config", "-display", "none", "-sandbox", SANDBOX]);
    add(&["-machine", &format!("{MACHINE},accel={},dump-guest-core=off", facts.accelerator)]);
    // `enforce`: a host that lacks a feature of the model must fail, not run something else.
    add(&["-cpu", &format!("{CPU},enforce")]);
    add(&["-smp", &descriptor.resources.cpus.to_string()]);
    add(&["-m", &format!("{}M", descriptor.resources.memory.to_mib())]);
    add(&["-rtc", "base=utc", "-boot", "strict=on", "-bios", &facts.firmware.to_string_lossy()]);
    // A guest that sleeps by itself (ACPI S3, S4) could not be told from one that we paused.
    add(&["-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1"]);
    add(&["-pidfile", PID]);
    for (id, socket) in [("control", CONTROL), ("status", STATUS)] {
        add(&["-chardev", &format!("socket,id={id},path={socket},server=on,wait=off")]);
        add(&["-mon", &format!("chardev={id},mode=control")]);
    }
    add(&["-chardev", &format!("file,id=console,path={CONSOLE},append=on")]);
    add(&["-serial", "chardev:console"]);
    for (at, path) in disks.iter().enumerate() {
        for block in block_nodes(at, path)? {
            add(&["-blockdev", &block.to_string()]);
        }
        let address = address(DISK_SLOT, at);
        let disk = format!("id=disk{at},serial=disk{at},drive=disk{at}-raw,bootindex={at}");
        add(&["-device", &format!("virtio-blk-pci,{disk},{address}")]);
    }
    for (at, (nic, way)) in descriptor.nics.iter().zip(ways).enumerate() {
        match way {
            Way::Bridge(_) => add(&["-netdev", &format!("tap,id=net{at},fd={}", FIRST_WAY + at)]),
            Way::Nowhere => {
                // Behind the other port there is nobody, who takes all; alone, a port takes nothing,
                // and what the guest sends would wait in its queue.
                add(&["-netdev", &format!("hubport,id=net{at},hubid={at}")]);
                add(&["-netdev", &format!("hubport,id=nobody{at},hubid={at}")]);
            }
        }
        let [a, b, c, d, e, f] = nic.mac;
        let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        let address = address(NIC_SLOT, at);
        // No boot ROM: it would be one more file that a saved state depends on.
        let card = format!("id=nic{at},netdev=net{at},mac={mac},romfile=,{address}");
        add(&["-device", &format!("virtio-net-pci,{card}")]);
    }
    let ports = address(PORTS_SLOT, 0);
    add(&["-device", &format!("virtio-serial-pci,id=ports,max_ports=2,{ports}")]);
    // Port 0 would be a console of the guest's, so the first is number 1.
    add(&["-chardev", &format!("socket,id=kpi,path={KPI},server=on,wait=off")]);
    add(&["-device", &format!("virtserialport,bus=ports.0,nr=1,chardev=kpi,name={KPI_PORT}")]);
    let balloon = address(BALLOON_SLOT, 0);
    add(&["-device", &format!("virtio-balloon-pci,id=balloon,{balloon}")]);
    if launch.state.is_some() {
        add(&["-incoming", "defer"]);
    }
    Ok(list)
}

fn address(slot: usize, at: usize) -> String {
    format!("bus=pcie.0,addr=0x{:x}.0x{:x},multifunction=on", slot + at / 8, at % 8)
}

/// The file and the raw format over it: both named, so that nothing is ever detected.
fn block_nodes(at: usize, path: &Path) -> Result<[Value; 2], Error> {
    let direct = takes_direct_io(path)?;
    let name = path.to_str().ok_or_else(|| Error::Disk {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, "its path is not UTF-8"),
    })?;
    // `direct` is cache=none, its absence is cache=writeback; both pass on the guest's flushes.
    let cache = json!({ "direct": direct, "no-flush": false });
    let file = json!({
        "driver": "file", "node-name": format!("disk{at}-file"), "filename": name,
        "cache": cache, "discard": "unmap",
    });
    let raw = json!({
        "driver": "raw", "node-name": format!("disk{at}-raw"), "file": format!("disk{at}-file"),
        "cache": cache, "discard": "unmap",
    });
    Ok([file, raw])
}

fn takes_direct_io(path: &Path) -> Result<bool, Error> {
    match rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::INVAL) => Ok(false),
        Err(errno) => Err(Error::Disk { path: path.to_owned(), source: errno.into() }),
    }
}

/// A process on its way: it holds the other end of a pipe that closes when it ends.
#[derive(Debug)]
pub(crate) struct Started {
    folder: PathBuf,
    instance: Instance,
    alive: ChildStdout,
}

/// Starts QEMU in a session of its own, so that it outlives us, as no child of ours.
///
/// QEMU's `-daemonize` cannot be had together with its sandbox, hence `setsid --fork` (util-linux).
pub(crate) async fn start(
    binary: &Path,
    user: Option<&User>,
    folder: &Path,
    arguments: Vec<OsString>,
    ways: Vec<Way>,
) -> Result<Started, Error> {
    let log_path = folder.join(LOG);
    let log = File::options().append(true).open(&log_path).map_err(Error::io("open", &log_path))?;
    let mut command = Command::new("setsid");
    command.arg("--fork").arg(binary).args(arguments).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    let given = ways.into_iter().enumerate().filter_map(|(at, way)| match way {
        Way::Bridge(parent_fd) => {
            let child_fd = i32::try_from(FIRST_WAY + at).expect("a VM has few cards");
            Some(FdMapping { parent_fd, child_fd })
        }
        Way::Nowhere => None,
    });
    command.fd_mappings(given.collect()).expect("each number is given once");
    let not_started = |source| Error::NotInstalled { binary: "setsid".into(), source };
    let mut child = command.spawn().map_err(not_started)?;
    let alive = child.stdout.take().expect("its output is a pipe");
    child.wait().await.map_err(Error::io("wait for setsid in", folder))?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let instance = name.parse().expect("a runtime folder is named after its instance");
    Ok(Started { folder: folder.to_owned(), instance, alive })
}

impl Started {
    /// Waits until the process listens; none when it ended instead.
    pub(crate) async fn ended_or_ready(mut self) -> Result<Option<()>, Error> {
        let deadline = Instant::now() + START_LIMIT;
        let ready = async {
            loop {
                match Qmp::connect_in(&self.folder, CONTROL).await {
                    Ok(_) => return Ok(()),
                    // Not listening yet, or about to end; the pipe will say so.
                    Err(QmpError::Socket(_) | QmpError::Closed) if Instant::now() < deadline => {
                        sleep(CONNECT_LOOK).await;
                    }
                    Err(source) => {
                        return Err(Error::Control { instance: self.instance, source });
                    }
                }
            }
        };
        let mut byte = [0];
        tokio::select! {
            _ = self.alive.read(&mut byte) => Ok(None),
            ready = ready => ready.map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::vm::{Disk, Nic, Restrictions};
    use model::{Bytes, Descriptor, Epoch, FileId, Resources, VmId};

    use super::*;
    use crate::qemu::LAYOUT;

    /// When this fails because a device came, went or moved, count [`LAYOUT`] up as well.
    #[test]
    fn the_devices_of_a_guest_are_those_of_their_layouts_number() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        let launch = Launch {
            instance: Instance { vm: VmId([1; 16]), epoch: Epoch(1) },
            descriptor: Descriptor {
                name: "web".parse().unwrap(),
                resources: Resources { cpus: 2, memory: Bytes::mib(128) },
                disks: vec![Disk { file: FileId::disk(0), capacity: Bytes::mib(1) }; 9],
                nics: vec![Nic { network: "lan".to_owned(), mac: [0x52, 0x54, 0, 1, 2, 3] }],
                restrictions: Restrictions::default(),
                monitoring: Default::default(),
            },
            folder: PathBuf::new(),
            state: None,
            profile: Facts::sample().profile(),
        };
        let disks = vec![disk.path().to_owned(); 9];
        let words = arguments(&launch, &Facts::sample(), &disks, &[Way::Nowhere]).unwrap();
        let devices: Vec<_> = words
            .windows(2)
            .filter(|pair| pair[0] == "-device")
            .map(|pair| pair[1].to_str().unwrap())
            .filter(|device| !(1..8).any(|at| device.contains(&format!("id=disk{at},"))))
            .collect();
        let [first, ninth] = [(0, "8.0x0"), (8, "9.0x0")].map(|(at, addr)| {
            format!(
                "virtio-blk-pci,id=disk{at},serial=disk{at},drive=disk{at}-raw,bootindex={at},\
                 bus=pcie.0,addr=0x{addr},multifunction=on"
            )
        });
        let layout_3 = [
            &first,
            &ninth,
            "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:01:02:03,romfile=,\
             bus=pcie.0,addr=0x10.0x0,multifunction=on",
            "virtio-serial-pci,id=ports,max_ports=2,bus=pcie.0,addr=0x18.0x0,multifunction=on",
            "virtserialport,bus=ports.0,nr=1,chardev=kpi,name=sojourn.kpi",
            "virtio-balloon-pci,id=balloon,bus=pcie.0,addr=0x19.0x0,multifunction=on",
        ];
        assert_eq!((LAYOUT, devices.as_slice()), (3, layout_3.as_slice()));
        assert_eq!(Facts::sample().profile().machine, "pc-q35-7.2+3");
    }
}
