//! Offers: possible placements, and the ends of a transfer.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{EdgeHandle, PublicKey, Signature, Time, Token, limit};

/// What carries a transfer between two proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// QUIC (RFC 9000), over UDP.
    Quic,
    /// TLS 1.3 (RFC 8446), over several TCP connections.
    Tls,
}

impl Carrier {
    /// All, in the order in which they are tried.
    pub const ALL: [Self; 2] = [Self::Quic, Self::Tls];
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "quic",
            Self::Tls => "tls",
        })
    }
}

/// Where a transfer proxy listens: `sojourn://ADDRESS:PORT`, a UDP and a TCP port of that number;
/// `quic://` if UDP alone is open, `tls://` if TCP alone is. `dial-out` is one that takes no
/// connection from outside, and dials the other end. The only address that crosses a border.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ProxyUri(String);

/// A text is no proxy URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a proxy URI is sojourn://ADDRESS:PORT, quic://…, tls://… or dial-out, got {0:?}")]
pub struct UriError(String);

/// The text of a [`ProxyUri`] without an address.
const DIAL_OUT: &str = "dial-out";

impl ProxyUri {
    /// The URI of a proxy that takes no connection from outside.
    pub fn dial_out() -> Self {
        Self(DIAL_OUT.to_owned())
    }

    /// As an operator writes it: a URI, or only `ADDRESS:PORT`.
    pub fn configured(text: &str) -> Result<Self, UriError> {
        text.parse().or_else(|error| match text.contains("://") {
            true => Err(error),
            false => format!("sojourn://{text}").parse(),
        })
    }

    /// Whether nobody can dial it.
    pub fn is_dial_out(&self) -> bool {
        self.0 == DIAL_OUT
    }

    /// The URI of a proxy that listens at `address` with all carriers.
    pub fn at(address: std::net::SocketAddr) -> Self {
        Self(format!("sojourn://{address}"))
    }

    /// The URI of a proxy that listens at `address` with one carrier.
    pub fn over(carrier: Carrier, address: std::net::SocketAddr) -> Self {
        Self(format!("{carrier}://{address}"))
    }

    /// `ADDRESS:PORT`, to be resolved and dialled; empty where nobody can dial it.
    pub fn authority(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, authority)| authority)
    }

    /// The carriers that it listens with, in the order in which they are tried.
    pub fn carriers(&self) -> &'static [Carrier] {
        match self.0.split_once("://") {
            Some(("quic", _)) => &[Carrier::Quic],
            Some(("tls", _)) => &[Carrier::Tls],
            Some(_) => &Carrier::ALL,
            None => &[],
        }
    }
}

impl FromStr for ProxyUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text == DIAL_OUT {
            return Ok(Self::dial_out());
        }
        let error = || UriError(text.chars().take(limit::MAX_URI_CHARS).collect());
        let (scheme, authority) = text.split_once("://").ok_or_else(error)?;
        if !["sojourn", "quic", "tls"].contains(&scheme) {
            return Err(error());
        }
        let (host, port) = authority.rsplit_once(':').ok_or_else(error)?;
        let clean = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        let ok = text.len() <= limit::MAX_URI_CHARS
            && !host.is_empty()
            && host.chars().all(clean)
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0);
        ok.then(|| Self(text.to_owned())).ok_or_else(error)
    }
}

