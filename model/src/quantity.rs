//! Quantities with their units.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// In MiB, rounded up.
    pub const fn to_mib(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 { write!(f, "{} B", self.0) } else { write!(f, "{value:.1} {}", UNITS[unit]) }
    }
}

/// A text is no number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a size is a whole number with B, K, M, G or T (powers of 1024), such as 512M, got {0:?}")]
pub struct SizeError(String);

impl FromStr for Bytes {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = || SizeError(text.chars().take(40).collect());
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor: u64 = match &text[digits.len()..] {
            "" | "B" => 1,
            "K" | "KiB" => 1 << 10,
            "M" | "MiB" => 1 << 20,
            "G" | "GiB" => 1 << 30,
            "T" | "TiB" => 1 << 40,
            _ => return Err(error()),
        };
        // The library's reader takes a sign, too.
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = digits.parse().ok().filter(|_| plain).ok_or_else(error)?;
        number.checked_mul(factor).map(Self).ok_or_else(error)
    }
}

/// What a VM needs of a host, or a host has for VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory of the guest.
    pub memory: Bytes,
}

impl Resources {
    /// Whether `self` has room for `wanted`.
    pub fn fits(&self, wanted: &Self) -> bool {
        self.cpus >= wanted.cpus && self.memory >= wanted.memory
    }

    /// What is left when `used` is taken away; nothing is ever negative.
    #[must_use]
    pub fn minus(&self, used: &Self) -> Self {
        Self {
            cpus: self.cpus.saturating_sub(used.cpus),
            memory: Bytes(self.memory.0.saturating_sub(used.memory.0)),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            cpus: self.cpus.saturating_add(other.cpus),
            memory: Bytes(self.memory.0.saturating_add(other.memory.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit_and_refused_without_sense() {
        assert_eq!("512M".parse(), Ok(Bytes::mib(512)));
        assert_eq!("1".parse(), Ok(Bytes(1)));
        for bad in ["", "M", "1.5G", "-1", "+1", "1X", "99999999999999999999", "20000000T"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?} was taken");
        }
    }
}
