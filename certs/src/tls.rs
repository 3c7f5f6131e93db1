//! TLS between two sites: version 1.3, both sides certified, one trust root per peer.
//!
//! A site shows `[leaf, root]`, and behind these what leads from its keys of before to the root's
//! (`succession.rs`). The verifier takes the root for the one trust anchor of this one
//! connection, and asks whose it is. The site that is called asks that last, when the caller has
//! proved that it holds the leaf's key, and gives one alert for every refusal: chains are no
//! secret, and showing somebody else's must not tell whether that site is a peer here.

use std::sync::Arc;
use std::{fmt, io};

use model::SiteKey;
use model::key::{Strict, Verify};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::Identity;
use crate::credentials::{Leaf, dns_name, issue, named_key, named_keys};
use crate::succession::{self, MAX_LINE, previous_key};

#[cfg(test)]
mod tests;

/// The one protocol that is spoken: HTTP/2, for gRPC.
pub const ALPN: &[u8] = b"h2";

/// The largest leaf or root that is looked at, in bytes. Ours have about 400.
const MAX_CERTIFICATE_BYTES: usize = 4096;

/// DER of a SubjectPublicKeyInfo for Ed25519, up to the key's 32 bytes (RFC 8410, section 4).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// Whom a listening site lets in.
pub trait Trust: Send + Sync {
    /// Whether this is the key of a peer.
    fn knows(&self, key: &SiteKey) -> bool;
    /// A peer's key has certified the next one of the same site, which `knows` is asked of from now
    /// on. It says nothing of whoever is at the other end. Where this is not heeded, a site that
    /// changes its key is a stranger.
    fn succeeded(&self, old: &SiteKey, new: &SiteKey) {
        let _ = (old, new);
    }
    /// Whether strangers pass too: only while an invitation is open. A stranger that passed has
    /// proved its own key, and may do nothing but show a ticket's secret.
    fn admits_strangers(&self) -> bool;
}

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The site's certificates could not be made.
    #[error("cannot make the site's certificates")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refused the settings.
    #[error("cannot set up TLS 1.3")]
    Setup(#[from] Error),
}

/// Why the other side of a handshake was refused: for the log of this side. The other side sees
/// the same alert, `certificate_unknown`, in every case.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// Not a leaf and a root, too many others, or one of them is too large.
    #[error("a site shows a leaf, its root and few others, got {0} certificates")]
    Shape(usize),
    /// What is behind the root does not lead to it from key to key.
    #[error("the certificates behind the root do not lead from a key of before to it")]
    Line,
    /// The root is no certificate of an Ed25519 key.
    #[error("the root is no certificate of a site's identity key")]
    NotASite,
    /// The root cannot serve as a trust anchor.
    #[error("the root cannot be used")]
    Root(#[source] Arc<VerifierBuilderError>),
    /// The leaf does not follow from the root: signature, validity, usage or name.
    #[error("the leaf does not hold")]
    Leaf(#[source] Error),
    /// The leaf names another site than the root is of, or more than one.
    #[error("the leaf is made out to another name than its root's")]
    Name,
    /// A sound site, but not the one that was called.
    #[error("another site answered: {}", .0.fingerprint())]
    OtherSite(SiteKey),
    /// A sound site that is no peer, and no invitation is open.
    #[error("a stranger called, and no invitation is open: {}", .0.fingerprint())]
    Stranger(SiteKey),
    /// The other side does not hold the leaf's key.
    #[error("the other side does not hold the key that it shows")]
    Possession(#[source] Error),
}

impl Refusal {
    /// What is behind the error of a handshake that this side refused.
    pub fn of(error: &io::Error) -> Option<&Self> {
        match error.get_ref()?.downcast_ref()? {
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                inner.downcast_ref()
            }
            _ => None,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// What a site listens with, for [`LEAF_VALIDITY`](crate::LEAF_VALIDITY) from now on.
///
/// Client certificates are mandatory; there are no session tickets and no early data.
pub fn server_config(
    identity: &Identity,
    trust: Arc<dyn Trust>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let shown = issue(identity, &Leaf::now(identity))?;
    server_showing(shown, trust)
}

fn server_showing(
    shown: CertifiedKey,
    trust: Arc<dyn Trust>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let verifier = Arc::new(CallerVerifier { provider: provider.clone(), trust });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// What a site calls `peer` with, and nobody else, for [`LEAF_VALIDITY`](crate::LEAF_VALIDITY)
/// from now on. To be used with [`server_name`] of the same peer.
///
/// No name is sent in the clear, so that who listens on the wire does not learn who is called.
pub fn client_config(identity: &Identity, peer: SiteKey) -> Result<Arc<ClientConfig>, TlsError> {
    let shown = issue(identity, &Leaf::now(identity))?;
    client_showing(shown, peer)
}

fn client_showing(shown: CertifiedKey, peer: SiteKey) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let verifier = Arc::new(PeerVerifier { provider: provider.clone(), peer });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// The name that `peer`'s certificate carries.
pub fn server_name(peer: &SiteKey) -> ServerName<'static> {
    dns_name(peer).try_into().expect("hex digits and a constant suffix are a DNS name")
}

/// Who is at the other end of a connection whose handshake succeeded with a configuration made
/// here, from the certificates it showed. Proves nothing about any other chain.
pub fn site_key_of(chain: &[CertificateDer<'_>]) -> Option<SiteKey> {
    let [_, root, line @ ..] = chain else { return None };
    let root = ParsedCertificate::try_from(root).ok().filter(|_| line.len() <= MAX_LINE)?;
    key_in(&root.subject_public_key_info())
}

/// The Ed25519 key in a SubjectPublicKeyInfo.
pub(crate) fn key_in(info: &[u8]) -> Option<SiteKey> {
    SiteKey::from_slice(info.strip_prefix(&ED25519_SPKI)?)
}

/// The cryptography of all connections between sites: the library's defaults, but whoever dials
/// wishes for the cheaper AES first, which all have (RFC 8446, section 9.1).
pub fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
}

/// The trust store of one connection: the root that the other side shows, alone.
struct Shown<'a> {
    key: SiteKey,
    store: Arc<RootCertStore>,
    /// Cross certificates, from the newest key to the oldest.
    line: &'a [CertificateDer<'a>],
}

impl Shown<'_> {
    /// Whether the site's key of before, `old`, stands behind this leaf by way of the line.
    fn follows(
        &self,
        old: &SiteKey,
        leaf: &CertificateDer<'_>,
        provider: &Arc<CryptoProvider>,
        now: UnixTime,
    ) -> bool {
        // Roots differ in nothing but the key.
        let anchor = |root: &TrustAnchor<'static>| TrustAnchor {
            subject_public_key_info: [&ED25519_SPKI[2..], &old.public().0].concat().into(),
            ..root.clone()
        };
        let roots = self.store.roots.iter().map(anchor).collect();
        let store = Arc::new(RootCertStore { roots });
        let verifier = WebPkiServerVerifier::builder_with_provider(store, provider.clone()).build();
        verifier.is_ok_and(|verifier| {
            let name = server_name(&self.key);
            verifier.verify_server_cert(leaf, self.line, &name, &[], now).is_ok()
        })
    }
}

