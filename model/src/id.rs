//! Identities: one type each, printed as lower-case hex, parsed strictly.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not an identity or a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text is not exactly the hex digits of the value's length.
    #[error("{what} is {length} hex digits, got {got:?}")]
    Hex {
        /// The kind of value that was wanted.
        what: &'static str,
        /// How many digits it has.
        length: usize,
        /// The text as given, cut to a printable length.
        got: String,
    },
    /// The text is not a name.
    #[error("{what} is 1 to 63 of a-z, 0-9 and '-', starting with a letter or digit, got {got:?}")]
    Name {
        /// The kind of name that was wanted.
        what: &'static str,
        /// The text as given, cut to a printable length.
        got: String,
    },
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Makes a newtype over `N` bytes that reads and prints as hex.
macro_rules! hex_bytes {
    ($(#[$doc:meta])* $name:ident, $length:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $length]);

        impl $name {
            /// Length in bytes.
            pub const LENGTH: usize = $length;

            /// Reads the value from exactly [`Self::LENGTH`] bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), self)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::id::ParseError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::id::decode_hex(text, $what).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $crate::id::serialize_bytes(&self.0, serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::id::deserialize_bytes(deserializer, $what).map(Self)
            }
        }
    };
}
pub(crate) use hex_bytes;

pub(crate) fn decode_hex<const N: usize>(
    text: &str,
    what: &'static str,
) -> Result<[u8; N], ParseError> {
    HEXLOWER
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| ParseError::Hex { what, length: 2 * N, got: cut(text) })
}

pub(crate) fn serialize_bytes<const N: usize, S: Serializer>(
    bytes: &[u8; N],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        serializer.serialize_str(&HEXLOWER.encode(bytes))
    } else {
        use serde::ser::SerializeTuple;
        let mut tuple = serializer.serialize_tuple(N)?;
        for byte in bytes {
            tuple.serialize_element(byte)?;
        }
        tuple.end()
    }
}

pub(crate) fn deserialize_bytes<'de, const N: usize, D: Deserializer<'de>>(
    deserializer: D,
    what: &'static str,
) -> Result<[u8; N], D::Error> {
    struct Raw<const N: usize>;
    impl<'de, const N: usize> de::Visitor<'de> for Raw<N> {
        type Value = [u8; N];
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{N} bytes")
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut bytes = [0; N];
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(at, &self))?;
            }
            Ok(bytes)
        }
    }
    if deserializer.is_human_readable() {
        let text = String::deserialize(deserializer)?;
        decode_hex(&text, what).map_err(de::Error::custom)
    } else {
        deserializer.deserialize_tuple(N, Raw::<N>)
    }
}

hex_bytes! {
    /// A VM, for its whole life: the first 16 bytes of BLAKE3 over its public key K0.
    /// The id proves itself to whoever sees K0, and names no site.
    VmId, 16, "a VM id"
}
hex_bytes! {
    /// One move of one VM from a Source to a Destination, from first request to final receipt.
    MigrationId, 16, "a migration id"
}
hex_bytes! {
    /// One Migration request as it spreads over the federation; a repeat is recognised by it.
    RequestId, 16, "a request id"
}
hex_bytes! {
    /// One edge of a VM's path, known only to the two sites at its ends.
    EdgeHandle, 16, "an edge handle"
}
hex_bytes! {
    /// One long action that a user asked this site for.
    OperationId, 16, "an operation id"
}

impl VmId {
    /// The id of the VM whose key K0 this is.
    pub fn of(k0: &crate::PublicKey) -> Self {
        let hash = blake3::hash(&k0.0);
        Self::from_slice(&hash.as_bytes()[..16]).expect("16 bytes of a longer hash")
    }
}

/// How often a VM changed owner. The highest epoch with a valid certificate owns the VM.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch that the next certificate names.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Makes a checked name type: what a DNS label may be, so that it is safe in paths and output.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                let ok = (1..=63).contains(&text.len())
                    && !text.starts_with('-')
                    && text
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
                ok.then(|| Self(text.to_owned()))
                    .ok_or_else(|| ParseError::Name { what: $what, got: cut(text) })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

name! {
    /// What this site calls one of its peers. Never sent to anyone else.
    PeerName, "a peer's name"
}
name! {
    /// What this site calls one of its hosts. Never sent to anyone else.
    HostName, "a host's name"
}
name! {
    /// What this site's users call a VM. Travels in the VM's descriptor.
    VmName, "a VM's name"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_its_text_and_refuses_everything_else() {
        let id = MigrationId([0xa5; 16]);
        assert_eq!(id.to_string().parse::<MigrationId>().unwrap(), id);
        for bad in ["", "a5", &"A5".repeat(16), &"a5".repeat(17), &"zz".repeat(16)] {
            assert!(bad.parse::<MigrationId>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_name_that_is_unsafe_in_a_path_is_refused() {
        for good in ["a", "web-1", "0x"] {
            assert_eq!(good.parse::<HostName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "-a", "A", "ä", "a b", "a\0", &"x".repeat(64)] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn ids_keep_their_value_in_text_and_in_binary_encodings() {
        let id = VmId([7; 16]);
        let binary = postcard::to_stdvec(&id).unwrap();
        assert_eq!(binary.len(), 16);
        assert_eq!(postcard::from_bytes::<VmId>(&binary).unwrap(), id);
    }
}
