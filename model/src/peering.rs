//! What a site lets one of its peers do: scope, limits and marks (federation.md, "Joining").
//!
//! Each side of a peering has its own word about the other, and neither needs to know the other's:
//! a request that goes beyond it is refused with the term that it breaks.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Bytes, Resources, Time};

/// Most marks that one peer bears.
pub const MAX_MARKS: usize = 32;
/// Longest mark, and longest name of an agreement, in characters.
pub const MAX_MARK_CHARS: usize = 63;

/// One thing that a peer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Place VMs here: its Migration requests are considered.
    Place,
    /// Host VMs for this site: it is asked for places.
    Host,
    /// Stand between this site and others: what it is asked for it may ask others for.
    Intermediate,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Place, Self::Host, Self::Intermediate];

    /// As operators write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Place => "place",
            Self::Host => "host",
            Self::Intermediate => "intermediate",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that is no right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a peer may place, host or intermediate, got {0:?}")]
pub struct RightError(String);

impl FromStr for Right {
    type Err = RightError;

    fn from_str(text: &str) -> Result<Self, RightError> {
        let found = Self::ALL.into_iter().find(|right| right.name() == text);
        found.ok_or_else(|| RightError(text.chars().take(MAX_MARK_CHARS).collect()))
    }
}

/// What of this site a peer may take at once. None is no limit beside the site's own.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// VMs that run here for it.
    pub vms: Option<u32>,
    /// Virtual processors of these.
    pub cpus: Option<u32>,
    /// Memory of these.
    pub memory: Option<Bytes>,
    /// Disks of these, as their guests see them.
    pub disk: Option<Bytes>,
    /// Requests a second.
    pub requests: Option<u32>,
    /// Bytes a second, in each direction, of all transfers with it.
    pub rate: Option<Bytes>,
}

/// What runs at a site for one of its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Taken {
    /// VMs.
    pub vms: u32,
    /// Processors and memory of these.
    pub resources: Resources,
    /// Disks of these, as their guests see them.
    pub disk: Bytes,
}

/// This site's word about a peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Peering {
    /// What it may do.
    pub may: BTreeSet<Right>,
    /// How much of it.
    pub limits: Limits,
    /// The agreement on paper that stands behind it, as the operator calls it; none if there is none.
    pub contract: Option<String>,
    /// Words that the operator gave it, for policies: `partner`, `own-domain`.
    pub marks: BTreeSet<String>,
    /// It is being ended: nothing new in either direction, and what is shared moves away. What
    /// runs here for the peer then is parked.
    pub ending: Option<Time>,
}

/// Everything without a limit: what two sites have that say nothing of it.
impl Default for Peering {
    fn default() -> Self {
        Self {
            may: Right::ALL.into(),
            limits: Limits::default(),
            contract: None,
            marks: BTreeSet::new(),
            ending: None,
        }
    }
}

/// What it lets the peer do, for the peer to read: rights and limits, and nothing else.
impl fmt::Display for Peering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rights: Vec<&str> = self.may.iter().map(|right| right.name()).collect();
        let rights = if rights.is_empty() { "do nothing".to_owned() } else { rights.join(", ") };
        write!(f, "may {rights}")?;
        let Limits { vms, cpus, memory, disk, requests, rate } = self.limits;
        let most = [
            vms.map(|n| format!("{n} VMs")),
            cpus.map(|n| format!("{n} processors")),
            memory.map(|bytes| format!("{bytes} of memory")),
            disk.map(|bytes| format!("{bytes} of disk")),
            requests.map(|n| format!("{n} requests a second")),
            rate.map(|bytes| format!("{bytes} a second")),
        ];
        let most: Vec<String> = most.into_iter().flatten().collect();
        if most.is_empty() { Ok(()) } else { write!(f, "; at most {}", most.join(", ")) }
    }
}

/// A mark or the name of an agreement that is not legal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeeringError {
    /// Too long, empty, or not printable.
    #[error("a mark or an agreement is 1 to {MAX_MARK_CHARS} printable characters, got {0:?}")]
    Word(String),
    /// Too many marks.
    #[error("a peer bears at most {MAX_MARKS} marks, got {0}")]
    Marks(usize),
}

