//! Sealing to a VM's sealing key: what only its primary is to read.
//!
//! HPKE in base mode (RFC 9180): DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. Values
//! are sealed with [`VALUES`] as the info, and the place of their block as associated data, so that
//! they cannot be put into another. What applications seal with `kpi-fs seal` has a form of its own
//! and is opened here too.

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use model::monitoring::SealingKey;
use model::{Epoch, VmId};

use crate::block::{Sealed, Value};

/// HPKE's info for values.
const VALUES: &[u8] = b"sojourn values seal 1";
/// HPKE's info for what `kpi-fs seal` makes, and what that begins with.
const FILE: (&[u8], &[u8]) = (b"sojourn kpi-fs seal 1", b"kpi-sealed-1\n");
/// Bytes of an encapsulated key.
const KEY: usize = 32;
/// Bytes that sealing adds.
pub const OVERHEAD: usize = KEY + 16;

/// The half of a VM's sealing key that stays with its primary.
#[derive(Clone)]
pub struct OpeningKey(<X25519HkdfSha256 as Kem>::PrivateKey);

/// It was sealed to another key or for another place, is damaged, or was never sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this was not sealed to the VM's key, or is damaged")]
pub struct NotOpened;

impl OpeningKey {
    /// The key that belongs to 32 random bytes, which are all that must be kept (RFC 9180, 7.1.3).
    pub fn from_seed(seed: &[u8; 32]) -> (Self, SealingKey) {
        let (secret, public) = X25519HkdfSha256::derive_keypair(seed);
        let public = public.to_bytes();
        let public = public.as_slice().try_into().expect("an X25519 key has 32 bytes");
        (Self(secret), SealingKey(public))
    }

    /// Opens the sealed values of a block.
    pub fn values(
        &self,
        (vm, epoch, first): (VmId, Epoch, u64),
        sealed: &Sealed,
    ) -> Result<Vec<Value>, NotOpened> {
        let text = self.open(VALUES, &place(vm, epoch, first), &sealed.bytes)?;
        opened(&text, sealed.count)
    }

    /// Opens a file that an application has sealed with `kpi-fs seal`; none if it has not.
    pub fn file(&self, content: &[u8]) -> Option<Result<Vec<u8>, NotOpened>> {
        let (info, magic) = FILE;
        content.strip_prefix(magic).map(|sealed| self.open(info, b"", sealed))
    }

    fn open(&self, info: &[u8], place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let (key, text) = sealed.split_at_checked(KEY).ok_or(NotOpened)?;
        let key = Deserializable::from_bytes(key).map_err(|_| NotOpened)?;
        hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.0,
            &key,
            info,
            text,
            place,
        )
        .map_err(|_| NotOpened)
    }
}

/// Reads so many values that were sealed. Everybody can seal to a public key.
pub fn opened(text: &[u8], count: u32) -> Result<Vec<Value>, NotOpened> {
    match postcard::take_from_bytes::<Vec<Value>>(text) {
        Ok((values, []))
            if values.len() == count as usize
                && values.iter().all(|value| value.reading.is_sound()) =>
        {
            Ok(values)
        }
        _ => Err(NotOpened),
    }
}

/// Seals values for their place; none if the key is no key.
pub fn values(
    key: &SealingKey,
    (vm, epoch, first): (VmId, Epoch, u64),
    values: &[Value],
) -> Option<Sealed> {
    let public = Deserializable::from_bytes(&key.0).ok()?;
    let text = postcard::to_stdvec(values).expect("values are plain data");
    let (key, sealed) = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &public,
        VALUES,
        &text,
        &place(vm, epoch, first),
    )
    .ok()?;
    let bytes = [key.to_bytes().as_slice(), &sealed].concat();
    Some(Sealed { count: u32::try_from(values.len()).ok()?, bytes })
}

fn place(vm: VmId, epoch: Epoch, first: u64) -> Vec<u8> {
    postcard::to_stdvec(&(vm, epoch, first)).expect("a place is plain data")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Reading;

    const PLACE: (VmId, Epoch, u64) = (VmId([7; 16]), Epoch(1), 9);

    #[test]
    fn sealed_values_open_with_their_key_at_their_place_and_nowhere_else() {
        let (key, public) = OpeningKey::from_seed(&[1; 32]);
        let all = vec![Value { specifier: 0, after_ms: 0, of: 1, reading: Reading::Integer(42) }];
        let sealed = values(&public, PLACE, &all).unwrap();
        assert_eq!(key.values(PLACE, &sealed).unwrap(), all);
        let (other, _) = OpeningKey::from_seed(&[2; 32]);
        assert_eq!(other.values(PLACE, &sealed), Err(NotOpened));
        let (vm, epoch, first) = PLACE;
        assert_eq!(key.values((vm, epoch, first + 1), &sealed), Err(NotOpened));
        assert_eq!(key.values((vm, epoch.next(), first), &sealed), Err(NotOpened));
        for at in 0..sealed.bytes.len() {
            let mut altered = sealed.clone();
            altered.bytes[at] ^= 1;
            assert_eq!(key.values(PLACE, &altered), Err(NotOpened), "byte {at}");
        }
        assert_eq!(key.values(PLACE, &Sealed { count: 2, ..sealed }), Err(NotOpened));
    }

    #[test]
    fn what_kpi_fs_has_sealed_in_the_guest_opens_at_the_primary() {
        let (key, public) = OpeningKey::from_seed(&[1; 32]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, data_encoding::HEXLOWER.encode(&public.0)).unwrap();
        let public = kpi_fs::seal::PublicKey::read(&file).unwrap();
        let sealed = kpi_fs::seal::seal(&public, &b"42\n"[..]).unwrap();
        assert_eq!(key.file(&sealed), Some(Ok(b"42\n".to_vec())));
        assert_eq!(key.file(b"42\n"), None, "never sealed");
        assert_eq!(key.file(&sealed[..sealed.len() - 1]), Some(Err(NotOpened)));
    }
}
