//! What is, at the moment when somebody asks.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use model::monitoring::Measure;
use model::{Bytes, HostName, PeerName, PowerState, Resources};
use monitoring::book::Census;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use protocol::{Down, LIBRARY, State};

use super::kpi::{self, Candidate};

/// What a site's metrics show that is not counted but looked at.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) uptime: Duration,
    pub(super) site: SiteView,
    /// The peers that were tried since the start, and whether the last call went through.
    pub(super) reachable: Vec<(PeerName, bool)>,
    /// Per role, the bytes that open transfers have left, and those that they move a second.
    pub(super) transfers: [(&'static str, Bytes, Bytes); 2],
    pub(super) census: Census,
    /// None unless the operator chose some.
    pub(super) kpis: Option<kpi::View>,
}

/// What the machine and the journal say.
#[derive(Debug, Default)]
pub(super) struct SiteView {
    primary: u64,
    intermediary: u64,
    host: u64,
    parked: u64,
    held: u64,
    powers: [u64; POWERS.len()],
    hosts: Vec<HostView>,
    open_operations: u64,
    journal: u64,
    /// The VMs whose KPIs may be shown.
    pub(super) candidates: Vec<Candidate>,
}

#[derive(Debug)]
struct HostView {
    name: String,
    capacity: Resources,
    used: Resources,
}

/// The power states, as users see them.
const POWERS: [(PowerState, &str); 4] = [
    (PowerState::Defined, "defined"),
    (PowerState::Active, "active"),
    (PowerState::Paused, "paused"),
    (PowerState::Suspended, "suspended"),
];

impl SiteView {
    /// Looks at a site, whose journal has so many rows, for VMs with these measures among others.
    /// It is done in the driver, and must not take long.
    pub(super) fn of(state: &State, journal: u64, measures: &[Measure]) -> Self {
        let mut view = Self { journal, held: state.held.len() as u64, ..Self::default() };
        for (id, vm) in state.vms.iter().filter(|(_, vm)| !vm.destroyed) {
            let is_primary = vm.up.is_none();
            view.primary += u64::from(is_primary);
            view.intermediary += u64::from(!is_primary && matches!(vm.down, Down::Edge(_)));
            view.parked += u64::from(vm.parked.is_some());
            if let Some(stay) = &vm.stay {
                view.host += u64::from(stay.host.as_str() != LIBRARY);
                let power = POWERS.iter().position(|(power, _)| *power == stay.shown());
                view.powers[power.expect("the table has every state")] += 1;
            }
            if is_primary {
                view.candidates.extend(Candidate::of(*id, &vm.descriptor, measures));
            }
        }
        let mut used: HashMap<&HostName, Resources> = HashMap::new();
        for (host, resources) in state.taken() {
            let sum = used.entry(host).or_default();
            *sum = sum.plus(&resources);
        }
        let host = |(name, host): (&HostName, &protocol::Host)| HostView {
            name: name.to_string(),
            capacity: host.capacity,
            used: used.get(name).copied().unwrap_or_default(),
        };
        view.hosts = state.hosts.iter().map(host).collect();
        let open = state.journeys.values().filter(|journey| journey.result.is_none());
        view.open_operations = open.count() as u64;
        view
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Writer(encoder);
        to.one("uptime", Some(Unit::Seconds), "Since the node started", self.uptime.as_secs_f64())?;
        self.site.write(&mut to)?;
        to.gauge(
            "peer_reachable",
            None,
            "1 if the last call to or from the peer went through, 0 if not; none before the first",
            self.reachable.iter().map(|(peer, is)| ([("peer", peer.as_str())], f64::from(*is))),
        )?;
        to.gauge(
            "transfer_left",
            Some(Unit::Bytes),
            "Bytes of files that open transfers have left, as far as they know by now",
            self.transfers.iter().map(|(role, left, _)| ([("role", *role)], number(left.0))),
        )?;
        to.gauge(
            "transfer_bytes_per_second",
            None,
            "Bytes of files that open transfers move a second, over the last ten seconds",
            self.transfers.iter().map(|(role, _, rate)| ([("role", *role)], number(rate.0))),
        )?;
        let Census { dropped, missing, owed } = &self.census;
        to.counter(
            "monitoring_values_dropped",
            "Values that went from here before the next site had taken them, ever",
            *dropped,
        )?;
        to.one(
            "monitoring_values_missing",
            None,
            "Values that are known to exist and have not come; falls when they come late",
            number(*missing),
        )?;
        let owing = |(peer, _): &(PeerName, bool)| (peer.clone(), 0);
        let mut backlog: BTreeMap<PeerName, u64> = self.reachable.iter().map(owing).collect();
        backlog.extend(owed.iter().map(|(peer, values)| (peer.clone(), *values)));
        to.gauge(
            "monitoring_backlog_values",
            None,
            "Values that the peer is to have and has not taken yet",
            backlog.iter().map(|(peer, values)| ([("peer", peer.as_str())], number(*values))),
        )?;
        self.kpis.as_ref().map_or(Ok(()), |kpis| kpis.write(&mut to))
    }
}

impl SiteView {
    fn write(&self, to: &mut Writer<'_>) -> fmt::Result {
        let roles =
            [("primary", self.primary), ("intermediary", self.intermediary), ("host", self.host)];
        to.gauge(
            "vms",
            None,
            "VMs on whose path this site is, by its role; a primary that hosts its own VM has two",
            roles.map(|(role, vms)| ([("role", role)], number(vms))),
        )?;
        let powers = POWERS.iter().zip(self.powers);
        to.gauge(
            "guests",
            None,
            "VMs that this site has, on a host or in its library, by power state",
            powers.map(|((_, power), vms)| ([("power", *power)], number(vms))),
        )?;
        to.one(
            "vms_parked",
            None,
            "VMs that are stopped for want of a place",
            number(self.parked),
        )?;
        to.one(
            "vms_held",
            None,
            "VMs that wait for a word from above, since the journal was found to be old",
            number(self.held),
        )?;
        let hosts = |of: fn(&HostView) -> f64| {
            self.hosts.iter().map(move |host| ([("host", host.name.as_str())], of(host)))
        };
        to.gauge(
            "host_cpus",
            None,
            "Processors that the host has for VMs",
            hosts(|host| f64::from(host.capacity.cpus)),
        )?;
        to.gauge(
            "host_cpus_used",
            None,
            "Processors of the host that VMs have, or that are kept for those on their way",
            hosts(|host| f64::from(host.used.cpus)),
        )?;
        to.gauge(
            "host_memory",
            Some(Unit::Bytes),
            "Memory that the host has for VMs",
            hosts(|host| number(host.capacity.memory.0)),
        )?;
        to.gauge(
            "host_memory_used",
            Some(Unit::Bytes),
            "Memory of the host that VMs have, or that is kept for those on their way",
            hosts(|host| number(host.used.memory.0)),
        )?;
        to.one(
            "operations_open",
            None,
            "Operations of this site as Controller that have not ended",
            number(self.open_operations),
        )?;
        to.counter("journal_rows", "Rows of the site's journal, ever", self.journal)
    }
}

/// Every number here is below 2^53, or need not be exact.
fn number(count: u64) -> f64 {
    count as f64
}

/// Writes families of samples that are known already.
pub(super) struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    /// A gauge for each set of labels; nothing if there is none.
    pub(super) fn gauge<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        samples: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let help = format!("{help}.");
        let mut family = self.0.encode_descriptor(name, &help, unit.as_ref(), MetricType::Gauge)?;
        samples.try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
    }

    /// A gauge without labels.
    pub(super) fn one(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        value: f64,
    ) -> fmt::Result {
        let help = format!("{help}.");
        let mut gauge = self.0.encode_descriptor(name, &help, unit.as_ref(), MetricType::Gauge)?;
        gauge.encode_gauge(&value)
    }

    /// A counter without labels.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let help = format!("{help}.");
        let mut counter = self.0.encode_descriptor(name, &help, None, MetricType::Counter)?;
        counter.encode_counter::<[(&str, &str); 0], _, f64>(&value, None)
    }
}

/// Writes a snapshot in OpenMetrics' text format, without its end.
pub(super) fn write(snapshot: Snapshot, text: &mut String) {
    let mut registry = prometheus_client::registry::Registry::with_prefix(super::PREFIX);
    registry.register_collector(Box::new(snapshot));
    let written = prometheus_client::encoding::text::encode_registry(text, &registry);
    written.expect("a text takes what is written");
}
