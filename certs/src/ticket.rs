//! Tickets: how two sites come to know each other, carried from one to the other by people.
//!
//! ```text
//! sojourn-ticket-v1.<base64url, no padding>
//!                    └─ postcard(site, addresses, site key, secret, expiry) ‖ check (8 bytes)
//! ```
//! The check is no protection against forgery: whoever can give a user a ticket can give them any
//! ticket. It tells a slip of the hand from a ticket that the inviting site refused.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use model::{PeerName, SiteKey, Time};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::identity::random_seed;

/// Addresses in one ticket.
pub const MAX_ADDRESSES: usize = 8;
/// Characters of one address: a DNS name, a colon and a port.
const MAX_ADDRESS_CHARS: usize = 253 + 6;
/// Characters of a ticket's text.
pub const MAX_TICKET_CHARS: usize = 4096;

const KIND: &str = "sojourn-ticket-";
const VERSION: &str = "v1";
const CHECK_BYTES: usize = 8;

/// What a site that was invited shows to prove it. 32 random bytes, wiped on drop.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TicketSecret([u8; 32]);

impl TicketSecret {
    /// A new one; none if the system has no random bytes.
    pub fn random() -> Option<Self> {
        random_seed().map(|seed| Self(*seed))
    }

    /// The secret that arrived as these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be sent to the inviting site over a channel that is pinned to its key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What the inviting site stores of it.
    pub fn hash(&self) -> SecretHash {
        SecretHash(blake3::derive_key("sojourn 2026 ticket secret hash v1", &self.0))
    }
}

impl fmt::Debug for TicketSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketSecret(…)")
    }
}

impl Drop for TicketSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The stored form of a [`TicketSecret`]: it recognises the secret and does not tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash(pub [u8; 32]);

/// An invitation to peer with one site: single use and expiring, which that site sees to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    site: PeerName,
    addresses: Vec<String>,
    site_key: SiteKey,
    secret: TicketSecret,
    expires: Time,
}

/// Why a text or its parts are no ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It is something else.
    #[error("this is no ticket: a ticket starts with {KIND}{VERSION} and a dot")]
    Prefix,
    /// It was made by a newer or older version.
    #[error(
        "this is a ticket of version {0:?}, and this program reads {VERSION}; update the older side"
    )]
    Version(String),
    /// Characters are missing, changed or too many.
    #[error("the ticket is cut off or altered; copy it again, whole and on one line")]
    Damaged,
    /// It was sealed properly, but what it holds is no ticket.
    #[error("the ticket's content is not valid; ask the inviting site for a new one")]
    Malformed,
    /// A wrong number of addresses.
    #[error("a ticket has 1 to {MAX_ADDRESSES} addresses, got {0}")]
    Addresses(usize),
    /// An address that cannot be dialled.
    #[error("an address is HOST:PORT, got {0:?}")]
    Address(String),
}

impl Ticket {
    /// An invitation by the site that calls itself `site`, is reached at `addresses`
    /// (`HOST:PORT`, in the order to be tried) and has `site_key`.
    pub fn new(
        site: PeerName,
        addresses: Vec<String>,
        site_key: SiteKey,
        secret: TicketSecret,
        expires: Time,
    ) -> Result<Self, TicketError> {
        let ticket = Self { site, addresses, site_key, secret, expires };
        ticket.check().map(|()| ticket)
    }

