//! What the node counts of itself, and how it shows that: metrics and health over HTTP.
//!
//! ```text
//!   driver, gate, links, hands, monitor ── what happens ──▶ Metrics ──┐
//!   driver, book, peers ◀── what is, looked at when asked ─ snapshot ─┼─▶ page ─▶ /metrics
//!                           of VMs that the operator chose ─── kpi ───┘    │
//!                           whether each part answers ───── health ────────┴──▶ /livez, /readyz
//! ```
//!
//! What happens is counted where it happens, through one handle that hangs on the driver's and is
//! an addition to a number; what is, is looked at when somebody asks. Nobody asks unless the
//! operator gave an address (`[metrics]` of `sojourn.toml`). METRICS.md has every metric.
//!
//! **Architecture invariant.** No label's values grow beyond what the operator made: peers and
//! hosts. VMs are a label of the KPIs alone, which the operator chooses, up to a bound.

mod health;
mod kpi;
mod page;
mod policy;
mod snapshot;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use model::{Bytes, MigrationId, PeerName};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use protocol::{Answer, JourneyResult, Outcome, Row};
use transfer_proxy::End;

use crate::lock;

pub(crate) use health::Health;
pub(crate) use page::{Page, listen};
pub(crate) use policy::CountedPolicy;

/// What every metric's name begins with.
const PREFIX: &str = "sojourn";

/// Bounds of a histogram of what takes a disk or a hypervisor, in seconds: 0.25 ms to 1 s.
const LOCAL_SECONDS: [f64; 13] = [
    0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024,
];
/// Bounds of a histogram of what takes a peer, in seconds: 1 ms, to several minutes for a request
/// that is answered when a transfer is over. Few, since there is one for each peer and operation.
const PEER_SECONDS: [f64; 10] =
    [0.001, 0.004, 0.016, 0.064, 0.256, 1.024, 4.096, 16.384, 65.536, 262.144];

/// The operation of a request that could not be read, and of one that brings values.
pub(crate) const UNREADABLE: &str = "unreadable";
pub(crate) const VALUES: &str = "values";

/// Labels whose values the program has, one or two of them.
type Label = [(&'static str, &'static str); 1];
type Labels = [(&'static str, &'static str); 2];
/// The label `peer`.
type OfPeer = [(&'static str, String); 1];

/// The node's counters and histograms. Cheap to clone; clones count together.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Counts>);

struct Counts {
    registry: Registry,
    begun: Instant,
    operations: Family<Label, Counter>,
    migrations: Family<Labels, Counter>,
    transfer_bytes: Family<Label, Counter>,
    /// Of each transfer that is open, how many bytes of it are counted.
    transfers: Mutex<HashMap<(MigrationId, End), u64>>,
    requests: Family<Request, Counter>,
    request_time: Family<Answering, Histogram, fn() -> Histogram>,
    journal_sync: Histogram,
    blocks_taken: Family<Label, Counter>,
    values_taken: Family<Label, Counter>,
    blocks_refused: Counter,
    blocks_forwarded: Family<OfPeer, Counter>,
    values_forwarded: Family<OfPeer, Counter>,
    decisions: Family<Labels, Counter>,
    guest_measure: Histogram,
}

/// Labels of requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    peer: String,
    direction: &'static str,
    operation: &'static str,
    answer: &'static str,
}

/// Labels of how long requests take.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answering {
    peer: String,
    direction: &'static str,
    operation: &'static str,
}

/// Who asks whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// This site asks a peer.
    Sent,
    /// A peer asks this site.
    Received,
}

/// Where values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// They were measured here.
    Guest,
    /// A peer brought them, or they moved here with their VM.
    Peer,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
        }
    }
}

impl Origin {
    const ALL: [Self; 2] = [Self::Guest, Self::Peer];

    fn label(self) -> Label {
        let name = match self {
            Self::Guest => "guest",
            Self::Peer => "peer",
        };
        [("origin", name)]
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Counts::new()))
    }
}

