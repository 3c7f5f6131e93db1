//! BLAKE3 digests.

use crate::id::hex_bytes;

hex_bytes! {
    /// A BLAKE3 digest of 32 bytes.
    Digest, 32, "a digest"
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}