    /// Reads a ticket. Whether it is still good is for the caller, who has a clock.
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        let rest = text.strip_prefix(KIND).ok_or(TicketError::Prefix)?;
        let (version, body) = rest.split_once('.').ok_or(TicketError::Prefix)?;
        if version != VERSION {
            return Err(TicketError::Version(version.chars().take(20).collect()));
        }
        if text.len() > MAX_TICKET_CHARS {
            return Err(TicketError::Damaged);
        }
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| TicketError::Damaged)?;
        let bytes = Zeroizing::new(bytes);
        let (body, sum) = bytes.split_last_chunk().ok_or(TicketError::Damaged)?;
        if check_of(body) != *sum {
            return Err(TicketError::Damaged);
        }
        match postcard::take_from_bytes::<Self>(body) {
            Ok((ticket, [])) => ticket.check().map(|()| ticket),
            _ => Err(TicketError::Malformed),
        }
    }

    /// What the inviting site suggests to call it.
    pub fn site(&self) -> &PeerName {
        &self.site
    }

    /// Where it is reached, `HOST:PORT`, in the order to be tried.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Its identity, to be pinned before a byte is said.
    pub fn site_key(&self) -> SiteKey {
        self.site_key
    }

    /// What proves that its bearer was invited.
    pub fn secret(&self) -> &TicketSecret {
        &self.secret
    }

    /// When it ends.
    pub fn expires(&self) -> Time {
        self.expires
    }

    fn check(&self) -> Result<(), TicketError> {
        if !(1..=MAX_ADDRESSES).contains(&self.addresses.len()) {
            return Err(TicketError::Addresses(self.addresses.len()));
        }
        match self.addresses.iter().find(|address| !is_address(address)) {
            Some(bad) => Err(TicketError::Address(bad.chars().take(80).collect())),
            None => Ok(()),
        }
    }
}

/// `NAME:PORT`, `1.2.3.4:PORT` or `[IPV6]:PORT`, and nothing that could harm a terminal.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_ok = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        }
    };
    let port_ok =
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
    text.len() <= MAX_ADDRESS_CHARS && host_ok && port_ok
}

fn check_of(body: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = blake3::derive_key("sojourn 2026 ticket check v1", body);
    hash[..CHECK_BYTES].try_into().expect("8 of 32 bytes")
}

impl fmt::Display for Ticket {
    /// The ticket's text, secret included: for the one who is invited, and for no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Zeroizing::new(postcard::to_stdvec(self).expect("tickets are plain data"));
        let sum = check_of(&bytes);
        bytes.extend_from_slice(&sum);
        let body = Zeroizing::new(BASE64URL_NOPAD.encode(&bytes));
        write!(f, "{KIND}{VERSION}.{}", *body)
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(addresses: &[&str]) -> Result<Ticket, TicketError> {
        Ticket::new(
            "alpha".parse().unwrap(),
            addresses.iter().map(|a| a.to_string()).collect(),
            SiteKey([0xa7; 32]),
            TicketSecret([0x5c; 32]),
            Time(1_800_000_000_000),
        )
    }

    fn ticket() -> Ticket {
        with(&["node.example.org:7100", "192.0.2.1:7100", "[2001:db8::1]:7100"]).unwrap()
    }

    #[test]
    fn a_ticket_reads_back_from_its_text() {
        let text = ticket().to_string();
        assert!(text.starts_with("sojourn-ticket-v1."), "{text}");
        assert_eq!(text.parse(), Ok(ticket()));
    }

    #[test]
    fn the_text_of_a_ticket_of_version_1_stays_readable() {
        let kept = "sojourn-ticket-v1.BWFscGhhAxVub2RlLmV4YW1wbGUub3JnOjcxMDAOMTkyLjAuMi4xOjcxMDAS\
                    WzIwMDE6ZGI4OjoxXTo3MTAwp6enp6enp6enp6enp6enp6enp6enp6enp6enp6enp6dcXFxcXFxcXFxc\
                    XFxcXFxcXFxcXFxcXFxcXFxcXFxcXICg8cKxNG6v4uMuPdsw";
        assert_eq!(Ticket::parse(kept), Ok(ticket()));
        assert_eq!(ticket().to_string(), kept);
    }