impl Counts {
    fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The release of this node", version);
        let operations = Family::default();
        registry.register(
            "operations",
            "Operations of this site as Controller that have ended, by how",
            operations.clone(),
        );
        let migrations = Family::default();
        registry.register(
            "migrations",
            "Migrations that have ended, by this site's role and the row of the journal that says \
             how",
            migrations.clone(),
        );
        let transfer_bytes = Family::default();
        registry.register_with_unit(
            "transfer",
            "Bytes in datagrams of transfers, both ways together, by this site's role: a Source \
             sends files, a Destination gets them",
            Unit::Bytes,
            transfer_bytes.clone(),
        );
        let requests = Family::default();
        registry.register(
            "peer_requests",
            "Requests to and from peers that have ended, by operation and kind of answer",
            requests.clone(),
        );
        let request_time =
            Family::new_with_constructor((|| Histogram::new(PEER_SECONDS)) as fn() -> Histogram);
        registry.register_with_unit(
            "peer_request_duration",
            "From a request to or from a peer to its answer; some answers come when a transfer is \
             over",
            Unit::Seconds,
            request_time.clone(),
        );
        let journal_sync = Histogram::new(LOCAL_SECONDS);
        registry.register_with_unit(
            "journal_sync_duration",
            "From the end of a write to the journal until it is on stable storage",
            Unit::Seconds,
            journal_sync.clone(),
        );
        let blocks_taken = Family::default();
        registry.register(
            "monitoring_blocks_taken",
            "Blocks of values that are new here and kept, by where they come from",
            blocks_taken.clone(),
        );
        let values_taken = Family::default();
        registry.register(
            "monitoring_values_taken",
            "Values that are new here and kept, by where they come from",
            values_taken.clone(),
        );
        let blocks_refused = Counter::default();
        registry.register(
            "monitoring_blocks_refused",
            "Blocks of values that no owner of their VM has signed",
            blocks_refused.clone(),
        );
        let blocks_forwarded = Family::default();
        registry.register(
            "monitoring_blocks_forwarded",
            "Blocks of values that a peer has taken, as the next site on the way to the primary",
            blocks_forwarded.clone(),
        );
        let values_forwarded = Family::default();
        registry.register(
            "monitoring_values_forwarded",
            "Values that a peer has taken, as the next site on the way to the primary",
            values_forwarded.clone(),
        );
        let decisions = Family::default();
        registry.register(
            "policy_decisions",
            "Decisions of the site's policies, by verdict",
            decisions.clone(),
        );
        let guest_measure = Histogram::new(LOCAL_SECONDS);
        registry.register_with_unit(
            "guest_measure_duration",
            "How long a hypervisor takes to tell what one guest has used",
            Unit::Seconds,
            guest_measure.clone(),
        );
        let counts = Self {
            registry,
            begun: Instant::now(),
            operations,
            migrations,
            transfer_bytes,
            transfers: Mutex::default(),
            requests,
            request_time,
            journal_sync,
            blocks_taken,
            values_taken,
            blocks_refused,
            blocks_forwarded,
            values_forwarded,
            decisions,
            guest_measure,
        };
        counts.begin_at_zero();
        counts
    }

    /// What has not happened yet is told as 0, so that its first time is seen as a rise.
    fn begin_at_zero(&self) {
        for end in ENDS {
            drop(self.operations.get_or_create(&[("end", end)]));
        }
        for (role, outcome) in OUTCOMES {
            drop(self.migrations.get_or_create(&[("role", role), ("outcome", outcome)]));
        }
        for end in [End::Source, End::Target] {
            drop(self.transfer_bytes.get_or_create(&[("role", role(end))]));
        }
        for origin in Origin::ALL {
            drop(self.blocks_taken.get_or_create(&origin.label()));
            drop(self.values_taken.get_or_create(&origin.label()));
        }
        for (decision, verdict) in policy::VERDICTS {
            drop(self.decisions.get_or_create(&[("decision", decision), ("verdict", verdict)]));
        }
    }
}

