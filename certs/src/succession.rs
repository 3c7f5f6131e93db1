//! A new identity key for a site, which its peers follow without joining again.
//!
//! The old key certifies the new one, and is then destroyed: a cross certificate, as RFC 4210 has
//! it for a root's change of key (section 4.4, "new with old"). The site shows it beside its chain
//! from then on, so that a peer that pinned the old key, however long it was away, finds a path
//! from there to the leaf, and pins the new key.
//!
//! ```text
//!   old key ──signs──▶ cross certificate of the new key
//!  (pinned by a peer)      new key ──signs──▶ leaf
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use data_encoding::BASE64;
use model::SiteKey;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::ParsedCertificate;

use crate::IdentityError;
use crate::credentials::named_key;
use crate::tls::key_in;

/// Name of the file that holds the cross certificates, in PEM (RFC 7468). It is not secret.
pub const LINE_FILE: &str = "identity.line";

/// Most keys of before that a site shows the way from. A peer that knows an older one joins again.
pub(crate) const MAX_LINE: usize = 4;

/// The key that a cross certificate makes the next one.
fn next_key(cross: &CertificateDer<'_>) -> Option<SiteKey> {
    let parsed = ParsedCertificate::try_from(cross).ok()?;
    key_in(&parsed.subject_public_key_info())
}

/// The key that it is signed with, as it says.
pub(crate) fn previous_key(cross: &CertificateDer<'_>) -> Option<SiteKey> {
    named_key(cross)
}

/// Whether these say that each leads to the one before it, and the first to `key`. What they are
/// signed with is another question.
pub(crate) fn is_line_to(key: SiteKey, line: &[CertificateDer<'_>]) -> bool {
    let mut key = Some(key);
    line.iter().all(|cross| {
        let leads = key.is_some() && next_key(cross) == key;
        key = previous_key(cross);
        leads && key.is_some()
    })
}

/// The cross certificates of the folder that lead to `key`, the newest first. Others may be there:
/// of a change that was not completed.
pub(crate) fn read(
    folder: &Path,
    key: SiteKey,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let path = folder.join(LINE_FILE);
    let all = match std::fs::read(&path) {
        Ok(text) => CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(source) => return Err(IdentityError::Io { what: "read", path, source }),
    };
    let all = all.map_err(|_| IdentityError::MalformedLine(path))?;
    let mut line = Vec::new();
    let mut key = Some(key);
    while let Some(wanted) = key.filter(|_| line.len() < MAX_LINE) {
        let cross = all.iter().rev().find(|cross| next_key(cross) == Some(wanted));
        key = cross.and_then(previous_key);
        line.extend(cross.cloned());
    }
    Ok(line)
}

/// Adds a cross certificate to the folder's.
pub(crate) fn add(folder: &Path, cross: &CertificateDer<'_>) -> Result<(), IdentityError> {
    let path = folder.join(LINE_FILE);
    let write = || -> io::Result<()> {
        let mut text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
            read => read?,
        };
        text.extend(pem(cross).into_bytes());
        let mut file = tempfile::Builder::new().prefix(".identity-").tempfile_in(folder)?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|refused| refused.error)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| IdentityError::Io { what: "write", path: path.clone(), source })
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = BASE64.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII"));
    let body = lines.collect::<Vec<_>>().join("\n");
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}
