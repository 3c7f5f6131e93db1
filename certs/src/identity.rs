//! The identity key of a site, on disk.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use model::{SecretKey, Signature, SiteKey};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::{credentials, succession};

/// Name of the key's file in the site's folder: PEM with PKCS #8 (RFC 8410), mode 0600.
pub const KEY_FILE: &str = "identity.key";

/// A key file is about 120 bytes; whatever is larger is something else.
const MAX_KEY_FILE_BYTES: usize = 4096;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key is there already, and a site never changes its identity by accident.
    #[error("{0} exists already; start with it, or move it away to give this site a new identity")]
    Exists(PathBuf),
    /// There is no key.
    #[error(
        "{0} does not exist; `sojourn site init` makes one, or put back the one from your backup"
    )]
    Missing(PathBuf),
    /// Others may read the key.
    #[error("{path} can be used by others (mode {mode:04o}); run: chmod 600 '{path}'")]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file of cross certificates holds something else.
    #[error("{0} holds something else than certificates; put back the one from your backup")]
    MalformedLine(PathBuf),
    /// The cross certificate could not be made.
    #[error("cannot certify the new key with the old one")]
    Certificate(#[from] rcgen::Error),
    /// The file holds no Ed25519 key.
    #[error("{0} is no Ed25519 private key in PEM (PKCS #8); put back the one from your backup")]
    Malformed(PathBuf),
    /// The file cannot be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The key's file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The system gave no random bytes.
    #[error("the system has no random bytes to make a key from")]
    NoRandomness,
}

/// A site's identity. It has no `Debug`, and its key is wiped on drop.
#[derive(Clone)]
pub struct Identity {
    key: SecretKey,
    /// From the keys of before to this one, the newest first.
    line: Vec<CertificateDer<'static>>,
}

impl Identity {
    /// Makes a new identity and writes it to [`KEY_FILE`] in `folder`, which must exist.
    ///
    /// The file appears complete or not at all, and never takes the place of another.
    pub fn create(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join(KEY_FILE);
        let seed = random_seed().ok_or(IdentityError::NoRandomness)?;
        match write(folder, &seed, |file| file.persist_noclobber(&path)) {
            Ok(()) => Ok(Self::from_seed(&seed)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(IdentityError::Exists(path)),
            Err(source) => Err(IdentityError::Io { what: "write", path, source }),
        }
    }

    /// Gives the site in `folder` a new key, which the old one certifies for its peers before it is
    /// destroyed: the site's identity from then on. The new key counts all at once; a crash before
    /// that leaves the old one in force.
    pub fn renew(folder: &Path) -> Result<Self, IdentityError> {
        let old = Self::load(folder)?;
        let seed = random_seed().ok_or(IdentityError::NoRandomness)?;
        let cross = credentials::cross(&old, &Self::from_seed(&seed).site_key())?;
        succession::add(folder, &cross)?;
        let path = folder.join(KEY_FILE);
        match write(folder, &seed, |file| file.persist(&path)) {
            Ok(()) => Self::load(folder),
            Err(source) => Err(IdentityError::Io { what: "write", path, source }),
        }
    }

    /// Reads the identity from [`KEY_FILE`] in `folder`.
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join(KEY_FILE);
        let io = |source| IdentityError::Io { what: "read", path: path.clone(), source };
        let file = File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => IdentityError::Missing(path.clone()),
            _ => io(source),
        })?;
        // Asked of the open file: the one that is judged is the one that is read.
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(IdentityError::Malformed(path));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path, mode });
        }
        // Large enough from the start: a buffer that grows leaves copies of the key behind.
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE_BYTES + 1));
        file.take(MAX_KEY_FILE_BYTES as u64 + 1).read_to_end(&mut text).map_err(io)?;
        let key = (text.len() <= MAX_KEY_FILE_BYTES)
            .then(|| std::str::from_utf8(&text).ok())
            .flatten()
            .and_then(|text| SigningKey::from_pkcs8_pem(text).ok());
        match key {
            Some(key) => {
                let identity = Self::from_seed(&Zeroizing::new(key.to_bytes()));
                let line = succession::read(folder, identity.site_key())?;
                Ok(Self { line, ..identity })
            }
            None => Err(IdentityError::Malformed(path)),
        }
    }

    /// The identity made from 32 given bytes, for tests and simulations.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self { key: SecretKey::from_seed(seed), line: vec![] }
    }

    /// What peers know this site by.
    pub fn site_key(&self) -> SiteKey {
        SiteKey(self.key.public().0)
    }

    /// What peers have ever known it by, as far as that is still told: its key, and those of before.
    pub fn keys(&self) -> Vec<SiteKey> {
        let before = self.line.iter().filter_map(succession::previous_key);
        std::iter::once(self.site_key()).chain(before).collect()
    }

    /// Signs `body` as a payload of the given type.
    pub fn sign(&self, payload_type: &str, body: &[u8]) -> Signature {
        self.key.sign(payload_type, body)
    }

    /// A secret for another purpose, which `context` names: 32 bytes that are always the same, and
    /// that tell nothing of the key or of the secrets for other purposes (BLAKE3, `derive_key`).
    pub fn derive(&self, context: &str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(context, &*self.key.seed()))
    }

    /// What leads a peer from the keys of before to this one.
    pub(crate) fn line(&self) -> &[CertificateDer<'static>] {
        &self.line
    }

    pub(crate) fn secret(&self) -> &SecretKey {
        &self.key
    }
}

