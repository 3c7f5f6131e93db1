//! What an operator should know about this machine before the node needs it, and what a peer would
//! meet before there is one.

mod reach;

use std::fs::OpenOptions;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;

use certs::Identity;
use model::ProxyUri;

use crate::config::{Config, Driver};
use crate::folder::Folder;
use crate::hands::report;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Good,
    /// It works, but the operator should know.
    Note,
    /// The site cannot do what it should.
    Bad,
}

/// One check.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// How it came out.
    pub health: Health,
    /// What was found, and what to do about it.
    pub text: String,
}

/// Looks at the machine, and at the site in `folder` if there is one.
pub async fn examine(folder: &Folder) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |what, health, text: String| findings.push(Finding { what, health, text });
    let config = match folder.config() {
        Ok(config) => {
            add("site folder", Health::Good, folder.path().display().to_string());
            Some(config)
        }
        Err(error) => {
            add("site folder", Health::Bad, report(&error));
            None
        }
    };
    if let Some(config) = &config {
        let running = folder.lock().is_err();
        if running {
            add("node", Health::Good, "a node runs on this folder".to_owned());
        } else {
            let text = "no node runs on this folder; `sojourn site run` starts it";
            add("node", Health::Note, text.to_owned());
            let (tcp, udp) = (config.control.listen, config.proxy.listen);
            match TcpListener::bind(tcp) {
                Ok(_) => add("control port", Health::Good, format!("{tcp} TCP is free")),
                Err(error) => add("control port", Health::Bad, format!("{tcp} TCP: {error}")),
            }
            match UdpSocket::bind(udp) {
                Ok(_) => add("proxy port", Health::Good, format!("{udp} UDP is free")),
                Err(error) => add("proxy port", Health::Bad, format!("{udp} UDP: {error}")),
            }
            // The same number as the control port is one port for both.
            if udp.port() != tcp.port()
                && let Err(error) = TcpListener::bind(udp)
            {
                add("proxy port", Health::Bad, format!("{udp} TCP: {error}"));
            }
        }
        if let Some(metrics) = &config.metrics {
            let at = metrics.listen;
            match TcpListener::bind(at) {
                _ if running => {}
                Err(error) => add("metrics port", Health::Bad, format!("{at} TCP: {error}")),
                Ok(_) if !at.ip().is_loopback() => {
                    let text = "whoever reaches it sees this site's hosts, peers and load";
                    add(
                        "metrics port",
                        Health::Note,
                        format!("{at} TCP is not on loopback: {text}"),
                    );
                }
                Ok(_) => add("metrics port", Health::Good, format!("{at} TCP is free")),
            }
        }
        for (health, text) in reachable(config, folder, running).await {
            add("address", health, text);
        }
        match folder.policies().exists().then(|| policies::Engine::load(&folder.policies())) {
            Some(Err(error)) => add("policies", Health::Bad, report(&error)),
            Some(Ok(_)) => add("policies", Health::Good, "sound".to_owned()),
            None => add("policies", Health::Good, "the defaults".to_owned()),
        }
        free_space(folder, &mut add);
    }
    let simulated = config.as_ref().is_some_and(|c| c.hypervisor.driver == Driver::Simulated);
    if simulated {
        let text = "simulated: no real guest runs at this site".to_owned();
        add("hypervisor", Health::Note, text);
    } else {
        let settings = config.map(|config| config.hypervisor).unwrap_or_default();
        for (network, bridge) in &settings.networks {
            let (health, text) = network_of(network, bridge);
            add("network", health, text);
        }
        let (what, health, text) = qemu(settings).await;
        add(what, health, text);
    }
    let (health, text) = clock();
    add("clock", health, text);
    let (health, text) = fuse();
    add("FUSE", health, text);
    // The node takes what it may have.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    match files {
        Some(files) if files < 4096 => {
            let text = format!("{files} open files allowed; a busy node wants 4096 (ulimit -Hn)");
            add("open files", Health::Note, text);
        }
        _ => add("open files", Health::Good, "enough are allowed".to_owned()),
    }
    findings
}

/// Whether the addresses that go to peers lead here.
async fn reachable(config: &Config, folder: &Folder, running: bool) -> Vec<(Health, String)> {
    let (control, proxy) = (&config.control, &config.proxy);
    if control.listen.ip().is_unspecified() && control.advertise.is_none() {
        let text = "control.advertise is not set: tickets will name an address that peers cannot \
                    reach; set it in sojourn.toml";
        return vec![(Health::Bad, text.to_owned())];
    }
    let free = |listen| (!running).then_some(listen);
    let address = control.advertise.clone().unwrap_or_else(|| control.listen.to_string());
    let identity = Identity::load(folder.path()).ok();
    let mut found = vec![reach::control(&address, free(control.listen), identity.as_ref()).await];
    let uri = match &proxy.advertise {
        Some(text) => ProxyUri::configured(text).ok(),
        None if proxy.listen.ip().is_unspecified() => {
            let text = "proxy.advertise is not set: proxies of other sites are told an address \
                        that they cannot dial; set it in sojourn.toml";
            found.push((Health::Bad, text.to_owned()));
            None
        }
        None => Some(ProxyUri::at(proxy.listen)),
    };
    match uri {
        Some(uri) if uri.is_dial_out() => {
            let text = "the proxy dials out: a transfer with another such site needs one between";
            found.push((Health::Note, text.to_owned()));
        }
        Some(uri) if uri.carriers().contains(&model::Carrier::Quic) => {
            found.push(reach::proxy(uri.authority(), free(proxy.listen)).await);
        }
        _ => {}
    }
    found
}

