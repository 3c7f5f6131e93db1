//! What this machine offers: QEMU's version, firmware, a working accelerator, and a user for guests.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use model::{Digest, RunProfile};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{Accelerator, CPU, LAYOUT, MACHINE, QemuConfig};
use crate::Error;
use crate::user::User;

/// SeaBIOS, where Debian and QEMU itself put it.
const FIRMWARE: [&str; 2] = ["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin"];
/// For QEMU to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(20);
/// For the probe's fifteen instructions. A KVM that cannot run them never ends.
const PROBE_LIMIT: Duration = Duration::from_secs(4);
/// Characters that are quoted of what a program said.
const MAX_WORDS: usize = 600;
/// Sandbox of every QEMU process. It may neither gain rights nor start anything.
pub(crate) const SANDBOX: &str =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What guests of this host depend on.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    version: String,
    pub(crate) accelerator: &'static str,
    pub(crate) firmware: &'static Path,
    firmware_digest: Digest,
}

impl Facts {
    pub(crate) async fn find(config: &QemuConfig, user: Option<&User>) -> Result<Self, Error> {
        let version = version(&config.binary).await?;
        let firmware =
            FIRMWARE.iter().map(Path::new).find(|path| path.exists()).ok_or_else(|| {
                let places = FIRMWARE.join(" or ");
                Error::Configuration(format!("no firmware at {places}: apt-get install seabios"))
            })?;
        let content = fs::read(firmware).map_err(Error::io("read", firmware))?;
        let kvm = match config.accelerator {
            Accelerator::Kvm => true,
            Accelerator::Tcg => false,
            Accelerator::Auto => kvm_works(config, user).await?,
        };
        let accelerator = if kvm { "kvm" } else { "tcg" };
        Ok(Self { version, accelerator, firmware, firmware_digest: Digest::of(&content) })
    }

    pub(crate) fn profile(&self) -> RunProfile {
        RunProfile {
            hypervisor: "qemu".to_owned(),
            version: self.version.clone(),
            machine: format!("{MACHINE}+{LAYOUT}"),
            cpu: CPU.to_owned(),
            accelerator: self.accelerator.to_owned(),
            firmware: self.firmware_digest,
        }
    }
}

/// Runs a program to its end, with no input, and never longer than `limit`; none when it was.
async fn run(mut command: Command, limit: Duration) -> io::Result<Option<Output>> {
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    timeout(limit, command.output()).await.ok().transpose()
}

/// `7.2` of `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
async fn version(binary: &Path) -> Result<String, Error> {
    let mut command = Command::new(binary);
    command.arg("--version");
    let output = run(command, VERSION_LIMIT)
        .await
        .map_err(|source| Error::NotInstalled { binary: binary.to_owned(), source })?;
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    parse_version(&text).ok_or_else(|| Error::Program {
        program: format!("{} --version", binary.display()),
        status: "no version of QEMU".to_owned(),
        stderr: last_words(text.as_bytes()),
    })
}

fn parse_version(text: &str) -> Option<String> {
    let number = text.strip_prefix("QEMU emulator version ")?.split_whitespace().next()?;
    let mut parts = number.split('.');
    let (major, minor) = (parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?);
    Some(format!("{major}.{minor}"))
}

/// Whether KVM can run a guest here, by letting it run one. Asked once per process and user.
///
/// The file /dev/kvm proves nothing: inside some virtual machines it opens, and runs firmware even,
/// and then stops at the first thing that only the processor or a complete emulator can do.
async fn kvm_works(config: &QemuConfig, user: Option<&User>) -> Result<bool, Error> {
    type Key = (PathBuf, Option<u32>);
    static KNOWN: Mutex<Option<HashMap<Key, bool>>> = Mutex::const_new(None);
    let mut known = KNOWN.lock().await;
    let known = known.get_or_insert_default();
    let key = (config.binary.clone(), user.map(|user| user.uid));
    if let Some(works) = known.get(&key) {
        return Ok(*works);
    }
    let works = Path::new("/dev/kvm").exists() && probe(config, user, "kvm").await?;
    tracing::info!(works, "KVM was probed");
    known.insert(key, works);
    Ok(works)
}

