//! The peers of this site: who they are, and how they were last heard of.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use model::{PeerName, SiteKey, Time};

use crate::journal::StoredPeer;

/// One peer.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub name: PeerName,
    pub key: SiteKey,
    pub addresses: Vec<String>,
    /// None until something was heard; then whether it went through, or why not.
    pub heard: Option<Result<(), String>>,
}

/// The register of peers, shared by all doors. The journal has the durable copy.
#[derive(Clone, Default)]
pub(crate) struct Peers(Arc<RwLock<Register>>);

#[derive(Default)]
struct Register {
    peers: BTreeMap<PeerName, Peer>,
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
            let StoredPeer { name, key, addresses, .. } = peer;
            register.peers.insert(name.clone(), Peer { name, key, addresses, heard });
        }
        register.inviting_until = inviting_until;
    }

    /// One peer by its name.
    pub(crate) fn get(&self, name: &PeerName) -> Option<Peer> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).peers.get(name).cloned()
    }

    /// One peer by its key.
    pub(crate) fn by_key(&self, key: &SiteKey) -> Option<Peer> {
        let register = self.0.read().unwrap_or_else(PoisonError::into_inner);
        register.peers.values().find(|peer| peer.key == *key).cloned()
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

impl certs::Trust for Peers {
    fn knows(&self, key: &SiteKey) -> bool {
        self.by_key(key).is_some()
    }

    fn admits_strangers(&self) -> bool {
        let until = self.0.read().unwrap_or_else(PoisonError::into_inner).inviting_until;
        until.is_some_and(|until| until > crate::link::now())
    }
}