impl fmt::Display for ProxyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ProxyUri {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads [`ProxyUri::configured`] in configurations; for serde's `deserialize_with`.
pub fn configured_uri<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<ProxyUri, D::Error> {
    ProxyUri::configured(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// [`configured_uri`] where there may be none.
pub fn configured_uri_if_any<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ProxyUri>, D::Error> {
    configured_uri(deserializer).map(Some)
}

/// One end of a transfer, as the other end is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TransferEnd {
    /// Its proxy, or that of a site on the way to it, which relays.
    pub uri: ProxyUri,
    /// The capability, good for this transfer only.
    pub token: Token,
    /// The key that the proxy at `uri` shows if it is a relay; none where the end itself is there.
    /// The transfer is sealed within what a relay passes on.
    #[serde(default)]
    pub relay: Option<PublicKey>,
    /// The TLS raw public key that this end will show (RFC 7250), made for this transfer.
    pub transfer_key: PublicKey,
    /// The site's per-VM key.
    pub vm_key: PublicKey,
    /// `vm_key`'s signature over `transfer_key` as a payload of type [`TransferEnd::TYPE`].
    pub proof: Signature,
}

impl TransferEnd {
    /// The payload type of [`TransferEnd::proof`].
    pub const TYPE: &'static str = "application/vnd.sojourn.transfer-key.v1";

    /// Whether the per-VM key stands behind the transfer key, and there can be a secret behind
    /// every key that a proxy is to show: TLS libraries take signatures of keys of small order.
    pub fn is_proven(&self, verify: &dyn crate::key::Verify) -> bool {
        let mut shown = self.relay.iter().chain([&self.transfer_key]);
        shown.all(|key| verify.is_sound(key))
            && verify.verify(&self.vm_key, Self::TYPE, &self.transfer_key.0, &self.proof)
    }
}

/// On what terms a site takes a VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Terms {
    /// Price per hour, in thousandths of the contract's currency.
    pub price_milli: u64,
    /// What the provider owes for each time that a limit of service is broken, in thousandths of
    /// the contract's currency.
    pub penalty_milli: u64,
    /// Name of the capacity class, such as `standard`.
    pub class: String,
    /// Country (ISO 3166-1, two letters) that the VM would run in; empty if not told.
    pub country: String,
    /// When the offer ends by itself.
    pub expires: Time,
    /// Whether the VM can run there; false where it would only be stored.
    pub runs: bool,
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { price_milli, penalty_milli, class, country, .. } = self;
        write!(f, "class {class}")?;
        if !country.is_empty() {
            write!(f, " in {country}")?;
        }
        write!(f, ", {}.{:03} an hour", price_milli / 1000, price_milli % 1000)?;
        if *penalty_milli > 0 {
            let (whole, rest) = (penalty_milli / 1000, penalty_milli % 1000);
            write!(f, ", {whole}.{rest:03} for a broken limit")?;
        }
        if self.runs { Ok(()) } else { write!(f, ", stores only") }
    }
}

/// One possible placement, returned by a Migration request (papers/003, III-B).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Offer {
    /// The edge that the VM's path gets if the offer is taken. Replaced at each hop.
    pub edge: EdgeHandle,
    /// The Destination's end of the transfer.
    pub target: TransferEnd,
    /// Price, class, expiry.
    pub terms: Terms,
    /// The answering site's signature of the contract that this makes with who asked; none where
    /// a site asks itself. Replaced at each hop.
    pub proposal: Option<Signature>,
    /// How many sites further on the Destination is, as far as the answering peer says: 0 for
    /// the answering site itself.
    pub distance: u8,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecretKey;
    use crate::key::Strict;

    #[test]
    fn an_end_is_proven_by_its_owner_with_keys_that_there_can_be_secrets_to() {
        let [owner, shown] = [[1; 32], [2; 32]].map(|seed| SecretKey::from_seed(&seed));
        let end = |transfer_key: PublicKey, relay| TransferEnd {
            uri: ProxyUri::dial_out(),
            token: Token([3; 32]),
            relay,
            transfer_key,
            vm_key: owner.public(),
            proof: owner.sign(TransferEnd::TYPE, &transfer_key.0),
        };
        let (sound, weak) = (shown.public(), PublicKey([0; 32]));
        assert!(end(sound, None).is_proven(&Strict));
        assert!(end(sound, Some(sound)).is_proven(&Strict));
        assert!(!end(weak, None).is_proven(&Strict));
        assert!(!end(sound, Some(weak)).is_proven(&Strict));
        let other = TransferEnd { vm_key: sound, ..end(sound, None) };
        assert!(!other.is_proven(&Strict));
    }

    #[test]
    fn a_proxys_address_is_taken_in_its_plain_form_only() {
        let addresses =
            ["quic://192.0.2.1:7420", "tls://[2001:db8::1]:1", "sojourn://a.example:65535"];
        for good in addresses.into_iter().chain(["dial-out"]) {
            assert_eq!(good.parse::<ProxyUri>().unwrap().to_string(), good);
        }
        let long = format!("quic://{}:1", "a".repeat(limit::MAX_URI_CHARS));
        for bad in [
            "",
            "quic://",
            "quic://a",
            "quic://:1",
            "quic://a:0",
            "quic://a:+1",
            "quic://a:65536",
            "quic://a/b:1",
            "quic://a b:1",
            "http://a:1",
            &long,
        ] {
            assert!(bad.parse::<ProxyUri>().is_err(), "{bad:?} was taken");
        }
        let plain = ProxyUri::configured("192.0.2.1:7420").unwrap();
        assert_eq!(plain.to_string(), "sojourn://192.0.2.1:7420");
        assert!("192.0.2.1:7420".parse::<ProxyUri>().is_err(), "in configurations only");
        assert!(ProxyUri::configured("dial-out").unwrap().is_dial_out());
        assert!(ProxyUri::configured("udp://192.0.2.1:7420").is_err());
    }
}