fn shown<'a>(
    leaf: &CertificateDer<'_>,
    rest: &'a [CertificateDer<'a>],
) -> Result<Shown<'a>, Refusal> {
    let [root, line @ ..] = rest else { return Err(Refusal::Shape(1 + rest.len())) };
    let is_large = |one: &CertificateDer<'_>| one.len() > MAX_CERTIFICATE_BYTES;
    if line.len() > MAX_LINE || is_large(leaf) || rest.iter().any(is_large) {
        return Err(Refusal::Shape(1 + rest.len()));
    }
    let key = site_key_of(&[leaf.clone(), root.clone()]).ok_or(Refusal::NotASite)?;
    // The TLS library would take what anybody signs under a key of small order.
    if !Strict.is_sound(&key.public()) {
        return Err(Refusal::NotASite);
    }
    if !succession::is_line_to(key, line) {
        return Err(Refusal::Line);
    }
    let mut store = RootCertStore::empty();
    store.add(root.clone().into_owned()).map_err(|_| Refusal::NotASite)?;
    Ok(Shown { key, store: Arc::new(store), line })
}

/// Checks the site that was called: it is `peer`, whatever else it may be able to prove.
pub(crate) struct PeerVerifier {
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) peer: SiteKey,
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerVerifier")
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = shown(leaf, rest)?;
        let renewed;
        let name = match shown.key == self.peer {
            true => name,
            // The site that was called may have a new key by now.
            false
                if named_keys(leaf).is_some_and(|own| own.contains(&self.peer))
                    && shown.follows(&self.peer, leaf, &self.provider, now) =>
            {
                renewed = server_name(&shown.key);
                &renewed
            }
            false => return Err(Refusal::OtherSite(shown.key).into()),
        };
        WebPkiServerVerifier::builder_with_provider(shown.store, self.provider.clone())
            .build()
            .map_err(|source| Refusal::Root(Arc::new(source)))?
            .verify_server_cert(leaf, &[], name, &[], now)
            .map_err(|source| Refusal::Leaf(source).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_possession(&self.provider, message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks a site that calls: a known peer, or a stranger while an invitation is open.
pub(crate) struct CallerVerifier {
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) trust: Arc<dyn Trust>,
}

impl fmt::Debug for CallerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerVerifier")
    }
}

impl ClientCertVerifier for CallerVerifier {
    /// No hints: they would list this site's peers to whoever calls.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let shown = shown(leaf, rest)?;
        let verified =
            WebPkiClientVerifier::builder_with_provider(shown.store.clone(), self.provider.clone())
                .build()
                .map_err(|source| Refusal::Root(Arc::new(source)))?
                .verify_client_cert(leaf, &[], now)
                .map_err(Refusal::Leaf)?;
        // From here on the leaf alone tells whose it is; see `verify_tls13_signature`.
        if named_key(leaf) != Some(shown.key) {
            return Err(Refusal::Name.into());
        }
        // Looked at whether or not the site is a peer, so that the time tells nobody.
        // Both keys must say it, the old one of the new and the new one of the old: else a peer
        // could certify somebody else's key as its own next.
        let own = named_keys(leaf).unwrap_or_default();
        let before = shown.line.iter().filter_map(previous_key);
        for old in before.filter(|old| *old != shown.key && own.contains(old)) {
            if shown.follows(&old, leaf, &self.provider, now) && self.trust.knows(&old) {
                self.trust.succeeded(&old, &shown.key);
            }
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Called when `verify_client_cert` has let the same leaf pass.
        let valid = verify_possession(&self.provider, message, leaf, signed)?;
        let key = named_key(leaf).ok_or(Refusal::Name)?;
        if self.trust.knows(&key) || self.trust.admits_strangers() {
            Ok(valid)
        } else {
            Err(Refusal::Stranger(key).into())
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A chain is not secret: whoever peers with a site has seen it. What counts is the leaf's key.
fn verify_possession(
    provider: &CryptoProvider,
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &provider.signature_verification_algorithms;
    verify_tls13_signature(message, leaf, signed, algorithms)
        .map_err(|source| Refusal::Possession(source).into())
}