/// The probe's firmware, to be loaded at the end of the first MiB, where execution starts.
///
/// ```text
///    real mode:       cli; ds = cs; lgdt; lidt; set CR0.PE; jump to
///    protected mode:  ds = es = ss = flat; esp = 0x7000; int 0
///                     out 0xf4, 0x2a     (QEMU ends with status 0x2a * 2 + 1)
///    handler of 0:    iret               (a KVM without full hardware help stops here)
/// ```
const PROBE_CODE: [u8; 0x6c] = [
    0xfa, 0x8c, 0xc8, 0x8e, 0xd8, 0x66, 0x0f, 0x01, 0x16, 0x60, 0x00, 0x66, 0x0f, 0x01, 0x1e, 0x66,
    0x00, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x21, 0x00, 0x0f, 0x00, 0x08,
    0x00, 0xb8, 0x10, 0x00, 0x00, 0x00, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x70, 0x00,
    0x00, 0xcd, 0x00, 0xb0, 0x2a, 0xba, 0xf4, 0x00, 0x00, 0x00, 0xee, 0xf4, 0xeb, 0xfd, 0xcf, 0x90,
    // The GDT (at 0x40): none, flat code, flat data. The IDT (at 0x58): one interrupt gate.
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, 0x3e, 0x00, 0x08, 0x00, 0x00, 0x8e, 0x0f, 0x00,
    // Where they lie, for lgdt and lidt.
    0x17, 0x00, 0x40, 0x00, 0x0f, 0x00, 0x07, 0x00, 0x58, 0x00, 0x0f, 0x00,
];
/// `jmp f000:0000`, at the reset vector.
const PROBE_RESET: [u8; 5] = [0xea, 0x00, 0x00, 0x00, 0xf0];
/// QEMU's exit status when the probe came to its end.
const PROBE_PASSED: i32 = 0x2a * 2 + 1;

async fn probe(config: &QemuConfig, user: Option<&User>, accelerator: &str) -> Result<bool, Error> {
    let mut rom = vec![0_u8; 0x10000];
    rom[..PROBE_CODE.len()].copy_from_slice(&PROBE_CODE);
    rom[0xfff0..0xfff0 + PROBE_RESET.len()].copy_from_slice(&PROBE_RESET);
    let path = config.runtime.join(format!("probe-{:016x}.bin", rand::random::<u64>()));
    fs::write(&path, rom).map_err(Error::io("write", &path))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
        .map_err(Error::io("set the permissions of", &path))?;
    let mut command = Command::new(&config.binary);
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-m", "16"])
        .args(["-machine", &format!("{MACHINE},accel={accelerator}")])
        .args(["-cpu", &format!("{CPU},enforce"), "-sandbox", SANDBOX])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios"])
        .arg(&path);
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    let output = run(command, PROBE_LIMIT).await;
    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    let output =
        output.map_err(|source| Error::NotInstalled { binary: config.binary.clone(), source })?;
    if let Some(output) = &output {
        tracing::debug!(said = last_words(&output.stderr), "the probe of {accelerator} ended");
    }
    Ok(output.is_some_and(|output| output.status.code() == Some(PROBE_PASSED)))
}

/// The end of what a program said, on one line.
pub(crate) fn last_words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines.join(" / ");
    let skip = text.chars().count().saturating_sub(MAX_WORDS);
    let text: String = text.chars().skip(skip).collect();
    if text.is_empty() { "it said nothing".to_owned() } else { text }
}

#[cfg(test)]
impl Facts {
    /// Of a host with the emulator and without firmware.
    pub(crate) fn sample() -> Self {
        Self {
            version: "7.2".to_owned(),
            accelerator: "tcg",
            firmware: Path::new("/bios"),
            firmware_digest: Digest([0; 32]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_cut_to_what_saved_states_depend_on() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(parse_version(text).as_deref(), Some("7.2"));
        for bad in ["", "QEMU", "QEMU emulator version x.y", "QEMU emulator version 7"] {
            assert_eq!(parse_version(bad), None, "{bad:?} was taken");
        }
    }

    #[tokio::test]
    async fn the_probe_passes_where_a_guest_can_run_and_fails_without_an_accelerator() {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let config = QemuConfig::new(folder.path().to_owned());
        if version(&config.binary).await.is_err() {
            let required = std::env::var("SOJOURN_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "qemu"), "QEMU is not installed");
            println!("skipped: QEMU is not installed");
            return;
        }
        assert!(probe(&config, None, "tcg").await.unwrap());
        assert!(!probe(&config, None, "none-such").await.unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
