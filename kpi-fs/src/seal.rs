//! Sealing to a key: what only the primary site is to read.
//!
//! HPKE in base mode (RFC 9180): DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305, with
//! [`INFO`] as the info and no associated data.
//!
//! ```text
//!   "kpi-sealed-1\n"   13 bytes
//!   encapsulated key   32 bytes
//!   ciphertext         as long as what is sealed
//!   tag                16 bytes
//! ```

use std::io::Read;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER_PERMISSIVE;
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};

use crate::store::OPAQUE_MAX;

/// What a sealed text starts with.
pub const MAGIC: &[u8] = b"kpi-sealed-1\n";

/// HPKE's info: a key that is used elsewhere too opens nothing of here.
pub const INFO: &[u8] = b"sojourn kpi-fs seal 1";

/// Bytes of the encapsulated key.
const KEY: usize = 32;

/// Bytes that sealing adds.
pub const OVERHEAD: usize = MAGIC.len() + KEY + 16;

/// Bytes that can be sealed at once, so that the result fits a file of `encrypted/`.
pub const SEALED_MAX: usize = OPAQUE_MAX as usize - OVERHEAD;

/// Largest key file that is read.
const KEY_FILE_MAX: u64 = 4_096;

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key's file cannot be read.
    #[error("{path} cannot be read: {source}; name the file with the public sealing key")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds no key.
    #[error("{0} holds no public sealing key; it has 64 hexadecimal digits on one line")]
    Key(PathBuf),
    /// Too much.
    #[error("there is more to seal than {SEALED_MAX} bytes; seal it in pieces")]
    Large,
    /// What is to be sealed cannot be read.
    #[error("what is to be sealed cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// It was sealed to another key, is damaged, or was never sealed.
    #[error("this was not sealed to this key, or is damaged")]
    Open,
}

/// Whom something is sealed to.
#[derive(Debug, Clone)]
pub struct PublicKey(<X25519HkdfSha256 as Kem>::PublicKey);

/// Who can open it.
pub struct SecretKey(<X25519HkdfSha256 as Kem>::PrivateKey);

impl PublicKey {
    /// Reads a key's file: 64 hexadecimal digits, and white space around them.
    pub fn read(path: &Path) -> Result<Self, SealError> {
        let error = |source| SealError::KeyFile { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(error)?;
        file.take(KEY_FILE_MAX).read_to_string(&mut text).map_err(error)?;
        Self::parse(text.trim()).ok_or_else(|| SealError::Key(path.to_owned()))
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
        Some(Self(Deserializable::from_bytes(&bytes).ok()?))
    }

    /// As it stands in a file.
    pub fn to_text(&self) -> String {
        HEXLOWER_PERMISSIVE.encode(&self.0.to_bytes())
    }
}

impl SecretKey {
    /// Makes a key pair.
    pub fn generate() -> (Self, PublicKey) {
        let (secret, public) = X25519HkdfSha256::gen_keypair();
        (Self(secret), PublicKey(public))
    }
}

/// Seals all that comes from `from`.
pub fn seal(key: &PublicKey, from: impl Read) -> Result<Vec<u8>, SealError> {
    let mut text = Vec::new();
    from.take(SEALED_MAX as u64 + 1).read_to_end(&mut text)?;
    if text.len() > SEALED_MAX {
        return Err(SealError::Large);
    }
    let (encapsulated, ciphertext) = hpke::single_shot_seal::<
        ChaCha20Poly1305,
        HkdfSha256,
        X25519HkdfSha256,
    >(&OpModeS::Base, &key.0, INFO, &text, b"")
    .map_err(|_| SealError::Open)?;
    Ok([MAGIC, &encapsulated.to_bytes(), &ciphertext].concat())
}

/// Opens what was sealed to the key.
pub fn open(key: &SecretKey, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let body = sealed.strip_prefix(MAGIC).ok_or(SealError::Open)?;
    let (encapsulated, ciphertext) = body.split_at_checked(KEY).ok_or(SealError::Open)?;
    let encapsulated = Deserializable::from_bytes(encapsulated).map_err(|_| SealError::Open)?;
    hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &key.0,
        &encapsulated,
        INFO,
        ciphertext,
        b"",
    )
    .map_err(|_| SealError::Open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_keys_owner_opens_what_was_sealed_and_nobody_a_changed_one() {
        let (secret, public) = SecretKey::generate();
        let public = PublicKey::parse(&public.to_text()).unwrap();
        let sealed = seal(&public, &b"users,5\n"[..]).unwrap();
        assert_eq!(sealed.len(), 8 + OVERHEAD);
        assert_eq!(open(&secret, &sealed).unwrap(), b"users,5\n");
        assert_ne!(seal(&public, &b"users,5\n"[..]).unwrap(), sealed, "equal texts look different");
        assert!(open(&SecretKey::generate().0, &sealed).is_err());
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(open(&secret, &changed).is_err(), "byte {index}");
            assert!(open(&secret, &sealed[..index]).is_err(), "{index} bytes");
        }
    }

    #[test]
    fn what_would_not_fit_a_file_is_not_sealed() {
        let (_, public) = SecretKey::generate();
        let fits = seal(&public, std::io::repeat(7).take(SEALED_MAX as u64)).unwrap();
        assert_eq!(fits.len() as u64, OPAQUE_MAX);
        let large = seal(&public, std::io::repeat(7).take(SEALED_MAX as u64 + 1));
        assert!(matches!(large, Err(SealError::Large)));
    }

    #[test]
    fn a_key_file_without_a_key_is_told_so() {
        for text in ["", "12", "zz", &"g".repeat(64), &"a".repeat(66)] {
            assert!(PublicKey::parse(text).is_none(), "{text}");
        }
    }
}
