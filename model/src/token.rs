//! Transfer tokens: opaque capabilities for one transfer of one VM.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::id::hex_bytes;

/// 32 random bytes whose meaning only the issuing site knows (papers/003, section III).
///
/// It prints as dots: a token never stands in a log, an error or a URL.
/// Where it must be recognised again, its [`TokenHash`] is kept instead.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub [u8; 32]);

impl Token {
    /// What may be stored of it.
    pub fn hash(&self) -> TokenHash {
        TokenHash(blake3::derive_key("sojourn 2026 transfer token hash v1", &self.0))
    }

    /// What a dialling end shows before the session is encrypted, so that the other end finds the
    /// right key to answer with. It tells nothing about the token.
    pub fn hint(&self) -> [u8; 16] {
        let key = blake3::derive_key("sojourn 2026 transfer session hint v1", &self.0);
        key[..16].try_into().expect("16 of 32 bytes")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

hex_bytes! {
    /// The stored form of a [`Token`].
    TokenHash, 32, "a token's hash"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_readable_from_its_debug_form_its_hash_or_its_hint() {
        let token = Token([0x5a; 32]);
        assert_eq!(format!("{token:?}"), "Token(…)");
        assert_ne!(token.hash().0, token.0);
        assert_ne!(token.hint()[..], token.0[..16]);
        assert_ne!(token.hint()[..], token.hash().0[..16]);
    }
}
