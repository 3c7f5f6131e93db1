//! What the project needs on a machine beside Rust, and where it comes from.

use std::process::Command;

use anyhow::{Result, bail};

use crate::guest_image;
use crate::shell::{cargo, read, root, run};

/// Where the test guest is kept, seen from the workspace's folder.
pub(crate) const GUEST_IMAGE: &str = "target/guest/disk.raw";

/// Programs that are looked for, and the Debian package that has each.
const PROGRAMS: [(&str, &str); 10] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("prlimit", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("ip", "iproute2"),
    ("mke2fs", "e2fsprogs"),
    ("nft", "nftables"),
    ("faketime", "faketime"),
];

/// The same, for `bench transfer` alone: what it needs beside, and what it measures against.
const MOVERS: [(&str, &str); 12] = [
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("debugfs", "e2fsprogs"),
    ("mke2fs", "e2fsprogs"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("rsync", "rsync"),
    ("scp", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    (SSHD, "openssh-server"),
];

/// Lets whoever has a key log in.
const SSHD: &str = "sshd";

/// Installs what is missing, when run as root; else says which command does.
pub(crate) fn machine() -> Result<()> {
    programs(&PROGRAMS)
}

/// Installs what `bench transfer` needs.
pub(crate) fn movers() -> Result<()> {
    let had_sshd = is_there(SSHD);
    programs(&MOVERS)?;
    // Its package opens a port of the machine, which nobody asked for.
    let has_systemd = std::path::Path::new("/run/systemd/system").is_dir();
    if !had_sshd && has_systemd {
        run(Command::new("systemctl").args(["disable", "--quiet", "--now", "ssh"]))?;
    }
    Ok(())
}

fn programs(wanted: &[(&str, &'static str)]) -> Result<()> {
    let mut missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root()? {
        bail!(
            "missing: {0}; install with: sudo apt-get update && sudo apt-get install -y {0}",
            missing.join(" ")
        );
    }
    println!("installing {}", missing.join(" "));
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    // QEMU's packages must be of one version, or they exclude one another.
    let policy = read(Command::new("apt-cache").args(["policy", "qemu-system-x86"]))?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    let mut packages: Vec<String> = missing.iter().map(|package| (*package).to_owned()).collect();
    if let Some(version) = candidate
        && packages.iter().any(|package| package.starts_with("qemu-"))
    {
        packages.retain(|package| !package.starts_with("qemu-"));
        packages.push(format!("qemu-system-x86={version}"));
        packages.push(format!("qemu-utils={version}"));
    }
    run(Command::new("apt-get")
        .args(["install", "-y", "-qq", "--no-install-recommends", "--allow-downgrades"])
        .args(&packages)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The test guest, built if need be.
pub(crate) fn guest() -> Result<std::path::PathBuf> {
    let image = root().join(GUEST_IMAGE);
    if let Err(first) = guest_image::build(&image) {
        if !is_root()? {
            return Err(first);
        }
        // Package lists that are missing, or older than what the archive has.
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        guest_image::build(&image)?;
    }
    Ok(image)
}

/// The command that builds and lays out fuzz targets, if need be.
pub(crate) fn cargo_fuzz() -> Result<()> {
    cargo_command("fuzz")
}

/// The command that makes and judges mutants, if need be.
pub(crate) fn cargo_mutants() -> Result<()> {
    cargo_command("mutants")
}

/// The file system exerciser, if need be.
pub(crate) fn fsx() -> Result<()> {
    if is_there("fsx") {
        return Ok(());
    }
    println!("installing fsx");
    run(cargo().args(["install", "--quiet", "--locked", "fsx@0.3.2"]))
}

fn cargo_command(name: &str) -> Result<()> {
    if read(cargo().args([name, "--version"])).is_ok() {
        return Ok(());
    }
    println!("installing cargo-{name}");
    run(cargo().args(["install", "--quiet", "--locked", &format!("cargo-{name}")]))
}

fn is_root() -> Result<bool> {
    Ok(read(Command::new("id").arg("-u"))?.trim() == "0")
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where some lie that only root has on its path.
    let system = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|folder| folder.join(program).is_file())
}