/// Whether something keeps the clock: peers take no command of a site whose clock is far off.
fn clock() -> (Health, String) {
    let asked = Command::new("timedatectl").args(["show", "--property=NTPSynchronized"]).output();
    let said = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let limit = model::limit::MAX_CLOCK_SKEW.as_secs();
    match said.unwrap_or_default().trim() {
        "NTPSynchronized=yes" => (Health::Good, "kept by a time service".to_owned()),
        said => {
            let what = match said {
                "NTPSynchronized=no" => "no time service keeps it",
                _ => "it cannot be told whether a time service keeps it",
            };
            (Health::Note, format!("{what}; peers refuse what is off by more than {limit} s"))
        }
    }
}

/// Whether `kpi-fs` can mount here. Guests have it of their own, and need nothing of this.
fn fuse() -> (Health, String) {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let helper =
        ["/usr/bin/fusermount3", "/bin/fusermount3"].iter().any(|at| Path::new(at).exists());
    match device {
        Ok(_) if helper || rustix::process::geteuid().is_root() => {
            (Health::Good, "`kpi-fs mount` works on this machine".to_owned())
        }
        Ok(_) => {
            let text =
                "no fusermount3: only root can use `kpi-fs mount` here (apt-get install fuse3)";
            (Health::Note, text.to_owned())
        }
        Err(error) => (Health::Note, format!("/dev/fuse: {error}; `kpi-fs mount` works in guests")),
    }
}

fn free_space(folder: &Folder, add: &mut impl FnMut(&'static str, Health, String)) {
    match rustix::fs::statvfs(folder.path()) {
        Ok(disk) => {
            let free = model::Bytes(disk.f_bavail * disk.f_frsize);
            let health = if free < model::Bytes::mib(1024) { Health::Note } else { Health::Good };
            add("disk", health, format!("{free} free"));
        }
        Err(error) => add("disk", Health::Bad, error.to_string()),
    }
}

/// Whether cards of a network can be plugged into what it is here.
fn network_of(network: &str, bridge: &str) -> (Health, String) {
    let path = Path::new("/sys/class/net").join(bridge);
    let has_ip = || Command::new("ip").arg("-V").output().is_ok_and(|done| done.status.success());
    let wrong = if !path.exists() {
        format!("is not there: ip link add {bridge} type bridge")
    } else if !path.join("bridge").exists() {
        "is no bridge: name another under hypervisor.networks".to_owned()
    } else if !rustix::process::geteuid().is_root() {
        "takes a node that runs as root".to_owned()
    } else if !has_ip() {
        "takes the program ip: apt-get install iproute2".to_owned()
    } else {
        return (Health::Good, format!("{network} is the bridge {bridge}"));
    };
    let text = format!(
        "{network} is to be {bridge}, which {wrong}; until then no VM with a card of it can start \
         here"
    );
    (Health::Bad, text)
}

async fn qemu(settings: crate::config::Hypervisor) -> (&'static str, Health, String) {
    use hypervisor::{Hypervisor, Qemu, QemuConfig};
    let what = "hypervisor";
    let Ok(runtime) = tempfile::tempdir() else {
        return (what, Health::Bad, "no temporary folder can be made".to_owned());
    };
    let opened = Qemu::new(QemuConfig {
        runtime: runtime.path().to_owned(),
        binary: settings.binary,
        accelerator: settings.accelerator,
        user: settings.user,
        networks: settings.networks,
    });
    let profile = match &opened {
        Ok(qemu) => qemu.profile().await,
        Err(error) => return (what, Health::Bad, report(error)),
    };
    match profile {
        Ok(profile) => {
            let text = format!(
                "QEMU {}, {}, CPU {}, {}",
                profile.version, profile.machine, profile.cpu, profile.accelerator
            );
            if profile.accelerator == "kvm" {
                (what, Health::Good, text)
            } else {
                (what, Health::Note, format!("{text}: KVM runs no guest here, guests will be slow"))
            }
        }
        Err(error) => (what, Health::Bad, report(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_is_no_bridge_is_told_with_what_to_do() {
        for (device, word) in
            [("lo", "is no bridge: name another"), ("sojourn-none", "is not there: ip link add")]
        {
            let (health, text) = network_of("lan", device);
            assert_eq!(health, Health::Bad);
            assert!(text.contains(word), "{text}");
        }
    }
}
