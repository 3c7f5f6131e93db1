//! Certificates that the other side of a TLS handshake shows.

use ed25519_dalek::{Signature, VerifyingKey};
use model::SiteKey;
use rustls::pki_types::CertificateDer;

/// Length of what stands before the certificates: the time in seconds, the length of the leaf.
const HEAD_BYTES: usize = 8 + 2;

/// The site that is called in every input.
pub(super) fn called_site() -> certs::Identity {
    certs::Identity::from_seed(&[1; 32])
}

/// A leaf and a root, shown at some time by a site that is called and by one that calls. They pass
/// only if the root is of the site in question, and its key has signed the leaf.
///
/// The input is the time in seconds after 1970 (8 bytes), the leaf's length (2), leaf, root.
///
/// # Panics
///
/// If a promise is broken.
pub fn certificates(data: &[u8]) {
    let Some((head, shown)) = data.split_at_checked(HEAD_BYTES) else { return };
    let time = u64::from_be_bytes(head[..8].try_into().expect("8 bytes")) % (1 << 40);
    let length = u16::from_be_bytes(head[8..].try_into().expect("2 bytes"));
    let Some((leaf, root)) = shown.split_at_checked(length.into()) else { return };
    let (leaf, root) = (CertificateDer::from(leaf), CertificateDer::from(root));
    let shown_key = certs::site_key_of(&[leaf.clone(), root.clone()]);
    let peer = called_site().site_key();
    if certs::fuzzing::called(&leaf, std::slice::from_ref(&root), peer, time).is_ok() {
        assert_eq!(shown_key, Some(peer));
        assert!(has_signed(&peer, &leaf), "the leaf is not of the peer that was called");
    }
    if let Ok(key) = certs::fuzzing::caller(&leaf, std::slice::from_ref(&root), time) {
        assert_eq!(shown_key, Some(key));
        assert!(has_signed(&key, &leaf), "the leaf is not of the site that it names");
    }
    assert!(certs::fuzzing::called(&leaf, &[], peer, time).is_err());
    assert!(certs::fuzzing::caller(&leaf, &[root.clone(), root], time).is_err());
}

/// Whether `key` has signed the certificate, which is `SEQUENCE { signed part, algorithm, BIT STRING }`
/// in DER: read by its lengths alone, and not by the parser under test.
fn has_signed(key: &SiteKey, certificate: &[u8]) -> bool {
    // The algorithm is Ed25519 (RFC 8410), the bit string has no unused bits.
    const BEHIND: [u8; 10] = [0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x41, 0];
    let read = || {
        let (content, _) = sequence(certificate)?;
        let (_, after) = sequence(content)?;
        let signed = &content[..content.len() - after.len()];
        let signature = Signature::from_slice(after.strip_prefix(&BEHIND)?).ok()?;
        let key = VerifyingKey::from_bytes(&key.0).ok()?;
        key.verify_strict(signed, &signature).ok()
    };
    read().is_some()
}

/// The content of the sequence that `bytes` begin with, and what comes after it.
fn sequence(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[0x30, first], rest) = bytes.split_first_chunk()? else { return None };
    match first {
        0..=0x7f => rest.split_at_checked(first.into()),
        0x81 => rest.split_first().and_then(|(&n, rest)| rest.split_at_checked(n.into())),
        0x82 => {
            let (length, rest) = rest.split_first_chunk()?;
            rest.split_at_checked(u16::from_be_bytes(*length).into())
        }
        _ => None,
    }
}
