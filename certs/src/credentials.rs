//! The certificates that stand behind a TLS channel: the identity's root, and a leaf.

use std::iter;
use std::time::{Duration, SystemTime};

use ed25519_dalek::pkcs8::{EncodePrivateKey, KeypairBytes};
use ed25519_dalek::{Signer, SigningKey};
use model::{Digest, SiteKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyUsagePurpose, PKCS_ED25519, SerialNumber,
};
use rustls::crypto::aws_lc_rs::sign::any_eddsa_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::Identity;
use crate::identity::random_seed;
use crate::succession::MAX_LINE;

/// How long a leaf is good for. A process that runs longer makes new configurations before.
pub const LEAF_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);

/// By how much a leaf is backdated, for peers whose clock is behind.
const LEAF_BACKDATE: Duration = Duration::from_secs(24 * 3600);

/// Length of serial numbers and key identifiers (RFC 5280 allows 20).
const SERIAL_BYTES: usize = 16;

/// What a leaf is made of. Anything but [`Leaf::now`] is for tests.
pub(crate) struct Leaf {
    pub(crate) names: Vec<String>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    /// The leaf that a site shows from now on. It names the keys of before, too: the site says that
    /// they were its own, and nobody else can say so of it.
    pub(crate) fn now(identity: &Identity) -> Self {
        let now = SystemTime::now();
        let before = identity.line().iter().filter_map(named_key);
        Self {
            names: iter::once(identity.site_key())
                .chain(before)
                .map(|key| dns_name(&key))
                .collect(),
            not_before: now - LEAF_BACKDATE,
            not_after: now + LEAF_VALIDITY,
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

/// The end of every name in a certificate. It resolves nowhere (RFC 6761, "invalid").
const DOMAIN: &str = "site.sojourn.invalid";

/// The only name of a site's leaf: the key in hex, cut into two labels of 32 digits.
pub(crate) fn dns_name(key: &SiteKey) -> String {
    let hex = key.to_string();
    let (high, low) = hex.split_at(SiteKey::LENGTH);
    format!("{high}.{low}.{DOMAIN}")
}

/// The key that a certificate is made out to: the first that it names.
pub(crate) fn named_key(certificate: &CertificateDer<'_>) -> Option<SiteKey> {
    named_keys(certificate)?.first().copied()
}

/// The keys that a certificate names: the site's, then those that it had before. None if any of its
/// names is something else.
pub(crate) fn named_keys(certificate: &CertificateDer<'_>) -> Option<Vec<SiteKey>> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let key = |name: &str| {
        let (high, low) = name.strip_suffix(DOMAIN)?.strip_suffix('.')?.split_once('.')?;
        [high, low].concat().parse().ok()
    };
    certificate.valid_dns_names().take(2 + MAX_LINE).map(key).collect()
}

/// The site's root certificate. A pure function of the identity key: its dates never end, since a
/// root counts because a peer pinned its key, and for nothing else.
pub(crate) fn root(identity: &Identity) -> Result<CertificateDer<'static>, rcgen::Error> {
    let key = X509Key::identity(identity);
    Ok(root_params(&key).self_signed(&key)?.into())
}

/// A cross certificate: `new` is the key of the site that `old` is the identity of. Its one name is
/// the old key's, so that a peer knows which of its peers it is about.
pub(crate) fn cross(
    old: &Identity,
    new: &SiteKey,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let old_key = X509Key::identity(old);
    let issuer_params = root_params(&old_key);
    let issuer = Issuer::from_params(&issuer_params, &old_key);
    let new = PublicX509Key(new.public().0);
    let mut params = root_params(&new);
    params.subject_alt_names =
        CertificateParams::new([dns_name(&old.site_key())])?.subject_alt_names;
    // Keys may follow it, and the leaf.
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(params.signed_by(&new, &issuer)?.into())
}

/// A new leaf key in memory, with the chain that vouches for it: leaf, root, and what leads from
/// the site's keys of before to the root's.
pub(crate) fn issue(identity: &Identity, leaf: &Leaf) -> Result<CertifiedKey, rcgen::Error> {
    let seed = random_seed().ok_or(rcgen::Error::RingUnspecified)?;
    let leaf_key = X509Key::new(&seed);
    let root_key = X509Key::identity(identity);
    let root_params = root_params(&root_key);
    let issuer = Issuer::from_params(&root_params, &root_key);

    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::new(leaf.names.clone())?;
    params.not_before = epoch + since_1970(leaf.not_before);
    params.not_after = epoch + since_1970(leaf.not_after);
    params.serial_number = Some(serial(&leaf_key));
    // No subject: the name in the extension is all there is to say.
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = leaf.usages.clone();
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id(&leaf_key));
    let certificate = params.signed_by(&leaf_key, &issuer)?.into();

