//! Whether each part of the node answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::driver::Driver;
use crate::hands::Hands;
use crate::monitor::Monitor;
use crate::proxies::Proxies;

/// How long each part may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What is looked at.
pub(crate) struct Health {
    pub(crate) driver: Driver,
    pub(crate) proxies: Proxies,
    pub(crate) hands: Hands,
    pub(crate) monitor: Monitor,
    /// Whether peers are let in.
    pub(crate) peers_door: Arc<AtomicBool>,
    /// Becomes true when the node is to stop.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    name: &'static str,
    /// What is wrong, for this site's operator.
    trouble: Option<String>,
}

impl Health {
    /// Looks at everything.
    pub(super) async fn examine(&self) -> Vec<Check> {
        let check = |name, trouble| Check { name, trouble };
        let (journal, hosts, monitoring) =
            tokio::join!(self.journal(), self.hosts(), self.monitoring());
        let away = self.proxies.unconnected();
        let proxy = (!away.is_empty()).then(|| format!("no connection to {}", away.join(", ")));
        let peers = !self.peers_door.load(Ordering::Relaxed);
        let shutdown = *self.stopping.borrow();
        vec![
            check("journal", journal),
            check("proxy", proxy),
            check("hosts", hosts),
            check("monitoring", monitoring),
            check("peers", peers.then(|| "the door for peers has closed; see the log".to_owned())),
            check("shutdown", shutdown.then(|| "the node is shutting down".to_owned())),
        ]
    }

    /// Whoever is let into the driver comes after a commit.
    async fn journal(&self) -> Option<String> {
        match tokio::time::timeout(ANSWER_LIMIT, self.driver.visit(|_| ())).await {
            Ok(Ok(())) => None,
            Ok(Err(ended)) => Some(ended.to_string()),
            Err(_) => Some(late("the driver has not answered")),
        }
    }

    async fn hosts(&self) -> Option<String> {
        match tokio::time::timeout(ANSWER_LIMIT, self.hands.trouble_of_hosts()).await {
            Ok(trouble) => (!trouble.is_empty()).then(|| trouble.join("; ")),
            Err(_) => Some(late("a hypervisor has not answered")),
        }
    }

    async fn monitoring(&self) -> Option<String> {
        match tokio::time::timeout(ANSWER_LIMIT, self.monitor.answers()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(late("the monitoring database has not answered")),
        }
    }
}

fn late(what: &str) -> String {
    format!("{what} in {ANSWER_LIMIT:?}")
}

/// Whether all is well, and what is said of it: with `verbose` a line for each.
pub(super) fn report(checks: &[Check], verbose: bool) -> (bool, String) {
    let is_ready = checks.iter().all(|check| check.trouble.is_none());
    let verdict = if is_ready { "ready\n" } else { "not ready\n" };
    if !verbose {
        return (is_ready, verdict.to_owned());
    }
    let line = |check: &Check| match &check.trouble {
        None => format!("[+] {} ok\n", check.name),
        Some(trouble) => format!("[-] {}: {trouble}\n", check.name),
    };
    (is_ready, checks.iter().map(line).collect::<String>() + verdict)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::{self, Config};
    use crate::folder::Folder;
    use crate::metrics::{CountedPolicy, Metrics};

    /// A node whose driver has ended.
    async fn ended(folder: &std::path::Path, stopping: watch::Receiver<bool>) -> Health {
        let config = Config {
            name: "a".parse().unwrap(),
            control: local(),
            proxy: local(),
            hypervisor: config::Hypervisor {
                driver: config::Driver::Simulated,
                ..config::Hypervisor::default()
            },
            offer: config::OfferConfig::default(),
            time: config::TimeConfig::default(),
            proxies: vec![],
            transfer: config::TransferConfig::default(),
            metrics: None,
        };
        let folder = Folder::at(folder.join("a"));
        let identity = Arc::new(folder.init(&config).unwrap());
        let (transfers, _) = mpsc::channel(1);
        let proxy = transfer_proxy::Config {
            listen: local().listen,
            shares_tcp: false,
            advertise: None,
            limits: transfer_proxy::Limits::default(),
            reset: transfer_proxy::ResetKey::of(&identity),
        };
        let proxy = transfer_proxy::Proxy::start(proxy, transfers.clone()).await.unwrap();
        let (proxies, _) = Proxies::new(proxy, &[], &identity, &transfers);
        let (driver, _) = Driver::channel(Metrics::default());
        let policy = CountedPolicy::new(policies::Engine::defaults(), Metrics::default());
        let monitor = Monitor::open(&folder, &driver, Arc::new(policy)).unwrap();
        let hands = Hands::new(folder, config, proxies.clone(), driver.clone(), monitor.clone());
        let peers_door = Arc::new(AtomicBool::new(true));
        Health { driver, proxies, hands, monitor, peers_door, stopping }
    }

    fn local() -> config::Endpoint {
        config::Endpoint { listen: "127.0.0.1:0".parse().unwrap(), advertise: None }
    }

    #[tokio::test]
    async fn a_closed_door_an_ended_driver_and_a_shutdown_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (stop, stopping) = watch::channel(false);
        let health = ended(folder.path(), stopping).await;
        let wrong = async |health: &Health| {
            let checks = health.examine().await.into_iter();
            let wrong = checks.filter(|check| check.trouble.is_some());
            wrong.map(|check| check.name).collect::<Vec<_>>()
        };
        assert_eq!(wrong(&health).await, ["journal"]);
        health.peers_door.store(false, Ordering::Relaxed);
        assert_eq!(wrong(&health).await, ["journal", "peers"]);
        stop.send(true).unwrap();
        assert_eq!(wrong(&health).await, ["journal", "peers", "shutdown"]);
    }

    #[test]
    fn one_thing_that_is_wrong_makes_the_node_not_ready_and_is_named_to_who_asks_for_more() {
        let good = Check { name: "journal", trouble: None };
        let bad = Check { name: "shutdown", trouble: Some("it ends".to_owned()) };
        let checks = [good.clone(), bad];
        assert_eq!(report(&checks, false), (false, "not ready\n".to_owned()));
        let said = "[+] journal ok\n[-] shutdown: it ends\nnot ready\n";
        assert_eq!(report(&checks, true), (false, said.to_owned()));
        assert_eq!(report(&[good], false), (true, "ready\n".to_owned()));
    }
}