impl Metrics {
    /// How long the node has been running.
    fn uptime(&self) -> Duration {
        self.0.begun.elapsed()
    }

    /// Writes all of them, in OpenMetrics' text format and without its end.
    fn write(&self, text: &mut String) {
        encode_registry(text, &self.0.registry).expect("a text takes what is written");
    }

    /// The journal was synced.
    pub(crate) fn synced(&self, took: Duration) {
        self.0.journal_sync.observe(took.as_secs_f64());
    }

    /// These rows are durable.
    pub(crate) fn durable(&self, rows: &[Row]) {
        for row in rows {
            if let Row::Concluded { result, .. } = row {
                self.0.operations.get_or_create(&[("end", end(result))]).inc();
            }
            let ended = OUTCOMES.iter().find(|(_, outcome)| *outcome == row.kind());
            if let Some((role, outcome)) = ended {
                let labels = [("role", *role), ("outcome", *outcome)];
                self.0.migrations.get_or_create(&labels).inc();
            }
        }
    }

    /// A request to or from a peer has ended.
    pub(crate) fn request(
        &self,
        direction: Direction,
        peer: &PeerName,
        operation: &'static str,
        answer: &'static str,
        took: Duration,
    ) {
        let (peer, direction) = (peer.to_string(), direction.name());
        let labels = Answering { peer: peer.clone(), direction, operation };
        self.0.request_time.get_or_create(&labels).observe(took.as_secs_f64());
        self.0.requests.get_or_create(&Request { peer, direction, operation, answer }).inc();
    }

    /// A transfer begins, or goes on.
    pub(crate) fn transfer_is_open(&self, migration: MigrationId, end: End) {
        lock(&self.0.transfers).entry((migration, end)).or_default();
    }

    /// The transfers that are open.
    pub(crate) fn transfers(&self) -> Vec<(MigrationId, End)> {
        lock(&self.0.transfers).keys().copied().collect()
    }

    /// So much has crossed the network for a transfer by now. What its proxy says may fall for a
    /// moment, while one session takes another's place; nothing is counted twice.
    pub(crate) fn transferred(&self, migration: MigrationId, end: End, wire: Bytes) {
        if let Some(counted) = lock(&self.0.transfers).get_mut(&(migration, end)) {
            let more = wire.0.saturating_sub(*counted);
            *counted += more;
            self.0.transfer_bytes.get_or_create(&[("role", role(end))]).inc_by(more);
        }
    }

    /// A transfer is over.
    pub(crate) fn transfer_is_closed(&self, migration: MigrationId, end: End) {
        lock(&self.0.transfers).remove(&(migration, end));
    }

    /// Values that are new here were kept.
    pub(crate) fn values_taken(&self, origin: Origin, blocks: u64, values: u64) {
        self.0.blocks_taken.get_or_create(&origin.label()).inc_by(blocks);
        self.0.values_taken.get_or_create(&origin.label()).inc_by(values);
    }

    /// Blocks of values were refused for good.
    pub(crate) fn values_refused(&self, blocks: u64) {
        self.0.blocks_refused.inc_by(blocks);
    }

    /// A peer has taken values.
    pub(crate) fn values_forwarded(&self, peer: &PeerName, blocks: u64, values: u64) {
        let label = [("peer", peer.to_string())];
        self.0.blocks_forwarded.get_or_create(&label).inc_by(blocks);
        self.0.values_forwarded.get_or_create(&label).inc_by(values);
    }

    /// A policy has decided.
    fn decided(&self, decision: &'static str, verdict: &'static str) {
        let labels = [("decision", decision), ("verdict", verdict)];
        self.0.decisions.get_or_create(&labels).inc();
    }

    /// A guest was measured.
    pub(crate) fn measured(&self, took: Duration) {
        self.0.guest_measure.observe(took.as_secs_f64());
    }
}

/// Every name of [`end`].
const ENDS: [&str; 7] =
    ["done", "no_place", "gave_up", "passed_up", "parked", "cancelled", "ranking"];