/// Writes a key's file as a whole, and puts it in its place.
fn write(
    folder: &Path,
    seed: &[u8; 32],
    put: impl FnOnce(tempfile::NamedTempFile) -> Result<File, tempfile::PersistError>,
) -> io::Result<()> {
    let text = KeypairBytes { secret_key: *seed, public_key: None }
        .to_pkcs8_pem(LineEnding::LF)
        .expect("32 bytes always encode");
    let mut file = tempfile::Builder::new().prefix(".identity-").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    put(file).map_err(|refused| refused.error)?;
    File::open(folder)?.sync_all()
}

/// 32 bytes from the system's random source, wiped on drop.
pub(crate) fn random_seed() -> Option<Zeroizing<[u8; 32]>> {
    let mut seed = Zeroizing::new([0; 32]);
    let source = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    source.fill(&mut *seed).ok().map(|()| seed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use model::key::{Strict, Verify};

    use super::*;

    fn refusal(result: Result<Identity, IdentityError>) -> IdentityError {
        result.err().expect("a refusal")
    }

    #[test]
    fn a_created_identity_is_the_same_after_a_load_and_only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let created = Identity::create(folder.path()).unwrap();
        let loaded = Identity::load(folder.path()).unwrap();
        assert_eq!(created.site_key(), loaded.site_key());

        let file = folder.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&file).unwrap().starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn a_derived_secret_is_the_same_after_a_load_and_another_for_each_purpose_and_identity() {
        let folder = tempfile::tempdir().unwrap();
        let derived = Identity::create(folder.path()).unwrap().derive("one");
        let loaded = Identity::load(folder.path()).unwrap();
        assert_eq!(loaded.derive("one"), derived);
        assert_ne!(loaded.derive("two"), derived);
        assert_ne!(Identity::from_seed(&[1; 32]).derive("one"), derived);
    }

    #[test]
    fn two_created_identities_differ() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let one = Identity::create(one.path()).unwrap();
        let two = Identity::create(two.path()).unwrap();
        assert_ne!(one.site_key(), two.site_key());
    }

    #[test]
    fn an_existing_key_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::create(folder.path()).unwrap();
        let error = refusal(Identity::create(folder.path()));
        assert!(matches!(error, IdentityError::Exists(_)), "{error}");
        assert_eq!(Identity::load(folder.path()).unwrap().site_key(), first.site_key());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_may_use_is_refused_with_the_command_that_helps() {
        let folder = tempfile::tempdir().unwrap();
        Identity::create(folder.path()).unwrap();
        let file = folder.path().join(KEY_FILE);
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let text = refusal(Identity::load(folder.path())).to_string();
            assert!(text.contains(&format!("chmod 600 '{}'", file.display())), "{text}");
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(Identity::load(folder.path()).is_ok());
    }

    #[test]
    fn a_missing_cut_off_or_foreign_key_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(KEY_FILE);
        assert!(matches!(refusal(Identity::load(folder.path())), IdentityError::Missing(_)));

        Identity::create(folder.path()).unwrap();
        let good = fs::read(&file).unwrap();
        let long = [&good[..], &[b'\n'; MAX_KEY_FILE_BYTES]].concat();
        for bad in [&good[..good.len() / 2], b"", b"hello", &[0xff; 40], &long] {
            fs::write(&file, bad).unwrap();
            assert!(matches!(refusal(Identity::load(folder.path())), IdentityError::Malformed(_)));
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(matches!(refusal(Identity::load(folder.path())), IdentityError::Malformed(_)));
    }

    #[test]
    fn what_an_identity_signs_verifies_with_its_site_key() {
        let identity = Identity::from_seed(&[7; 32]);
        let signature = identity.sign("application/test.v1", b"body");
        let key = identity.site_key().public();
        assert!(Strict.verify(&key, "application/test.v1", b"body", &signature));
        assert!(!Strict.verify(&key, "application/test.v2", b"body", &signature));
    }

    #[test]
    fn a_renewed_identity_has_another_key_and_the_old_one_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let old = Identity::create(folder.path()).unwrap();
        let before = fs::read(folder.path().join(KEY_FILE)).unwrap();
        let new = Identity::renew(folder.path()).unwrap();
        assert_ne!(old.site_key(), new.site_key());
        assert_eq!(Identity::load(folder.path()).unwrap().site_key(), new.site_key());
        assert_eq!(new.line().len(), 1);
        let mode = fs::metadata(folder.path().join(KEY_FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        for file in fs::read_dir(folder.path()).unwrap() {
            let text = fs::read(file.unwrap().path()).unwrap();
            assert!(!text.windows(before.len()).any(|part| part == before), "the old key is left");
        }
    }

    #[test]
    fn a_renewal_that_did_not_come_to_its_end_leaves_the_old_key_and_no_line_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let old = Identity::create(folder.path()).unwrap();
        let before = fs::read(folder.path().join(KEY_FILE)).unwrap();
        Identity::renew(folder.path()).unwrap();
        // As if it had stopped before the last step.
        fs::write(folder.path().join(KEY_FILE), before).unwrap();
        let loaded = Identity::load(folder.path()).unwrap();
        assert_eq!((loaded.site_key(), loaded.line().len()), (old.site_key(), 0));
        let renewed = Identity::renew(folder.path()).unwrap();
        assert_eq!(renewed.line().len(), 1, "of two that lead away from the old key, its own");
    }

    #[test]
    fn of_many_keys_the_last_few_are_shown_the_way_from() {
        let folder = tempfile::tempdir().unwrap();
        Identity::create(folder.path()).unwrap();
        let mut last = 0;
        for _ in 0..7 {
            last = Identity::renew(folder.path()).unwrap().line().len();
        }
        assert_eq!(last, crate::succession::MAX_LINE);
        fs::write(folder.path().join(crate::LINE_FILE), "-----BEGIN CERTIFICATE-----\nx").unwrap();
        let error = refusal(Identity::load(folder.path()));
        assert!(matches!(error, IdentityError::MalformedLine(_)), "{error}");
    }
}
