//! `sojourn.toml`: what an operator sets, and whence each value came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::monitoring::Measure;
use model::{Bytes, Carrier, HostName, PeerName, ProxyUri, SiteKey};
use serde::{Deserialize, Serialize};

/// The file's name in the site's folder.
pub const FILE: &str = "sojourn.toml";

/// What an operator sets. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the site calls itself towards its peers.
    pub name: PeerName,
    /// Where peers reach the control port, TCP.
    #[serde(default = "default_control")]
    pub control: Endpoint,
    /// Where proxies of other sites reach this one's, UDP and TCP. The TCP port may be that of
    /// `control`.
    #[serde(default = "default_proxy")]
    pub proxy: Endpoint,
    /// What runs the guests.
    #[serde(default)]
    pub hypervisor: Hypervisor,
    /// What the site asks and tells when it makes an offer.
    #[serde(default)]
    pub offer: OfferConfig,
    /// How long things may take.
    #[serde(default)]
    pub time: TimeConfig,
    /// Transfer proxies in processes of their own; the node's own one serves all other hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxies: Vec<ProxyConfig>,
    /// What transfers may take of the site's links.
    #[serde(default, skip_serializing_if = "TransferConfig::is_default")]
    pub transfer: TransferConfig,
    /// Metrics and health, over HTTP; without it nothing of them is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsConfig>,
}

/// Metrics (`/metrics`) and health (`/livez`, `/readyz`), over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// Where to listen. Whoever reaches it sees the site's inside, such as its hosts and peers,
    /// without a password: keep it on loopback, or behind something that asks for one.
    pub listen: SocketAddr,
    /// Measures whose newest values are shown of each VM that this site is the primary of, as in
    /// the VM's monitoring section: `cpu_share`, `web.current_users`. What of them is told sealed
    /// is shown in the open.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "measures")]
    pub kpis: Vec<Measure>,
    /// How many series these measures may make, at most [`MAX_KPI_SERIES`]; further ones are
    /// counted and not shown.
    #[serde(default = "default_max_series")]
    pub max_series: usize,
}

/// The most that an operator may allow for `metrics.max_series`.
pub const MAX_KPI_SERIES: usize = 100_000;

fn default_max_series() -> usize {
    1000
}

/// Measures by their names.
mod measures {
    use model::monitoring::Measure;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(all: &[Measure], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(all.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<Measure>, D::Error> {
        let names = Vec::<String>::deserialize(from)?;
        names.iter().map(|name| name.parse().map_err(de::Error::custom)).collect()
    }
}

/// An address that is listened at, and how others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// How others reach it, if not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
}

fn default_control() -> Endpoint {
    Endpoint { listen: SocketAddr::from(([0, 0, 0, 0], 7420)), advertise: None }
}

fn default_proxy() -> Endpoint {
    Endpoint { listen: SocketAddr::from(([0, 0, 0, 0], 7420)), advertise: None }
}

/// A transfer proxy in a process of its own, as `sojourn proxy init` prints it. It must see the
/// files of its hosts under the same absolute paths as the node. Before it is changed or removed,
/// the transfers of its hosts must have ended: other sites were told its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// What the site calls it.
    pub name: String,
    /// Its control port, TCP, as the node reaches it.
    pub control: SocketAddr,
    /// Its data port, UDP and TCP, as proxies of other sites reach it; the same as in the proxy's
    /// own configuration.
    #[serde(deserialize_with = "model::configured_uri")]
    pub data: ProxyUri,
    /// Its key.
    pub key: SiteKey,
    /// The hosts whose files it reaches, and `library` for those of VMs that are only stored;
    /// without, every host and the library.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<BTreeSet<HostName>>,
}

/// What transfers may take of the site's links. Rates are bytes a second such as `"50M"`, in each
/// direction; all that are set hold together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransferConfig {
    /// The only carrier that is used, `quic` or `tls`; without it the path decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Carrier>,
    /// Of all transfers of the node's own proxy together.
    #[serde(skip_serializing_if = "Option::is_none", with = "rate")]
    pub rate: Option<Bytes>,
    /// Of all transfers with one peer together.
    #[serde(skip_serializing_if = "Option::is_none", with = "rate")]
    pub peer_rate: Option<Bytes>,
    /// Of one transfer.
    #[serde(skip_serializing_if = "Option::is_none", with = "rate")]
    pub migration_rate: Option<Bytes>,
}

impl TransferConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Rates as operators write them.
mod rate {
    use model::Bytes;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Below this a transfer would rather be lost than slow.
    const LOWEST: Bytes = Bytes(1 << 10);

