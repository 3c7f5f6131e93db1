//! The site's transfer proxies, and which of them moves the files of a host.

use std::sync::Arc;

use certs::Identity;
use model::{Bytes, HostName, MigrationId};
use tokio::sync::mpsc;
use transfer_proxy::{
    Connection, End, Event, PATIENCE, Progress, Proxy, RemoteConfig, RemoteProxy, TransferProxy,
};

use crate::config::ProxyConfig;

/// Every proxy of the site. Clones are the same.
///
/// A host's proxy follows from the configuration alone. Its address is told to other sites before
/// a transfer starts, and a transfer outlives the node's process: a choice by load would send
/// those who come later to a proxy that knows nothing of them.
#[derive(Clone)]
pub(crate) struct Proxies(Arc<All>);

struct All {
    here: Proxy,
    remote: Vec<Remote>,
}

struct Remote {
    config: ProxyConfig,
    proxy: RemoteProxy,
}

impl Proxies {
    /// The proxy of this process, and those that are configured, whose connections the caller
    /// lets run once every open order was given.
    pub(crate) fn new(
        here: Proxy,
        configured: &[ProxyConfig],
        identity: &Arc<Identity>,
        events: &mpsc::Sender<Event>,
    ) -> (Self, Vec<Connection>) {
        let make = |config: &ProxyConfig| {
            let remote = RemoteConfig {
                name: config.name.clone(),
                control: config.control,
                uri: config.data.clone(),
                key: config.key,
                patience: PATIENCE,
            };
            let (proxy, connection) = RemoteProxy::new(remote, identity.clone(), events.clone());
            (Remote { config: config.clone(), proxy }, connection)
        };
        let (remote, connections) = configured.iter().map(make).unzip();
        (Self(Arc::new(All { here, remote })), connections)
    }

    /// The proxy that moves the files of a host.
    pub(crate) fn of(&self, host: &HostName) -> &dyn TransferProxy {
        let configs = self.0.remote.iter().map(|remote| &remote.config);
        match chosen(configs, host) {
            Some(at) => &self.0.remote[at].proxy,
            None => &self.0.here,
        }
    }

    /// Whether the files of both hosts are moved by the same proxy, which reaches all of them.
    pub(crate) fn share_one(&self, one: &HostName, other: &HostName) -> bool {
        let configs = || self.0.remote.iter().map(|remote| &remote.config);
        chosen(configs(), one) == chosen(configs(), other)
    }

    /// How far a transfer is, wherever it is: bytes done and in all.
    pub(crate) fn progress(&self, migration: MigrationId) -> Option<Progress> {
        let of = |end| self.progress_of(migration, end);
        of(End::Target).or_else(|| of(End::Source))
    }

    /// What has crossed the network for an end of a transfer, as far as its proxy has said.
    pub(crate) fn wire(&self, migration: MigrationId, end: End) -> Option<Bytes> {
        self.progress_of(migration, end).map(|now| now.wire)
    }

    /// How far one end of a transfer is.
    pub(crate) fn progress_of(&self, migration: MigrationId, end: End) -> Option<Progress> {
        let remote = self.0.remote.iter().map(|remote| &remote.proxy as &dyn TransferProxy);
        let mut all = remote.chain([&self.0.here as &dyn TransferProxy]);
        all.find_map(|proxy| proxy.progress(migration, end))
    }

    /// The proxies in processes of their own that there is no connection to now, by name.
    pub(crate) fn unconnected(&self) -> Vec<&str> {
        let away = self.0.remote.iter().filter(|remote| !remote.proxy.is_connected());
        away.map(|remote| remote.config.name.as_str()).collect()
    }
}

/// The place of the proxy for a host: one that names it, else one that reaches every host, else
/// none. Hosts spread evenly over several, and stay where they are when others come and go
/// (rendezvous hashing).
fn chosen<'a>(
    configs: impl Iterator<Item = &'a ProxyConfig> + Clone,
    host: &HostName,
) -> Option<usize> {
    let weight = |config: &ProxyConfig| {
        *blake3::Hasher::new()
            .update(config.name.as_bytes())
            .update(b"\0")
            .update(host.as_str().as_bytes())
            .finalize()
            .as_bytes()
    };
    let best = |suits: &dyn Fn(&ProxyConfig) -> bool| {
        let suitable = configs.clone().enumerate().filter(|(_, config)| suits(config));
        suitable.max_by_key(|(_, config)| weight(config)).map(|(at, _)| at)
    };
    best(&|config| config.hosts.as_ref().is_some_and(|hosts| hosts.contains(host)))
        .or_else(|| best(&|config| config.hosts.is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(name: &str, hosts: Option<&[&str]>) -> ProxyConfig {
        ProxyConfig {
            name: name.to_owned(),
            control: "192.0.2.1:7421".parse().unwrap(),
            data: "sojourn://192.0.2.1:7420".parse().unwrap(),
            key: model::SiteKey([1; 32]),
            hosts: hosts.map(|hosts| hosts.iter().map(|host| host.parse().unwrap()).collect()),
        }
    }

    fn name_for(proxies: &[ProxyConfig], host: &str) -> Option<String> {
        chosen(proxies.iter(), &host.parse().unwrap()).map(|at| proxies[at].name.clone())
    }

    #[test]
    fn the_proxy_that_names_a_host_comes_before_one_that_reaches_all_and_that_before_none() {
        let named = proxy("named", Some(&["one"]));
        assert_eq!(name_for(&[], "one"), None);
        assert_eq!(name_for(std::slice::from_ref(&named), "two"), None);
        let both = [proxy("all", None), named];
        assert_eq!(name_for(&both, "one").as_deref(), Some("named"));
        assert_eq!(name_for(&both, "two").as_deref(), Some("all"));
        assert_eq!(name_for(&both, protocol::LIBRARY).as_deref(), Some("all"));
    }

    #[test]
    fn hosts_spread_over_proxies_and_stay_when_the_order_changes_or_another_one_goes() {
        let three = ["a", "b", "c"].map(|name| proxy(name, None));
        let turned = [three[2].clone(), three[0].clone(), three[1].clone()];
        let mut hosts_of = std::collections::BTreeMap::<String, u32>::new();
        for host in (0..90).map(|number| format!("host-{number}")) {
            let name = name_for(&three, &host).unwrap();
            assert_eq!(name_for(&turned, &host).as_ref(), Some(&name));
            if name != "c" {
                assert_eq!(name_for(&three[..2], &host).as_ref(), Some(&name));
            }
            *hosts_of.entry(name).or_default() += 1;
        }
        assert!(hosts_of.len() == 3 && hosts_of.values().all(|hosts| *hosts > 15), "{hosts_of:?}");
    }
}
