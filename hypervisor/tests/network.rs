//! A guest's card on a bridge of its host, in a network namespace of the test's own.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hypervisor::{Error, Hypervisor, Instance, Launch, Qemu, QemuConfig};
use model::vm::{Disk, Nic, Restrictions};
use model::{Bytes, Descriptor, Epoch, FileId, Resources, VmId};
use testbed::Space;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// For a guest to boot, also where it is emulated on a machine that has much to do.
const PATIENCE: Duration = Duration::from_secs(180);
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
/// The address of the link that a card with this MAC address gets (RFC 4291, appendix A).
const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0x00ff, 0xfe01, 0x0203);

fn guest_image() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest/disk.raw")
}

/// Why the test cannot be run here, if it cannot.
fn missing() -> Option<String> {
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
    let image = guest_image();
    if let Err(why) = qemu {
        Some(format!("no qemu-system-x86_64: {why}"))
    } else if !image.exists() {
        Some(format!("no guest at {}, run: cargo xtask guest-image", image.display()))
    } else {
        Space::new().err()
    }
}

fn config(folder: &Path, host: &str, bridge: Option<&str>) -> QemuConfig {
    let networks = bridge.map(|bridge| ("lan".to_owned(), bridge.to_owned()));
    QemuConfig { networks: BTreeMap::from_iter(networks), ..QemuConfig::new(folder.join(host)) }
}

/// The number of a device of this thread's namespace, from the kernel's list of addresses.
fn number_of(device: &str) -> Option<u32> {
    let table = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| words.last() == Some(&device))?;
    u32::from_str_radix(line[1], 16).ok()
}

/// Whether the guest says something to somebody who knocks at the bridge.
async fn is_reached() -> bool {
    let Some(number) = number_of("br0") else { return false };
    let door = SocketAddrV6::new(ADDRESS, 80, 0, number);
    match timeout(Duration::from_secs(1), TcpStream::connect(door)).await {
        Ok(Ok(_)) => true,
        // It has no server, and says so.
        Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

async fn until_reached() {
    let until = Instant::now() + PATIENCE;
    while !is_reached().await {
        assert!(Instant::now() < until, "the guest cannot be reached");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Waits for one more line of the guest's.
async fn until_it_goes_on(host: &Qemu, instance: Instance) {
    let lines = || {
        let said = fs::read_to_string(host.console(instance)).unwrap_or_default();
        said.matches("sojourn-guest counter=").count()
    };
    let (before, until) = (lines(), Instant::now() + PATIENCE);
    while lines() == before {
        assert!(Instant::now() < until, "the guest does not go on");
        sleep(Duration::from_millis(100)).await;
    }
}

/// The TAP devices of this thread's namespace.
fn devices() -> usize {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    table.lines().filter(|line| line.trim_start().starts_with("sojourn")).count()
}

async fn stays(folder: &Path) {
    let ip = |words: &[&str]| assert!(Command::new("ip").args(words).status().unwrap().success());
    ip(&["link", "add", "br0", "type", "bridge"]);
    ip(&["link", "set", "br0", "up"]);
    let disk = folder.join(FileId::disk(0).file_name());
    fs::copy(guest_image(), &disk).unwrap();
    let bridged = Qemu::new(config(folder, "bridged", Some("br0"))).unwrap();
    let launch = Launch {
        instance: Instance { vm: VmId([0x5a; 16]), epoch: Epoch(3) },
        descriptor: Descriptor {
            name: "web".parse().unwrap(),
            resources: Resources { cpus: 1, memory: Bytes::mib(128) },
            disks: vec![Disk {
                file: FileId::disk(0),
                capacity: Bytes(fs::metadata(&disk).unwrap().len()),
            }],
            nics: vec![
                Nic { network: "lan".to_owned(), mac: MAC },
                Nic { network: "elsewhere".to_owned(), mac: [0x52, 0x54, 0, 1, 2, 4] },
            ],
            restrictions: Restrictions::default(),
            monitoring: Default::default(),
        },
        folder: folder.to_owned(),
        state: None,
        profile: bridged.profile().await.unwrap(),
    };
    let (instance, saved) = (launch.instance, folder.join(FileId::STATE.file_name()));
    let from_state = Launch { state: Some(saved.clone()), ..launch.clone() };

    // A bridge that is not there is told, and nothing is left of the try.
    let without = Qemu::new(config(folder, "without", Some("br9"))).unwrap();
    let error = without.launch(&launch).await.unwrap_err();
    assert!(matches!(&error, Error::Network { bridge, .. } if bridge == "br9"), "{error}");
    assert_eq!((without.state(instance).await.unwrap(), devices()), (None, 0));

    bridged.launch(&launch).await.unwrap();
    assert_eq!(devices(), 1, "the other card leads nowhere");
    bridged.resume(instance).await.unwrap();
    until_reached().await;
    let first = bridged.measure(instance).await.unwrap().unwrap().network.expect("it is counted");
    assert!(is_reached().await);
    let used = bridged.hibernate(instance, &saved).await.unwrap().unwrap().network.unwrap();
    for (before, after) in [(first.received, used.received), (first.sent, used.sent)] {
        assert!(before.packets > 0 && after.packets > before.packets, "{first:?}, {used:?}");
        assert!(after.bytes > before.bytes, "{first:?}, {used:?}");
    }
    assert_eq!(devices(), 0, "the device has gone with its process");

    // It goes on where no network of its is known, and nothing is counted that nobody gets.
    let nowhere = Qemu::new(config(folder, "nowhere", None)).unwrap();
    nowhere.launch(&from_state).await.unwrap();
    nowhere.resume(instance).await.unwrap();
    until_it_goes_on(&nowhere, instance).await;
    assert_eq!(nowhere.measure(instance).await.unwrap().unwrap().network, None);
    assert!(!is_reached().await);
    nowhere.hibernate(instance, &saved).await.unwrap();

    // And is reached again where it is, also by who comes after a restart of the node.
    bridged.launch(&from_state).await.unwrap();
    bridged.resume(instance).await.unwrap();
    until_reached().await;
    let after = Qemu::new(config(folder, "bridged", Some("br0"))).unwrap();
    let anew = after.measure(instance).await.unwrap().unwrap().network.unwrap();
    assert!(anew.sent.packets > 0, "{anew:?}");
    after.kill(instance).await.unwrap();
    assert_eq!(devices(), 0);
}

#[test]
fn a_guest_is_reached_through_its_hosts_bridge_also_after_a_stay_where_its_card_leads_nowhere() {
    if let Some(why) = missing() {
        let required = std::env::var("SOJOURN_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| ["qemu", "netns"].contains(&name)), "{why}");
        println!("skipped: {why}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Guests run as another user, who must come through.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let space = Space::new().unwrap();
    let inside = space.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(stays(folder.path()));
    });
    inside.unwrap();
}