    let der = KeypairBytes { secret_key: *seed, public_key: None }
        .to_pkcs8_der()
        .expect("32 bytes always encode");
    let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_bytes()))
        .expect("a key that was just encoded is sound");
    let mut chain = vec![certificate, root(identity)?];
    chain.extend_from_slice(identity.line());
    Ok(CertifiedKey::new(chain, key))
}

fn root_params(key: &impl rcgen::PublicKeyData) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    params.serial_number = Some(serial(key));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, DOMAIN);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id(key));
    params
}

/// An Ed25519 key as the certificate writer sees it.
///
/// The identity key signs certificates as well as DSSE payloads. The two cannot be taken for each
/// other: a certificate's signed part starts with the DER tag 0x30, a payload with "DSSEv1".
struct X509Key {
    key: SigningKey,
    public: [u8; 32],
}

impl X509Key {
    fn new(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        Self { public: key.verifying_key().to_bytes(), key }
    }

    fn identity(identity: &Identity) -> Self {
        Self::new(&identity.secret().seed())
    }
}

/// The public half of one.
struct PublicX509Key([u8; 32]);

impl rcgen::PublicKeyData for PublicX509Key {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl rcgen::PublicKeyData for X509Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl rcgen::SigningKey for X509Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).to_vec())
    }
}

fn key_id(key: &impl rcgen::PublicKeyData) -> Vec<u8> {
    Digest::of(key.der_bytes()).0[..SERIAL_BYTES].to_vec()
}

/// Positive, never zero, and told by the key: each key has one certificate.
fn serial(key: &impl rcgen::PublicKeyData) -> SerialNumber {
    let mut bytes = key_id(key);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    bytes.into()
}

/// In whole seconds, which is all that a certificate can say.
fn since_1970(time: SystemTime) -> Duration {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_an_identity_is_always_the_same() {
        let identity = Identity::from_seed(&[1; 32]);
        assert_eq!(root(&identity).unwrap(), root(&identity).unwrap());
        assert_ne!(root(&identity).unwrap(), root(&Identity::from_seed(&[2; 32])).unwrap());
    }

    #[test]
    fn a_leaf_names_its_sites_key_first_and_nothing_else_counts_as_a_name() {
        let identity = Identity::from_seed(&[1; 32]);
        let named = |names: &[&str]| {
            let names = names.iter().map(|name| name.to_string()).collect();
            let leaf = Leaf { names, ..Leaf::now(&identity) };
            named_key(&issue(&identity, &leaf).unwrap().cert[0])
        };
        let own = dns_name(&identity.site_key());
        assert_eq!(named(&[&own]), Some(identity.site_key()));
        let other = dns_name(&SiteKey([9; 32]));
        let moved = own.replacen('.', "", 1);
        let longer = format!("x.{own}");
        let (own, other) = (own.as_str(), other.as_str());
        assert_eq!(named(&[own, other]), Some(identity.site_key()), "and another of before");
        assert_ne!(named(&[other, own]), Some(identity.site_key()));
        for bad in [&[][..], &[own, "localhost"], &["localhost"], &[&longer]] {
            assert_eq!(named(bad), None, "{bad:?}");
        }
        assert!(moved.starts_with(&identity.site_key().to_string()));
        assert_eq!(named(&[&moved]), None);
    }

    #[test]
    fn every_leaf_has_a_key_of_its_own() {
        let identity = Identity::from_seed(&[1; 32]);
        let leaf = Leaf::now(&identity);
        let (one, two) = (issue(&identity, &leaf).unwrap(), issue(&identity, &leaf).unwrap());
        assert_ne!(one.key.public_key(), two.key.public_key());
        assert_eq!(one.cert[1], two.cert[1]);
    }
}
