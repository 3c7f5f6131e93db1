//! Keys and signatures: Ed25519 over the DSSE pre-authentication encoding.

use std::fmt;
use std::marker::PhantomData;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::hex_bytes;

hex_bytes! {
    /// An Ed25519 public key. That it is a sound point is checked when it verifies something.
    PublicKey, 32, "a public key"
}
hex_bytes! {
    /// An Ed25519 signature.
    Signature, 64, "a signature"
}
hex_bytes! {
    /// The identity of a site: its Ed25519 identity key. Known to direct peers only.
    SiteKey, 32, "a site's key"
}

impl SiteKey {
    /// The same key, to verify with.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0)
    }

    /// A short form for people: the first 16 hex digits of BLAKE3 over the key, in groups of 4.
    pub fn fingerprint(&self) -> String {
        let hex = data_encoding::HEXLOWER.encode(&blake3::hash(&self.0).as_bytes()[..8]);
        [&hex[0..4], &hex[4..8], &hex[8..12], &hex[12..16]].join(":")
    }
}

/// An Ed25519 private key. Wiped on drop; it has no `Debug`, no `Display` and no `Serialize`.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key made from 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The 32 bytes that the key was made from, to be written to private storage only.
    pub fn seed(&self) -> zeroize::Zeroizing<[u8; 32]> {
        zeroize::Zeroizing::new(self.0.to_bytes())
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs `body` as a payload of the given type.
    pub fn sign(&self, payload_type: &str, body: &[u8]) -> Signature {
        Signature(self.0.sign(&pre_authentication_encoding(payload_type, body)).to_bytes())
    }
}

/// Whatever can tell whether a signature holds: real cryptography, or a model checker's stand-in.
pub trait Verify {
    /// Whether `key` signed `body` as a payload of the given type.
    fn verify(
        &self,
        key: &PublicKey,
        payload_type: &str,
        body: &[u8],
        signature: &Signature,
    ) -> bool;

    /// Whether there can be a secret behind `key`: it is a point of the curve, and not one of the
    /// few of small order, for which anybody can make signatures that some programs take.
    fn is_sound(&self, key: &PublicKey) -> bool;
}

/// Ed25519 with strict verification: small-order keys and malleable signatures do not pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Strict;

impl Verify for Strict {
    fn verify(
        &self,
        key: &PublicKey,
        payload_type: &str,
        body: &[u8],
        signature: &Signature,
    ) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&key.0) else { return false };
        let message = pre_authentication_encoding(payload_type, body);
        key.verify_strict(&message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
    }

    fn is_sound(&self, key: &PublicKey) -> bool {
        VerifyingKey::from_bytes(&key.0).is_ok_and(|key| !key.is_weak())
    }
}

/// DSSE's pre-authentication encoding (secure-systems-lab/dsse, protocol.md, "PAE").
pub fn pre_authentication_encoding(payload_type: &str, body: &[u8]) -> Vec<u8> {
    let mut message =
        format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), body.len()).into_bytes();
    message.extend_from_slice(body);
    message
}

/// A value that can be signed: it has a payload type, versioned, that nothing else has.
pub trait Payload: Serialize + DeserializeOwned {
    /// The DSSE payload type.
    const TYPE: &'static str;
}

/// A statement in the exact bytes that were signed, with the signature and who made it.
///
/// The bytes are kept as they were received and are never encoded again.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Signed<T> {
    /// The signed bytes.
    pub body: Vec<u8>,
    /// Who signed.
    pub key: PublicKey,
    /// The signature over the pre-authentication encoding of `body`.
    pub signature: Signature,
    #[serde(skip)]
    kind: PhantomData<fn() -> T>,
}

/// Why a signed statement does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Somebody other than the expected key signed.
    #[error("signed by another key than expected")]
    WrongKey,
    /// The signature does not fit the bytes.
    #[error("signature does not verify")]
    BadSignature,
    /// The bytes are no statement of the expected type.
    #[error("signed bytes are no statement of this type")]
    Malformed,
}

impl<T: Payload> Signed<T> {
    /// Encodes `value`, and signs it with `sign(payload_type, bytes)`, which `key` must belong to.
    pub fn seal(value: &T, key: PublicKey, sign: impl FnOnce(&str, &[u8]) -> Signature) -> Self {
        let body = postcard::to_stdvec(value).expect("statements are plain data");
        let signature = sign(T::TYPE, &body);
        Self { body, key, signature, kind: PhantomData }
    }

