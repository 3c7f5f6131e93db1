//! A network of its own for a federation: each site in a network namespace, all joined by a bridge
//! in one more, which can be cut.
//!
//! The namespaces have no names and go with this process and the site's ([`Space`]), so nothing of
//! them can be left behind.
//! A cut is a rule of the bridge (nftables): packets vanish between the sites, silently for both.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use testbed::Space;

/// Which packets of a site vanish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Those to it and those from it.
    Both,
    /// Those to it: it is heard and hears nothing.
    To,
    /// Those from it: it hears and is not heard.
    From,
}

/// What of a site's traffic vanishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// What nodes say to nodes: TCP.
    Control,
    /// What proxies say to proxies over QUIC: UDP.
    Data,
    /// Everything.
    All,
}

/// A cut between a site and all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The site.
    pub site: &'static str,
    /// Which direction.
    pub way: Way,
    /// Which port.
    pub traffic: Traffic,
}

/// The namespaces and what joins them.
pub struct Network {
    bridge: Space,
    sites: Vec<(String, Space)>,
}

impl Network {
    /// Makes one for sites of these names; the error says what the machine lacks.
    pub fn new(names: &[&str]) -> Result<Self, String> {
        let bridge = Space::new()?;
        bridge.run(&["ip", "link", "add", "name", "bridge", "type", "bridge"])?;
        bridge.run(&["ip", "link", "set", "dev", "bridge", "up"])?;
        bridge.run(&["nft", "add table bridge cuts"])?;
        let chain = "{ type filter hook forward priority 0; }";
        bridge.run(&["nft", &format!("add chain bridge cuts way {chain}")])?;
        let mut network = Self { bridge, sites: Vec::new() };
        for name in names {
            network.add(name)?;
        }
        Ok(network)
    }

    fn add(&mut self, name: &str) -> Result<(), String> {
        let space = Space::new()?;
        let holder = space.number().to_string();
        let far = ["type", "veth", "peer", "name", "eth0", "netns", &holder];
        self.bridge.run(&[&["ip", "link", "add", "name", name], &far[..]].concat())?;
        self.bridge.run(&["ip", "link", "set", "dev", name, "master", "bridge", "up"])?;
        let address = format!("{}/24", address(self.sites.len()));
        space.run(&["ip", "address", "add", &address, "dev", "eth0"])?;
        space.run(&["ip", "link", "set", "dev", "eth0", "up"])?;
        space.run(&["ip", "link", "set", "dev", "lo", "up"])?;
        self.sites.push((name.to_owned(), space));
        Ok(())
    }

    /// A site's namespace, as a file that can be entered, and its address there.
    pub(super) fn place(&self, site: &str) -> (PathBuf, IpAddr) {
        let at = self.sites.iter().position(|(name, _)| name == site);
        let at = at.expect("the network was made for this site");
        (self.sites[at].1.file(), address(at))
    }

    /// Makes packets vanish, until [`Network::heal`].
    pub fn cut(&self, cut: Cut) {
        let traffic = match cut.traffic {
            Traffic::Control => "meta l4proto tcp ",
            Traffic::Data => "meta l4proto udp ",
            Traffic::All => "",
        };
        let ways: &[&str] = match cut.way {
            Way::Both => &["iifname", "oifname"],
            Way::To => &["oifname"],
            Way::From => &["iifname"],
        };
        for way in ways {
            let site = cut.site;
            let rule = format!("add rule bridge cuts way {way} {site} {traffic}counter drop");
            self.bridge.run(&["nft", &rule]).expect("the bridge took its table and takes a rule");
        }
    }

    /// Ends every cut, and tells how many packets have vanished.
    pub fn heal(&self) -> u64 {
        let list = ["nft", "list", "chain", "bridge", "cuts", "way"];
        let listed = self.bridge.run(&list).expect("the bridge has its table");
        let counts = listed.split("packets ").skip(1);
        let counts = counts.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        let flush = "flush chain bridge cuts way";
        self.bridge.run(&["nft", flush]).expect("the bridge has its table");
        counts.sum()
    }
}

fn address(at: usize) -> IpAddr {
    let last = u8::try_from(at + 1).expect("a federation has a few sites");
    Ipv4Addr::new(10, 0, 0, last).into()
}
