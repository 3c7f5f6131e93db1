//! How a proxy that starts again ends the sessions of the run before.
//!
//! A packet of a session that an endpoint does not know is answered with a stateless reset (RFC
//! 9000, section 10.3). The other end takes it for the end of the session if it holds the token
//! that it was told at the beginning, and dials again at once; without it, that end waits until
//! its idle time is over. So what tokens and connection ids are made from outlives the process.

use std::sync::Arc;

use certs::Identity;
use quinn::EndpointConfig;
use quinn_proto::HashedConnectionIdGenerator;
use quinn_proto::crypto::{CryptoError, HmacKey};
use zeroize::Zeroizing;

/// What reset tokens and connection ids are made from: always the same for one proxy, and known
/// to no other, which could end its sessions.
#[derive(Clone)]
pub struct ResetKey {
    tokens: Zeroizing<[u8; 32]>,
    /// Ids are recognised by it, so that not every stray packet is answered. It keeps no secret.
    ids: u64,
}

impl std::fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResetKey(…)")
    }
}

impl ResetKey {
    /// The key of the proxy that `identity` is the identity of, or of its node's process.
    pub fn of(identity: &Identity) -> Self {
        let ids = identity.derive("sojourn 2026 transfer proxy: connection ids");
        let (ids, _) = ids.split_first_chunk().expect("8 of 32 bytes");
        Self {
            tokens: identity.derive("sojourn 2026 transfer proxy: stateless reset tokens"),
            ids: u64::from_le_bytes(*ids),
        }
    }

    /// The configuration of an endpoint that resets the sessions of the run before.
    pub(super) fn endpoint(self) -> EndpointConfig {
        let ids = self.ids;
        let mut config = EndpointConfig::new(Arc::new(self));
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
        config
    }
}

/// BLAKE3, keyed.
impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.tokens, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // The comparison takes the same time wherever the two differ.
        let holds = blake3::keyed_hash(&self.tokens, data) == *signature;
        if holds { Ok(()) } else { Err(CryptoError) }
    }
}
