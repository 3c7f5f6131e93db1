//! Where a guest's network cards lead: to a bridge of this machine, or nowhere.
//!
//! ```text
//!   card net0 ── TAP device ── bridge ── whatever the operator has joined to it
//!   card net1 ── hub ── nobody
//! ```
//!
//! A TAP device is made by us, joined to its bridge, and handed over to the guest's process open.
//! It is gone when that process is: nothing has to be tidied up, however the process ends, and QEMU
//! needs no right of its own.
//!
//! No card has offloads, which a saved state would depend on: a state that was saved where a card led
//! somewhere is loaded where it leads nowhere, and the other way round.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use model::Bytes;
use model::vm::Nic;
use tokio::process::Command;
use tokio::time::timeout;
use tun_rs::{DeviceBuilder, Layer};

use super::last_words;
use crate::measured::{NetworkCounters, PacketCounters};
use crate::{Error, files};

/// The names of our TAP devices; the kernel puts a number there.
const NAMES: &str = "sojourn%d";
/// For a device to be joined to its bridge.
const JOIN_LIMIT: Duration = Duration::from_secs(30);

/// Where a card leads.
#[derive(Debug)]
pub(crate) enum Way {
    /// To a bridge, by a TAP device that is open.
    Bridge(OwnedFd),
    /// Nowhere.
    Nowhere,
}

/// Makes the ways of a guest's cards: to the bridge that its network is called by here.
pub(crate) async fn ways(
    nics: &[Nic],
    bridges: &BTreeMap<String, String>,
) -> Result<Vec<Way>, Error> {
    let mut ways = Vec::new();
    for nic in nics {
        ways.push(match bridges.get(&nic.network) {
            None => Way::Nowhere,
            Some(bridge) => Way::Bridge(plug(bridge).await.map_err(|why| Error::Network {
                network: nic.network.clone(),
                bridge: bridge.clone(),
                why,
            })?),
        });
    }
    Ok(ways)
}

/// A new TAP device on a bridge; the error says what to do.
async fn plug(bridge: &str) -> Result<OwnedFd, String> {
    let device = DeviceBuilder::new().name(NAMES).layer(Layer::L2).inherit_enable_state();
    let device = device.offload(false).packet_information(false).build_sync();
    let device = device.map_err(|why| {
        format!(
            "no TAP device can be made: {why}; it takes a node that runs as root, and /dev/net/tun"
        )
    })?;
    let name = device.name().map_err(|why| why.to_string())?;
    // In one step: outside its bridge, this machine would speak on it.
    let mut join = Command::new("ip");
    join.args(["link", "set", &name, "master", bridge, "up"]).stdin(Stdio::null());
    let joined = timeout(JOIN_LIMIT, join.kill_on_drop(true).output()).await;
    let joined = joined.map_err(|_| format!("ip took longer than {JOIN_LIMIT:?}"))?;
    let joined = joined.map_err(|why| format!("ip cannot be run ({why}): install iproute2"))?;
    if !joined.status.success() {
        let said = last_words(&joined.stderr);
        return Err(format!(
            "ip says: {said}; make the bridge (ip link add {bridge} type bridge), or name another \
             under hypervisor.networks"
        ));
    }
    device.as_fd().try_clone_to_owned().map_err(|why| why.to_string())
}

/// What went through the TAP devices that a process has open, as the guest sees it; none when it
/// has none.
pub(crate) fn counted(process: &Path) -> Result<Option<NetworkCounters>, Error> {
    let folder = process.join("fdinfo");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))?.flatten() {
        // A descriptor may be closed by now.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        names.extend(device_of(&text).map(str::to_owned));
    }
    if names.is_empty() {
        return Ok(None);
    }
    let all = files::read(&process.join("net/dev"), |table| {
        let mut all = NetworkCounters::default();
        for name in &names {
            let [received, sent] = counters_of(table, name)?;
            // What the device got, the guest has sent.
            all.received = all.received.plus(sent);
            all.sent = all.sent.plus(received);
        }
        Some(all)
    });
    all.map(Some)
}

/// The device of a descriptor, from the `fdinfo` of one that is open on `/dev/net/tun`.
fn device_of(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("iff:")).map(str::trim)
}

/// What a device has received and sent, from the kernel's `net/dev`: bytes and packets, and the
/// same again after six other numbers.
fn counters_of(table: &str, device: &str) -> Option<[PacketCounters; 2]> {
    let mut lines = table.lines().filter_map(|line| line.split_once(':'));
    let (_, numbers) = lines.find(|(name, _)| name.trim() == device)?;
    let numbers: Vec<u64> =
        numbers.split_whitespace().map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let at = |first: usize| {
        let (bytes, packets) = (*numbers.get(first)?, *numbers.get(first + 1)?);
        Some(PacketCounters { bytes: Bytes(bytes), packets })
    };
    Some([at(0)?, at(8)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_devices_is_read_and_nothing_else() {
        let info = "pos:\t0\nflags:\t0104002\nmnt_id:\t15\nino:\t10\niff:\tsojourn7\n";
        assert_eq!(device_of(info), Some("sojourn7"));
        assert_eq!(device_of("pos:\t0\nflags:\t02\n"), None);
        let table = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:       0       0    0    0    0     0          0         0        0       0    0    0
sojourn7:  1500       3    0    0    0     0          0         0    90000      61    0    0
  half:       1       2    0    0    0     0          0         0        3
   odd:       1       x    0    0    0     0          0         0        3       4    0    0
";
        let packets = |bytes, packets| PacketCounters { bytes: Bytes(bytes), packets };
        let both = [packets(1500, 3), packets(90_000, 61)];
        assert_eq!(counters_of(table, "sojourn7"), Some(both));
        for other in ["sojourn", "half", "odd", ""] {
            assert_eq!(counters_of(table, other), None, "{other}");
        }
    }
}