    /// Puts together what came in over a wire.
    pub fn from_parts(body: Vec<u8>, key: PublicKey, signature: Signature) -> Self {
        Self { body, key, signature, kind: PhantomData }
    }

    /// The statement, if `expected` made it.
    pub fn open(&self, expected: &PublicKey, verify: &dyn Verify) -> Result<T, OpenError> {
        if self.key != *expected {
            return Err(OpenError::WrongKey);
        }
        if !verify.verify(&self.key, T::TYPE, &self.body, &self.signature) {
            return Err(OpenError::BadSignature);
        }
        self.peek()
    }

    /// What the statement says, whoever made it. For what this site stored after it verified it.
    pub fn peek(&self) -> Result<T, OpenError> {
        match postcard::take_from_bytes(&self.body) {
            Ok((value, [])) => Ok(value),
            _ => Err(OpenError::Malformed),
        }
    }
}

impl<T> Clone for Signed<T> {
    fn clone(&self) -> Self {
        Self {
            body: self.body.clone(),
            key: self.key,
            signature: self.signature,
            kind: PhantomData,
        }
    }
}

impl<T> PartialEq for Signed<T> {
    fn eq(&self, other: &Self) -> bool {
        (&self.body, self.key, self.signature) == (&other.body, other.key, other.signature)
    }
}

impl<T> Eq for Signed<T> {}

impl<T> std::hash::Hash for Signed<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.body.hash(state);
        self.key.hash(state);
        self.signature.hash(state);
    }
}

impl<T: Payload + fmt::Debug> fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peek() {
            Ok(value) => write!(f, "Signed({value:?})"),
            Err(_) => f.write_str("Signed(malformed)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note(u32);
    impl Payload for Note {
        const TYPE: &'static str = "application/vnd.sojourn.test.v1";
    }

    fn sealed() -> (SecretKey, Signed<Note>) {
        let secret = SecretKey::from_seed(&[3; 32]);
        let signed = Signed::seal(&Note(7), secret.public(), |t, b| secret.sign(t, b));
        (secret, signed)
    }

    #[test]
    fn a_statement_opens_for_its_key_only() {
        let (secret, signed) = sealed();
        assert_eq!(signed.open(&secret.public(), &Strict), Ok(Note(7)));
        let other = SecretKey::from_seed(&[4; 32]).public();
        assert_eq!(signed.open(&other, &Strict), Err(OpenError::WrongKey));
    }

    #[test]
    fn every_altered_bit_of_body_or_signature_is_noticed() {
        let (secret, signed) = sealed();
        for bit in 0..signed.body.len() * 8 {
            let mut altered = signed.clone();
            altered.body[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(altered.open(&secret.public(), &Strict), Err(OpenError::BadSignature));
        }
        for bit in 0..64 * 8 {
            let mut altered = signed.clone();
            altered.signature.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(altered.open(&secret.public(), &Strict), Err(OpenError::BadSignature));
        }
    }

    #[test]
    fn a_low_order_key_verifies_nothing_and_is_not_sound() {
        let (secret, signed) = sealed();
        assert!(Strict.is_sound(&secret.public()));
        let neutral = Signature([[1; 1].as_slice(), &[0; 63]].concat().try_into().unwrap());
        let text = |text: &str| text.parse::<PublicKey>().unwrap();
        for weak in [
            PublicKey([0; 32]),
            text("0100000000000000000000000000000000000000000000000000000000000000"),
            text("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
            text("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
        ] {
            assert!(!Strict.is_sound(&weak), "{weak}");
            let signed = Signed::<Note>::from_parts(signed.body.clone(), weak, neutral);
            assert_eq!(signed.open(&weak, &Strict), Err(OpenError::BadSignature));
        }
    }

    #[test]
    fn bytes_behind_the_statement_are_refused() {
        let secret = SecretKey::from_seed(&[3; 32]);
        let mut body = postcard::to_stdvec(&Note(7)).unwrap();
        body.push(0);
        let signature = secret.sign(Note::TYPE, &body);
        let signed = Signed::<Note>::from_parts(body, secret.public(), signature);
        assert_eq!(signed.open(&secret.public(), &Strict), Err(OpenError::Malformed));
    }
}
