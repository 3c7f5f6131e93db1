//! The peers of this site: who they are, and how they were last heard of.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use model::{PeerName, Peering, SiteKey, Time};

use crate::journal::StoredPeer;

/// Requests a second of a peer of which nothing else is said.
const REQUESTS: u32 = 1_000;
/// Requests that a peer may make at once, however few it may make a second: those that one deed
/// takes.
const BURST: u32 = 16;

/// One peer.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub name: PeerName,
    pub key: SiteKey,
    pub addresses: Vec<String>,
    /// What it may do here.
    pub peering: Peering,
    /// None until something was heard; then whether it went through, or why not.
    pub heard: Option<Result<(), String>>,
}

/// The register of peers, shared by all doors. The journal has the durable copy.
#[derive(Clone, Default)]
pub(crate) struct Peers(Arc<RwLock<Register>>);

#[derive(Default)]
struct Register {
    peers: BTreeMap<PeerName, Peer>,
    /// Their names by their keys: every connection and every request is looked up here.
    names: HashMap<SiteKey, PeerName>,
    /// How much each may ask now; it is none's business where that is kept but a request's.
    budgets: HashMap<SiteKey, Budget>,
    /// New keys of peers, and the old ones that certified them, until they are written down.
    renewed: HashMap<SiteKey, SiteKey>,
    /// When the last open invitation ends by itself.
    inviting_until: Option<Time>,
}

impl Peers {
    /// Takes over what the journal has.
    pub(crate) fn load(&self, stored: Vec<StoredPeer>, inviting_until: Option<Time>) {
        let mut register = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut old = std::mem::take(&mut register.peers);
        for peer in stored {
            let heard = old.remove(&peer.name).filter(|old| old.key == peer.key);
            let heard = heard.and_then(|old| old.heard);
            let StoredPeer { name, key, addresses, peering, .. } = peer;
            let peer = Peer { name: name.clone(), key, addresses, peering, heard };
            register.peers.insert(name, peer);
        }
        register.inviting_until = inviting_until;
        let Register { peers, names, budgets, renewed, .. } = &mut *register;
        *names = peers.values().map(|peer| (peer.key, peer.name.clone())).collect();
        budgets.retain(|key, _| names.contains_key(key));
        renewed.retain(|new, old| names.contains_key(old) && !names.contains_key(new));
    }

    /// Takes one request off what a peer may ask, or says how many it may ask a second, and when
    /// the next one will be answered.
    pub(crate) fn spend(&self, peer: &Peer, now: Instant) -> Result<(), (u32, Duration)> {
        let rate = peer.peering.limits.requests.unwrap_or(REQUESTS);
        let mut register = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let left = rate.max(BURST).into();
        let budget = register.budgets.entry(peer.key).or_insert(Budget { left, now });
        budget.spend(rate, now).map_err(|wait| (rate, wait))
    }

    /// One peer by its name.
    pub(crate) fn get(&self, name: &PeerName) -> Option<Peer> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).peers.get(name).cloned()
    }

    /// One peer by its key.
    pub(crate) fn by_key(&self, key: &SiteKey) -> Option<Peer> {
        let register = self.0.read().unwrap_or_else(PoisonError::into_inner);
        register.peers.get(register.names.get(key)?).cloned()
    }

    /// The old key of a peer that has this new one, if that was not written down yet.
    pub(crate) fn renewed(&self, new: &SiteKey) -> Option<SiteKey> {
        let register = self.0.read().unwrap_or_else(PoisonError::into_inner);
        register.renewed.get(new).copied()
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<Peer> {
        let register = self.0.read().unwrap_or_else(PoisonError::into_inner);
        register.peers.values().cloned().collect()
    }

    /// Notes how a call to or from a peer went.
    pub(crate) fn heard(&self, name: &PeerName, heard: Result<(), String>) {
        let mut register = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = register.peers.get_mut(name) {
            peer.heard = Some(heard);
        }
    }
}

/// Requests that may be made at once: those of one second, filled again at the same rate.
struct Budget {
    left: f64,
    now: Instant,
}

impl Budget {
    fn spend(&mut self, rate: u32, now: Instant) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.now).as_secs_f64();
        self.left = (self.left + since * f64::from(rate)).min(rate.max(BURST).into());
        self.now = now;
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / f64::from(rate)));
        }
        self.left -= 1.0;
        Ok(())
    }
}

impl certs::Trust for Peers {
    fn knows(&self, key: &SiteKey) -> bool {
        self.by_key(key).is_some() || self.renewed(key).is_some()
    }

    fn succeeded(&self, old: &SiteKey, new: &SiteKey) {
        let mut register = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if old == new || register.names.contains_key(new) {
            return;
        }
        // A peer has one key at a time.
        register.renewed.retain(|_, known| known != old);
        register.renewed.insert(*new, *old);
    }

    fn admits_strangers(&self) -> bool {
        let until = self.0.read().unwrap_or_else(PoisonError::into_inner).inviting_until;
        until.is_some_and(|until| until > crate::link::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_known_by_the_key_that_it_has_and_by_no_other() {
        let stored = |name: &str, key| StoredPeer {
            name: name.parse().unwrap(),
            key: SiteKey([key; 32]),
            addresses: vec![],
            peering: Peering::default(),
        };
        let name_of = |peers: &Peers, key| peers.by_key(&SiteKey([key; 32])).map(|peer| peer.name);
        let peers = Peers::default();
        peers.load(vec![stored("b", 1), stored("c", 2)], None);
        assert_eq!(name_of(&peers, 1), Some("b".parse().unwrap()));
        assert_eq!(name_of(&peers, 2), Some("c".parse().unwrap()));
        peers.load(vec![stored("b", 3)], None);
        assert_eq!(name_of(&peers, 3), Some("b".parse().unwrap()));
        assert_eq!([1, 2].map(|key| name_of(&peers, key)), [None, None]);
    }

    #[test]
    fn a_peer_asks_as_often_as_its_rate_and_is_told_when_to_ask_again() {
        let begun = Instant::now();
        let mut budget = Budget { left: 50.0, now: begun };
        let made = (0..100).filter(|_| budget.spend(50, begun).is_ok()).count();
        assert_eq!(made, 50, "a second's worth at once");
        let wait = budget.spend(50, begun).unwrap_err();
        assert_eq!(wait, Duration::from_millis(20));
        assert!(budget.spend(50, begun + wait).is_ok());
        assert!(budget.spend(50, begun + wait).is_err());
        // Whoever was silent for long has saved up no more than a second's worth.
        let later = begun + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| budget.spend(50, later).is_ok()).count(), 50);
        let mut slow = Budget { left: BURST.into(), now: begun };
        let made = (0..100).filter(|_| slow.spend(1, begun).is_ok()).count();
        assert_eq!(made, 16, "one deed's worth at once, at the lowest rate");
    }
}