    pub(super) fn serialize<S: Serializer>(
        rate: &Option<Bytes>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        rate.map(|rate| format!("{}B", rate.0)).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Bytes>, D::Error> {
        let rate: Bytes = String::deserialize(deserializer)?.parse().map_err(D::Error::custom)?;
        if rate < LOWEST {
            return Err(D::Error::custom("a rate is at least 1K bytes a second"));
        }
        Ok(Some(rate))
    }
}

/// What runs the guests of this site's hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hypervisor {
    /// `qemu`, or `simulated` for trying out and for tests: no real guest ever runs there.
    #[serde(default)]
    pub driver: Driver,
    /// QEMU's program.
    #[serde(default = "default_binary")]
    pub binary: PathBuf,
    /// `auto`, `tcg` or `kvm`.
    #[serde(default)]
    pub accelerator: hypervisor::Accelerator,
    /// The user that guests run as when the node runs as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The bridge of this machine that each network is, by the name that VMs' descriptions call it.
    /// A card of any other network leads nowhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, String>,
}

fn default_binary() -> PathBuf {
    "qemu-system-x86_64".into()
}

impl Default for Hypervisor {
    fn default() -> Self {
        Self {
            driver: Driver::default(),
            binary: default_binary(),
            accelerator: hypervisor::Accelerator::Auto,
            user: None,
            networks: BTreeMap::new(),
        }
    }
}

/// The kinds of hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Real guests.
    #[default]
    Qemu,
    /// Files that stand for guests.
    Simulated,
}

/// What the site asks and tells when it makes an offer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OfferConfig {
    /// Country (ISO 3166-1, two capital letters); empty tells none.
    pub country: String,
    /// Price per hour, in thousandths of the contracts' currency.
    pub price_milli: u64,
    /// What is owed for each time that a limit of service is broken, in thousandths.
    pub penalty_milli: u64,
}

/// How long things may take, in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimeConfig {
    /// For peers to answer a Migration request.
    pub request_s: u64,
    /// For which an offer stands.
    pub offer_s: u64,
    /// For a whole migration, before Source and Destination give up by themselves.
    pub migration_s: u64,
    /// For which a Destination that has everything keeps it beyond that, if the Source cannot be
    /// reached.
    pub ready_s: u64,
    /// For which a Source keeps the frozen copy after the receipt.
    pub purge_s: u64,
    /// For a guest to power off before it is ended by force.
    pub stop_grace_s: u64,
}

impl Default for TimeConfig {
    fn default() -> Self {
        Self {
            request_s: 10,
            offer_s: 120,
            migration_s: 24 * 3600,
            ready_s: 7 * 24 * 3600,
            purge_s: 24 * 3600,
            stop_grace_s: 30,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path} is not a legal configuration:\n{reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column, and the nearest known key.
        reason: String,
    },
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|reason| ConfigError::Parse { path: path.to_owned(), reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let message = error.to_string();
            match nearest_key(&message) {
                Some(key) => format!("{message}did you mean `{key}`?"),
                None => message,
            }
        })?;
        if let Some(text) = &config.proxy.advertise
            && ProxyUri::configured(text).is_err()
        {
            return Err(format!(
                "proxy.advertise is ADDRESS:PORT, with tls:// or quic:// before it where only TCP \
                 or only UDP is open, or dial-out where nothing comes in; got {text:?}"
            ));
        }
        if let Some(bridge) = config.hypervisor.networks.values().find(|name| !is_device(name)) {
            return Err(format!(
                "hypervisor.networks names bridges of this machine, as `ip link show type bridge` \
                 does (1 to 15 characters); got {bridge:?}"
            ));
        }
        let country = &config.offer.country;
        if !(country.is_empty()
            || country.len() == 2 && country.bytes().all(|b| b.is_ascii_uppercase()))
        {
            return Err(format!("offer.country is two capital letters or empty, got {country:?}"));
        }
        for (at, proxy) in config.proxies.iter().enumerate() {
            if proxy.name.is_empty() || config.proxies[..at].iter().any(|p| p.name == proxy.name) {
                return Err(format!("each of [[proxies]] has its own name, got {:?}", proxy.name));
            }
        }
        if let Some(metrics) = &config.metrics {
            metrics.check()?;
        }
        Ok(config)
    }

    /// The file's text for a new site.
    pub fn to_toml(&self) -> String {
        let body = toml::to_string_pretty(self).expect("a configuration is plain data");
        format!(
            "# Sojourn site. Unknown keys are errors; `sojourn site show --config` explains.\n{body}"
        )
    }

    /// What the protocol needs of it.
    pub(crate) fn protocol(&self) -> protocol::Config {
        let seconds = Duration::from_secs;
        protocol::Config {
            country: self.offer.country.clone(),
            price_milli: self.offer.price_milli,
            penalty_milli: self.offer.penalty_milli,
            request_limit: seconds(self.time.request_s),
            offer_life: seconds(self.time.offer_s),
            admit_life: seconds(self.time.migration_s),
            ready_life: seconds(self.time.ready_s),
            source_patience: seconds(self.time.migration_s),
            purge_after: seconds(self.time.purge_s),
            ..protocol::Config::default()
        }
    }
}

impl MetricsConfig {
    fn check(&self) -> Result<(), String> {
        if let Some(file) = self.kpis.iter().find(|m| matches!(m, Measure::Encrypted { .. })) {
            return Err(format!("metrics.kpis are numbers, and {file} is a whole file"));
        }
        if !(1..=MAX_KPI_SERIES).contains(&self.max_series) {
            let got = self.max_series;
            return Err(format!("metrics.max_series is 1 to {MAX_KPI_SERIES}, got {got}"));
        }
        Ok(())
    }
}

