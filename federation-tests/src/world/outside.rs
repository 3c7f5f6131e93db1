//! What a machine may use while it handles an event: clock, keys and random values, all made from
//! the site's number and a counter.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use model::decision::Policy;
use model::key::{Strict, Verify};
use model::{
    Digest, EdgeHandle, HostName, MigrationId, PeerName, ProxyUri, PublicKey, SecretKey, Signature,
    SiteKey, Time, Token,
};

use super::rules::Willing;

/// What signatures are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crypto {
    /// A hash over key, type and body. Nobody here forges; thousands of runs a second.
    Fast,
    /// Ed25519 with strict verification.
    Real,
}

/// Values that a site has made; never used twice, whatever crashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Made {
    count: u64,
    /// With [`Crypto::Real`]: what each key was made from.
    seeds: BTreeMap<PublicKey, [u8; 32]>,
}

impl Made {
    pub(super) fn value(&mut self, site: u8) -> [u8; 32] {
        self.count += 1;
        let mut value = [0; 32];
        value[0] = site;
        value[1..9].copy_from_slice(&self.count.to_be_bytes());
        value
    }

    pub(super) fn key(&mut self, site: u8, crypto: Crypto) -> PublicKey {
        let value = self.value(site);
        match crypto {
            Crypto::Fast => PublicKey(value),
            Crypto::Real => {
                let key = SecretKey::from_seed(&value).public();
                self.seeds.insert(key, value);
                key
            }
        }
    }
}

/// The world of one site while it handles one event.
pub(super) struct Outside {
    pub name: PeerName,
    pub site: u8,
    pub now: Time,
    pub crypto: Crypto,
    pub made: Made,
    pub policy: Willing,
    /// Nobody can dial its proxy.
    pub dials_out: bool,
}

fn stand_in(key: &PublicKey, payload_type: &str, body: &[u8]) -> Signature {
    let mut hasher = DefaultHasher::new();
    (key.0, payload_type, body).hash(&mut hasher);
    let mut signature = [0; 64];
    signature[..8].copy_from_slice(&hasher.finish().to_be_bytes());
    Signature(signature)
}

impl Verify for Outside {
    fn verify(&self, key: &PublicKey, payload_type: &str, body: &[u8], by: &Signature) -> bool {
        match self.crypto {
            Crypto::Fast => stand_in(key, payload_type, body) == *by,
            Crypto::Real => Strict.verify(key, payload_type, body, by),
        }
    }

    fn is_sound(&self, key: &PublicKey) -> bool {
        match self.crypto {
            Crypto::Fast => true,
            Crypto::Real => Strict.is_sound(key),
        }
    }
}

impl Outside {
    /// What the identity of a site is made of, and its public half.
    fn identity_of(&self, name: &str) -> ([u8; 32], SiteKey) {
        let seed = Digest::of(name.as_bytes()).0;
        match self.crypto {
            Crypto::Fast => (seed, SiteKey(seed)),
            Crypto::Real => (seed, SiteKey(SecretKey::from_seed(&seed).public().0)),
        }
    }
}

impl protocol::World for Outside {
    fn now(&self) -> Time {
        self.now
    }

    fn random(&mut self) -> [u8; 32] {
        self.made.value(self.site)
    }

    fn create_key(&mut self) -> PublicKey {
        self.made.key(self.site, self.crypto)
    }

    fn sign(&self, key: &PublicKey, payload_type: &str, body: &[u8]) -> Signature {
        match self.crypto {
            Crypto::Fast => {
                assert_eq!(key.0[0], self.site, "a site signs with its own keys only");
                stand_in(key, payload_type, body)
            }
            Crypto::Real => {
                let seed = self.made.seeds.get(key).expect("a site signs with its own keys only");
                SecretKey::from_seed(seed).sign(payload_type, body)
            }
        }
    }

    fn sign_as_site(&self, payload_type: &str, body: &[u8]) -> Signature {
        let (seed, key) = self.identity_of(self.name.as_str());
        match self.crypto {
            Crypto::Fast => stand_in(&key.public(), payload_type, body),
            Crypto::Real => SecretKey::from_seed(&seed).sign(payload_type, body),
        }
    }

    fn source_token(&self, migration: MigrationId) -> Token {
        let mut token = [self.site; 32];
        token[..16].copy_from_slice(&migration.0);
        Token(token)
    }

    fn relay_token(&self, of: EdgeHandle, for_source: bool) -> Token {
        let mut token = [self.site; 32];
        token[..16].copy_from_slice(&of.0);
        token[16] = if for_source { 0xf0 } else { 0xf1 };
        Token(token)
    }

    fn relay_key(&mut self, of: EdgeHandle) -> PublicKey {
        let mut seed = [self.site; 32];
        seed[1..17].copy_from_slice(&of.0);
        seed[17] = 0xf2;
        match self.crypto {
            Crypto::Fast => PublicKey(seed),
            Crypto::Real => SecretKey::from_seed(&seed).public(),
        }
    }

    fn proxy_uri(&self, host: &HostName) -> ProxyUri {
        if self.dials_out {
            return ProxyUri::dial_out();
        }
        self.inner_uri(host)
    }

    fn inner_uri(&self, _: &HostName) -> ProxyUri {
        format!("quic://{}:4433", self.name).parse().expect("a legal URI")
    }

    fn identity(&self, party: &protocol::Party) -> Option<SiteKey> {
        let name = match party {
            protocol::Party::Here => self.name.as_str(),
            protocol::Party::Peer(peer) => peer.as_str(),
        };
        Some(self.identity_of(name).1)
    }

    fn policy(&self) -> &dyn Policy {
        &self.policy
    }
}