/// How an operation has ended.
fn end(result: &JourneyResult) -> &'static str {
    match result {
        JourneyResult::Done => "done",
        JourneyResult::NoPlace(_) => "no_place",
        JourneyResult::GaveUp(_) => "gave_up",
        JourneyResult::PassedUp => "passed_up",
        JourneyResult::Parked(_) => "parked",
        JourneyResult::Cancelled => "cancelled",
        JourneyResult::Ranking(_) => "ranking",
    }
}

/// The rows that end a migration at its Source and at its Destination.
const OUTCOMES: [(&str, &str); 6] = [
    (SOURCE, "receipted"),
    (SOURCE, "aborted"),
    (SOURCE, "returned"),
    (DESTINATION, "owned"),
    (DESTINATION, "handed_back"),
    (DESTINATION, "dropped"),
];

const SOURCE: &str = "source";
const DESTINATION: &str = "destination";

/// What this site is to a transfer, as a label says it.
pub(crate) fn role(end: End) -> &'static str {
    match end {
        End::Source => SOURCE,
        End::Target => DESTINATION,
    }
}

/// The kind of an answer between sites.
pub(crate) fn kind(answer: &Answer) -> &'static str {
    match answer {
        Answer::Offers { offers, .. } if offers.is_empty() => "no offers",
        Answer::Offers { .. } => "offers",
        Answer::Prepared { .. } => "prepared",
        Answer::Accepted => "accepted",
        Answer::Arrived { .. } => "arrived",
        Answer::Gone { .. } => "gone",
        Answer::Verified(Outcome::Open { .. }) => "open",
        Answer::Verified(Outcome::Released(_)) => "released",
        Answer::Verified(Outcome::Aborted(_)) => "aborted",
        Answer::Verified(Outcome::Differs { .. }) => "differs",
        Answer::Owned { .. } => "owned",
        Answer::HandedBack { .. } => "handed back",
        Answer::State { .. } => "state",
        Answer::Known { .. } => "known",
        Answer::Done => "done",
        Answer::Conflict { .. } => "conflict",
        Answer::Failed { .. } => "failed",
        Answer::Refused { .. } => "refused",
        Answer::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(metrics: &Metrics) -> String {
        let mut text = String::new();
        metrics.write(&mut text);
        text
    }

    #[test]
    fn every_outcome_is_a_row_of_the_journal() {
        for (_, outcome) in OUTCOMES {
            assert!(Row::KINDS.contains(&outcome), "{outcome}");
        }
    }

    #[test]
    fn bytes_of_a_transfer_are_counted_once_whatever_its_proxy_says_in_between() {
        let metrics = Metrics::default();
        let (one, two) = (MigrationId([1; 16]), MigrationId([2; 16]));
        metrics.transferred(one, End::Source, Bytes(5));
        assert!(shown(&metrics).contains("sojourn_transfer_bytes_total{role=\"source\"} 0\n"));
        metrics.transfer_is_open(one, End::Source);
        for wire in [100, 40, 120] {
            metrics.transferred(one, End::Source, Bytes(wire));
        }
        metrics.transfer_is_open(one, End::Source);
        metrics.transfer_is_open(two, End::Source);
        metrics.transferred(two, End::Source, Bytes(3));
        metrics.transfer_is_closed(one, End::Source);
        assert_eq!(metrics.transfers(), [(two, End::Source)]);
        assert!(shown(&metrics).contains("sojourn_transfer_bytes_total{role=\"source\"} 123\n"));
    }

    #[test]
    fn what_has_not_happened_yet_is_zero() {
        let text = shown(&Metrics::default());
        for series in [
            "sojourn_operations_total{end=\"gave_up\"} 0\n",
            "sojourn_migrations_total{role=\"destination\",outcome=\"owned\"} 0\n",
            "sojourn_monitoring_values_taken_total{origin=\"peer\"} 0\n",
            "sojourn_policy_decisions_total{decision=\"admit\",verdict=\"refuse\"} 0\n",
        ] {
            assert!(text.contains(series), "{series}{text}");
        }
    }
}
