//! Decisions that a site's policy takes: one input in, a decision with reasons out.
//!
//! Executors ask through [`Policy`] and make no choice of their own.

use serde::{Deserialize, Serialize};

use crate::{Bytes, Carrier, Descriptor, PeerName, Peering, Resources, Taken, Time};

/// Whether to host a VM on one of this site's hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admit {
    /// The peer that asks; none when this site's own users do.
    pub peer: Option<PeerName>,
    /// The VM.
    pub descriptor: Descriptor,
    /// What the best eligible host has free.
    pub free: Resources,
    /// This site's word about that peer; none when this site's own users ask.
    pub peering: Option<Peering>,
    /// What runs here for that peer already.
    pub taken: Taken,
    /// What is here already of the VM's group, which is to stay apart.
    pub group: Group,
    /// Price per hour that this site would ask, in thousandths of the contract's currency.
    pub price_milli: u64,
    /// The country that this site is in (ISO 3166-1); empty if not configured.
    pub country: String,
    /// When the decision is taken.
    pub now: Time,
}

/// How many VMs of the group that the VM asked about is one of, and that must not share a host,
/// are at a site or on their way there. None where it is of no group ([`Restrictions::apart`]).
///
/// [`Restrictions::apart`]: crate::vm::Restrictions::apart
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// On the host that the decision is about.
    pub host: u32,
    /// On all hosts of this site.
    pub site: u32,
}

/// Whether to pass a Migration request on to one of this site's peers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delegate {
    /// The peer that asks; none when this site's own users do.
    pub peer: Option<PeerName>,
    /// This site's word about the peer that asks.
    pub peering: Option<Peering>,
    /// The peer that would be asked.
    pub to: PeerName,
    /// This site's word about the peer that would be asked.
    pub to_peering: Peering,
    /// The VM.
    pub descriptor: Descriptor,
    /// Further sites that the request may still pass, `to` included.
    pub hops_left: u8,
}

/// One offer, as a policy sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The peer that it came from; none for this site's own.
    pub via: Option<PeerName>,
    /// This site's word about that peer.
    pub peering: Option<Peering>,
    /// Price per hour, in thousandths of the contract's currency.
    pub price_milli: u64,
    /// Capacity class.
    pub class: String,
    /// Country of the Destination, as far as it is told; else empty.
    pub country: String,
    /// Sites between this one and the Destination, 0 for this one itself.
    pub distance: u8,
    /// False where the VM would only be stored.
    pub runs: bool,
    /// VMs of the VM's group that went the same way: to this site's hosts, or to that peer. Where
    /// they are behind that peer is not known here.
    pub group: u32,
}

/// Which of several offers to show to whoever asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expose {
    /// The peer that asks.
    pub peer: PeerName,
    /// This site's word about it.
    pub peering: Peering,
    /// The offers at hand.
    pub offers: Vec<Candidate>,
}

/// In which order to try several offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rank {
    /// The VM.
    pub descriptor: Descriptor,
    /// The offers at hand.
    pub offers: Vec<Candidate>,
}

/// How to move the files of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// The peer that the answer goes to.
    pub peer: PeerName,
    /// This site's word about it.
    pub peering: Peering,
    /// The VM.
    pub descriptor: Descriptor,
    /// How much there is to move, as far as known.
    pub size: Bytes,
    /// Whether the two ends may be unable to dial each other: at least one takes no connection
    /// from outside, and without a site that relays the transfer may not come about.
    pub must_meet: bool,
}

/// What a transfer that this site takes part in may take of its links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The peer that it is made with; none within this site.
    pub peer: Option<PeerName>,
    /// This site's word about that peer.
    pub peering: Option<Peering>,
    /// What this site is to it.
    pub role: TransferRole,
    /// The VM; of one that is only passed on, as far as known.
    pub descriptor: Descriptor,
    /// Whether the VM must leave by a deadline. Such transfers go before all others anyway.
    pub urgent: bool,
}

/// What a site is to a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferRole {
    /// It sends the files.
    Source,
    /// It gets them.
    Destination,
    /// It passes them on.
    Relay,
}

/// The answer to a [`Share`]. What is configured holds beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Granted {
    /// The only carrier that may be used; none lets the path decide.
    pub carrier: Option<Carrier>,
    /// Bytes a second at most; none for no limit.
    pub rate: Option<Bytes>,
    /// Against other transfers that wait for the same link: 3 gets three times as much as 1.
    pub weight: u32,
}

impl Default for Granted {
    fn default() -> Self {
        Self { carrier: None, rate: None, weight: 1 }
    }
}

/// Whether a condition of a VM's monitoring asks for another place for it. Asked at its primary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    /// The VM.
    pub descriptor: Descriptor,
    /// The measure whose condition has come true, such as `web.current_users`.
    pub measure: String,
    /// The condition, such as `> 1000 for 30 s`.
    pub condition: String,
    /// The value that was told with it.
    pub value: f64,
    /// How long ago it came true, in milliseconds: values may have waited on their way.
    pub age_ms: u64,
    /// The peer that answers for the VM; none when it is at this site.
    pub delegate: Option<PeerName>,
}

/// Allowed, or refused with every reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Go ahead.
    Allow,
    /// Do not; the reasons are meant for whoever asked.
    Refuse(Vec<String>),
}

impl Verdict {
    /// Whether to go ahead.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow)
    }
}

/// An offer's place in the ranking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Index into [`Rank::offers`].
    pub offer: usize,
    /// The higher, the earlier it is tried.
    pub score: f64,
    /// What the score is made of, or why the offer is out.
    pub reasons: Vec<String>,
    /// Out of the question, whatever the score.
    pub excluded: bool,
}

/// Direct from proxy to proxy, or through the Intermediaries' proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// The two proxies talk directly (papers/003, III-D).
    Direct,
    /// Every Intermediary relays: complete location unawareness, at the price of the detour.
    Relayed,
}

/// The site's rules. Implementations are deterministic: equal inputs give equal decisions.
pub trait Policy {
    /// Whether to host a VM.
    fn admit(&self, input: &Admit) -> Verdict;
    /// Whether to pass a request on to one peer.
    fn delegate(&self, input: &Delegate) -> Verdict;
    /// Indices into [`Expose::offers`] that may be shown, ascending.
    fn expose(&self, input: &Expose) -> Vec<usize>;
    /// Every offer of [`Rank::offers`] once, best first, excluded ones last.
    fn rank(&self, input: &Rank) -> Vec<Ranked>;
    /// How to move the files.
    fn transfer(&self, input: &Transfer) -> Route;
    /// What a transfer may take of the site's links.
    fn share(&self, input: &Share) -> Granted;
    /// Why the VM is to be placed anew; nothing leaves it where it is.
    fn trigger(&self, input: &Trigger) -> Vec<String>;
}