    #[test]
    fn every_altered_character_is_noticed() {
        let text = ticket().to_string();
        for at in 0..text.len() {
            for other in "aA0-_.= \u{e4}zBQgw".chars().filter(|c| !text[at..].starts_with(*c)) {
                let altered = format!("{}{other}{}", &text[..at], &text[at + 1..]);
                assert!(Ticket::parse(&altered).is_err(), "{other:?} at {at} was taken");
            }
        }
    }

    #[test]
    fn every_cut_and_every_addition_is_noticed() {
        let text = ticket().to_string();
        for length in 0..text.len() {
            assert!(Ticket::parse(&text[..length]).is_err());
            assert!(Ticket::parse(&text[text.len() - length..]).is_err());
        }
        assert_eq!(Ticket::parse(&text[..text.len() - 1]), Err(TicketError::Damaged));
        for more in ["A", "AA", "AAAA", "\n", " ", "="] {
            assert_eq!(Ticket::parse(&format!("{text}{more}")), Err(TicketError::Damaged));
        }
        let long = format!("{text}{}", "A".repeat(MAX_TICKET_CHARS));
        assert_eq!(Ticket::parse(&long), Err(TicketError::Damaged));
    }

    #[test]
    fn what_is_wrong_with_a_text_is_told_apart() {
        assert_eq!(Ticket::parse("hello"), Err(TicketError::Prefix));
        assert_eq!(Ticket::parse("sojourn-ticket-v1"), Err(TicketError::Prefix));
        let newer = ticket().to_string().replacen("v1", "v2", 1);
        assert_eq!(Ticket::parse(&newer), Err(TicketError::Version("v2".to_owned())));
    }

    #[test]
    fn a_well_sealed_ticket_with_bad_content_is_refused() {
        let seal = |body: &[u8]| {
            let bytes = [body, &check_of(body)].concat();
            format!("{KIND}{VERSION}.{}", BASE64URL_NOPAD.encode(&bytes))
        };
        let body = postcard::to_stdvec(&ticket()).unwrap();
        assert!(Ticket::parse(&seal(&body)).is_ok());
        assert_eq!(Ticket::parse(&seal(b"")), Err(TicketError::Malformed));
        assert_eq!(Ticket::parse(&seal(&[&body[..], b"x"].concat())), Err(TicketError::Malformed));
        let mut nowhere = ticket();
        nowhere.addresses = vec!["host:1\u{1b}[2J".to_owned()];
        let nowhere = postcard::to_stdvec(&nowhere).unwrap();
        assert!(matches!(Ticket::parse(&seal(&nowhere)), Err(TicketError::Address(_))));
    }

    #[test]
    fn an_address_that_cannot_be_dialled_is_refused() {
        let long = format!("{}:1", "a".repeat(MAX_ADDRESS_CHARS));
        for bad in
            ["", "host", ":1", "host:0", "host:+1", "host:65536", "a b:1", "::1:1", "[x]:1", &long]
        {
            assert!(matches!(with(&[bad]), Err(TicketError::Address(_))), "{bad:?} was taken");
        }
        assert_eq!(with(&[]), Err(TicketError::Addresses(0)));
        assert_eq!(with(&["a:1"; MAX_ADDRESSES + 1]), Err(TicketError::Addresses(9)));
    }

    #[test]
    fn the_largest_ticket_fits_its_limit() {
        let address = format!("{}:65535", "a".repeat(253));
        let largest = with(&[address.as_str(); MAX_ADDRESSES]).unwrap();
        assert_eq!(largest.to_string().parse(), Ok(largest));
    }

    #[test]
    fn the_secret_is_not_readable_from_the_debug_form_or_its_hash() {
        let debug = format!("{:?}", ticket());
        assert!(debug.contains("TicketSecret(…)"), "{debug}");
        assert!(!debug.contains("5c5c") && !debug.contains("92, 92"), "{debug}");
        assert_ne!(ticket().secret().hash().0, *ticket().secret().as_bytes());
        assert_ne!(TicketSecret::random().unwrap(), TicketSecret::random().unwrap());
    }
}
