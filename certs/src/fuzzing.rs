//! The judging of certificates by itself: for fuzzing, where a handshake for each input would cost
//! a thousand times as much.

use std::sync::Arc;
use std::time::Duration;

use model::SiteKey;
use rustls::Error;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use crate::credentials::named_key;
use crate::tls::{CallerVerifier, PeerVerifier, Trust, provider, server_name};

/// Nobody is known, so that nothing but the certificates counts.
struct Nobody;

impl Trust for Nobody {
    fn knows(&self, _: &SiteKey) -> bool {
        false
    }

    fn admits_strangers(&self) -> bool {
        false
    }
}

/// What a site that calls `peer` makes of the certificates that it is shown, `now` seconds after
/// 1970. Whether the other side holds the leaf's key is asked afterwards.
pub fn called(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    peer: SiteKey,
    now: u64,
) -> Result<(), Error> {
    let verifier = PeerVerifier { provider: provider(), peer };
    verifier.verify_server_cert(leaf, rest, &server_name(&peer), &[], time(now)).map(drop)
}

/// What a called site makes of its caller's certificates: whose they are. Whether that is a peer,
/// and holds the leaf's key, is asked afterwards.
pub fn caller(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    now: u64,
) -> Result<SiteKey, Error> {
    let verifier = CallerVerifier { provider: provider(), trust: Arc::new(Nobody) };
    verifier.verify_client_cert(leaf, rest, time(now))?;
    Ok(named_key(leaf).expect("a leaf that passed names its site"))
}

fn time(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}
