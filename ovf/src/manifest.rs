//! The manifest of a package: a digest for each file (DSP0243, 5.1).
//!
//! Lines are `SHA256(name)= hex`, with spaces as the tools like them.
//! SHA-1 is read because tools still write it; it protects against damage, not against malice,
//! and neither does any digest of a manifest that nobody signed.

use std::collections::BTreeMap;
use std::fmt;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use sha1::Sha1;
use sha2::digest::DynDigest;
use sha2::{Sha256, Sha512};

use crate::fault::cut;
use crate::limit;

/// A manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is too big.
    #[error("it has more than {max} bytes", max = limit::MAX_MANIFEST_BYTES)]
    TooLarge,
    /// It is not text.
    #[error("it is not UTF-8")]
    NotText,
    /// A line cannot be read.
    #[error("line {line} is not \"ALGORITHM(file)= digest\": {text:?}")]
    Line {
        /// The line, counted from 1.
        line: usize,
        /// What it holds, cut to a printable length.
        text: String,
    },
    /// An algorithm is not known.
    #[error("line {line} names the algorithm {name:?}; SHA1, SHA256 and SHA512 are known")]
    Algorithm {
        /// The line, counted from 1.
        line: usize,
        /// The algorithm.
        name: String,
    },
    /// Too many lines.
    #[error("it names more than {max} files", max = limit::MAX_FILES)]
    TooMany,
    /// A file is named twice.
    #[error("it names {0:?} twice")]
    Duplicate(String),
    /// A named file is not in the package.
    #[error("it names {0:?}, which is not in the package")]
    NoSuchFile(String),
    /// A file of the package is not named.
    #[error("it has no digest for {0:?}")]
    Unlisted(String),
}

/// A digest in the making.
pub(crate) type Hasher = Box<dyn DynDigest + Send>;

/// A digest algorithm of manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

impl Algorithm {
    fn of_name(name: &str) -> Option<Self> {
        match name.to_ascii_uppercase().as_str() {
            "SHA1" => Some(Self::Sha1),
            // The second form is what newer `openssl dgst` writes.
            "SHA256" | "SHA2-256" => Some(Self::Sha256),
            "SHA512" | "SHA2-512" => Some(Self::Sha512),
            _ => None,
        }
    }

    pub(crate) fn hasher(self) -> Hasher {
        match self {
            Self::Sha1 => Box::new(Sha1::default()),
            Self::Sha256 => Box::new(Sha256::default()),
            Self::Sha512 => Box::new(Sha512::default()),
        }
    }
}

/// The digest that a file must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) algorithm: Algorithm,
    digest: Vec<u8>,
}

impl Expected {
    /// Whether the bytes that `hasher` took in are the right ones.
    pub(crate) fn is_met(&self, hasher: Hasher) -> bool {
        // Not secret: the digests stand in the package.
        *hasher.finalize() == *self.digest
    }
}

/// Reads a manifest: what each file must have.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<String, Expected>, ManifestError> {
    let mut files = BTreeMap::new();
    for (at, text) in text.lines().enumerate() {
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        let line = at + 1;
        let bad = || ManifestError::Line { line, text: cut(text) };
        let (algorithm, rest) = text.split_once('(').ok_or_else(bad)?;
        let (name, digest) = rest.rsplit_once(')').ok_or_else(bad)?;
        let digest = digest.trim_start().strip_prefix('=').ok_or_else(bad)?.trim();
        let algorithm = Algorithm::of_name(algorithm.trim())
            .ok_or_else(|| ManifestError::Algorithm { line, name: cut(algorithm.trim()) })?;
        let digest = HEXLOWER_PERMISSIVE.decode(digest.as_bytes()).map_err(|_| bad())?;
        if digest.len() != algorithm.hasher().output_size() {
            return Err(bad());
        }
        if files.insert(name.to_owned(), Expected { algorithm, digest }).is_some() {
            return Err(ManifestError::Duplicate(cut(name)));
        }
        if files.len() > limit::MAX_FILES {
            return Err(ManifestError::TooMany);
        }
    }
    Ok(files)
}

/// One line of a manifest that we write.
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) sha256: &'a [u8],
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SHA256({})= {}", self.name, HEXLOWER.encode(self.sha256))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_read_in_the_spellings_of_the_tools() {
        let text = format!(
            "SHA256(a.ovf)= {}\r\nSHA1 (b (1).vmdk) = {}\n\nSHA2-512(c)={}\n",
            "AB".repeat(32),
            "00".repeat(20),
            "ff".repeat(64),
        );
        let files = parse(&text).unwrap();
        assert_eq!(files["a.ovf"].algorithm, Algorithm::Sha256);
        assert_eq!(files["a.ovf"].digest, [0xab; 32]);
        assert_eq!(files["b (1).vmdk"].algorithm, Algorithm::Sha1);
        assert_eq!(files["c"].algorithm, Algorithm::Sha512);
    }

    #[test]
    fn a_manifest_that_cannot_be_read_is_refused() {
        let good = format!("SHA256(a)= {}\n", "00".repeat(32));
        for bad in [
            "hello",
            "SHA256(a)",
            "SHA256(a)= xyz",
            "SHA256(a)= 00",
            "MD5(a)= 00000000000000000000000000000000",
            &format!("SHA256 a = {}", "00".repeat(32)),
            &good.repeat(2),
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
        assert!(parse(&good).is_ok());
    }
}