impl Peering {
    /// Checks every word of it.
    pub fn check(&self) -> Result<(), PeeringError> {
        let legal = |word: &&String| {
            let chars = word.chars().count();
            (1..=MAX_MARK_CHARS).contains(&chars) && word.bytes().all(|b| b.is_ascii_graphic())
        };
        match self.marks.iter().chain(&self.contract).find(|word| !legal(word)) {
            Some(bad) => Err(PeeringError::Word(bad.chars().take(MAX_MARK_CHARS).collect())),
            None if self.marks.len() > MAX_MARKS => Err(PeeringError::Marks(self.marks.len())),
            None => Ok(()),
        }
    }

    /// Whether the peer may do this now.
    pub fn lets(&self, right: Right) -> bool {
        self.ending.is_none() && self.may.contains(&right)
    }

    /// Which limits would be broken if `more` were taken beside what is `taken`: each in words for
    /// the peer, which is a party to them.
    pub fn beyond(&self, taken: &Taken, more: &Taken) -> Vec<String> {
        let after = taken.plus(more);
        let mib = |bytes: Bytes| format!("{} MiB", bytes.0.div_ceil(1 << 20));
        let Limits { vms, cpus, memory, disk, .. } = self.limits;
        let mut broken = Vec::new();
        let mut hold =
            |what: &str, limit: Option<u64>, value: u64, show: &dyn Fn(u64) -> String| {
                if let Some(limit) = limit.filter(|limit| value > *limit) {
                    broken.push(format!(
                        "the peering allows you {} of {what}, this would make {}",
                        show(limit),
                        show(value)
                    ));
                }
            };
        let plain = |n: u64| n.to_string();
        let in_mib = |n: u64| mib(Bytes(n));
        hold("VMs", vms.map(u64::from), after.vms.into(), &plain);
        hold("processors", cpus.map(u64::from), after.resources.cpus.into(), &plain);
        hold("memory", memory.map(|m| m.0), after.resources.memory.0, &in_mib);
        hold("disk", disk.map(|d| d.0), after.disk.0, &in_mib);
        broken
    }
}

impl Taken {
    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            vms: self.vms.saturating_add(other.vms),
            resources: self.resources.plus(&other.resources),
            disk: Bytes(self.disk.0.saturating_add(other.disk.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(vms: u32) -> Taken {
        let resources = Resources { cpus: 2 * vms, memory: Bytes(u64::from(vms) << 30) };
        Taken { vms, resources, disk: Bytes(u64::from(vms) << 33) }
    }

    #[test]
    fn a_peering_that_says_nothing_lets_everything_and_limits_nothing() {
        let peering: Peering = serde_json::from_str("{}").unwrap();
        assert_eq!(peering, Peering::default());
        assert!(Right::ALL.into_iter().all(|right| peering.lets(right)));
        assert!(peering.beyond(&taken(1_000_000), &taken(1)).is_empty());
    }

    #[test]
    fn each_limit_is_held_to_the_last_and_named_when_broken() {
        let limits = |limits| Peering { limits, ..Peering::default() };
        let none = Limits::default();
        let each = [
            (Limits { vms: Some(3), ..none }, "3 of VMs, this would make 4"),
            (Limits { cpus: Some(6), ..none }, "6 of processors, this would make 8"),
            (Limits { memory: Some(Bytes(3 << 30)), ..none }, "3072 MiB of memory"),
            (Limits { disk: Some(Bytes(3 << 33)), ..none }, "24576 MiB of disk"),
        ];
        for (limit, text) in each {
            let peering = limits(limit);
            assert!(peering.beyond(&taken(2), &taken(1)).is_empty(), "{text}: not yet");
            let broken = peering.beyond(&taken(3), &taken(1));
            assert!(matches!(&broken[..], [one] if one.contains(text)), "{broken:?}");
        }
    }

    #[test]
    fn a_peering_that_ends_lets_nothing_new() {
        let peering = Peering { ending: Some(Time(9)), ..Peering::default() };
        assert!(!Right::ALL.into_iter().any(|right| peering.lets(right)));
    }

    #[test]
    fn words_are_checked() {
        assert_eq!("place".parse(), Ok(Right::Place));
        assert!("placing".parse::<Right>().is_err());
        let marked = |mark: &str| Peering { marks: [mark.to_owned()].into(), ..Peering::default() };
        assert_eq!(marked("own-domain").check(), Ok(()));
        for bad in ["", "two words", "line\nbreak", &"x".repeat(64)] {
            assert!(marked(bad).check().is_err(), "{bad:?}");
        }
        let many = (0..33).map(|n| n.to_string()).collect();
        assert_eq!(
            Peering { marks: many, ..Peering::default() }.check(),
            Err(PeeringError::Marks(33))
        );
    }
}