/// Whether a network device can be called so (Linux: 15 bytes, no slash, no space).
fn is_device(name: &str) -> bool {
    let fits = (1..=15).contains(&name.len()) && !name.starts_with('-');
    fits && name.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != ':')
}

/// The known key that is most like the unknown one in serde's message.
fn nearest_key(message: &str) -> Option<String> {
    let at = message.find("unknown field")?;
    let mut after = message[at..].split('`').skip(1).step_by(2);
    let wrong = after.next()?;
    let known = after.min_by_key(|known| distance(wrong, known))?;
    (distance(wrong, known) <= wrong.len().div_ceil(2)).then(|| known.to_owned())
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_enough_and_everything_else_has_a_default() {
        let config = Config::parse("name = \"alpha\"").unwrap();
        assert_eq!(config.hypervisor.driver, Driver::Qemu);
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_key() {
        let error = Config::parse("name = \"a\"\n[offer]\ncontry = \"SE\"\n").unwrap_err();
        assert!(error.contains("line 3"), "{error}");
        assert!(error.contains("did you mean `country`?"), "{error}");
    }

    #[test]
    fn proxies_are_read_and_written_and_each_has_its_own_name() {
        let key = "ab".repeat(32);
        let proxy = format!(
            "[[proxies]]\nname = \"rack-1\"\ncontrol = \"192.0.2.1:7421\"\n\
             data = \"192.0.2.1:7420\"\nkey = \"{key}\"\nhosts = [\"one\", \"library\"]\n"
        );
        let config = Config::parse(&format!("name = \"alpha\"\n{proxy}")).unwrap();
        assert_eq!(config.proxies[0].key, SiteKey([0xab; 32]));
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
        let error = Config::parse(&format!("name = \"alpha\"\n{proxy}{proxy}")).unwrap_err();
        assert!(error.contains("its own name"), "{error}");
    }

    #[test]
    fn rates_and_the_carrier_of_transfers_are_read_and_written_and_nonsense_is_refused() {
        let text = "name = \"a\"\n[transfer]\ncarrier = \"tls\"\npeer_rate = \"50M\"\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.transfer.carrier, Some(Carrier::Tls));
        assert_eq!(config.transfer.peer_rate, Some(Bytes::mib(50)));
        assert_eq!(config.transfer.rate, None);
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
        for (line, word) in [
            ("carrier = \"tcp\"", "`quic` or `tls`"),
            ("rate = \"fast\"", "a size is"),
            ("rate = \"1\"", "at least"),
            ("rates = \"1M\"", "did you mean `rate`?"),
        ] {
            let text = format!("name = \"a\"\n[transfer]\n{line}\n");
            let error = Config::parse(&text).unwrap_err();
            assert!(error.contains(word) && error.contains("line 3"), "{error}");
        }
    }

    #[test]
    fn networks_are_bridges_that_can_be_called_so() {
        let text =
            |bridge: &str| format!("name = \"a\"\n[hypervisor]\nnetworks = {{ lan = {bridge:?} }}");
        let config = Config::parse(&text("br-lan.7")).unwrap();
        assert_eq!(config.hypervisor.networks["lan"], "br-lan.7");
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
        for wrong in
            ["", "a bridge", "../br0", "-force", "a:b", "brückeübersee", "sixteen-letters-"]
        {
            let error = Config::parse(&text(wrong)).unwrap_err();
            assert!(error.contains("hypervisor.networks names bridges"), "{wrong}: {error}");
        }
    }

    #[test]
    fn metrics_are_off_unless_an_address_is_given_and_are_read_and_written() {
        assert_eq!(Config::parse("name = \"a\"").unwrap().metrics, None);
        let text = "name = \"a\"\n[metrics]\nlisten = \"127.0.0.1:9464\"\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.metrics.as_ref().unwrap().max_series, 1000);
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
        let config =
            Config::parse(&format!("{text}kpis = [\"web.users\", \"cpu_share\"]")).unwrap();
        let names = config.metrics.iter().flat_map(|metrics| &metrics.kpis);
        assert_eq!(names.map(ToString::to_string).collect::<Vec<_>>(), ["web.users", "cpu_share"]);
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
        for (wrong, why) in [
            ("name = \"a\"\n[metrics]\nkpis = []", "missing field `listen`"),
            ("name = \"a\"\n[metrics]\nlisten = \"here\"", "line 3"),
            (&format!("{text}kpis = [\"users\"]"), "a measure is cpu_time"),
            (&format!("{text}kpis = [\"encrypted/a\"]"), "encrypted/a is a whole file"),
            (&format!("{text}max_series = 0"), "1 to 100000, got 0"),
            (&format!("{text}max_serie = 9"), "did you mean `max_series`?"),
        ] {
            let error = Config::parse(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_value_out_of_range_is_refused() {
        assert!(Config::parse("name = \"A b\"").is_err());
        assert!(Config::parse("name = \"a\"\n[offer]\ncountry = \"sweden\"").is_err());
    }
}
