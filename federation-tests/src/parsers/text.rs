//! Short texts: names, ids, sizes, addresses, and tickets.

use std::fmt::Display;
use std::str::FromStr;

use certs::{MAX_ADDRESSES, MAX_TICKET_CHARS, Ticket};
use data_encoding::BASE64URL_NOPAD;
use model::{
    Bytes, Digest, HostName, MigrationId, PeerName, ProxyUri, PublicKey, SiteKey, VmId, VmName,
    limit,
};

/// A text that may be an id, a name, an address or a size.
///
/// # Panics
///
/// If a promise is broken.
pub fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for name in [
        same::<PeerName>(text).map(|name| name.to_string()),
        same::<HostName>(text).map(|name| name.to_string()),
        same::<VmName>(text).map(|name| name.to_string()),
    ]
    .into_iter()
    .flatten()
    {
        assert!(name.len() <= 63 && !name.contains(['/', '.', '\0']));
    }
    same::<VmId>(text);
    same::<MigrationId>(text);
    same::<SiteKey>(text);
    same::<PublicKey>(text);
    same::<Digest>(text);
    if let Some(uri) = same::<ProxyUri>(text) {
        assert!(text.len() <= limit::MAX_URI_CHARS);
        let (host, port) = uri.authority().rsplit_once(':').expect("an address and a port");
        assert!(!host.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    }
    if let Ok(size) = text.parse::<Bytes>() {
        assert_eq!(size.0.to_string().parse(), Ok(size));
        assert!(text.starts_with(|first: char| first.is_ascii_digit()));
    }
}

/// A value is printed as it was read, and read as it is printed.
fn same<T: FromStr + Display>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    assert_eq!(value.to_string(), text);
    Some(value)
}

/// A ticket: the input as its text, and as the content of one that is sealed properly.
///
/// # Panics
///
/// If a promise is broken.
pub fn ticket(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        judge(text);
    }
    judge(&sealed(data));
}

/// The text of a ticket with this content.
fn sealed(content: &[u8]) -> String {
    let check = blake3::derive_key("sojourn 2026 ticket check v1", content);
    format!("sojourn-ticket-v1.{}", BASE64URL_NOPAD.encode(&[content, &check[..8]].concat()))
}

fn judge(text: &str) {
    let Ok(ticket) = Ticket::parse(text) else { return };
    assert!(text.len() <= MAX_TICKET_CHARS);
    assert!((1..=MAX_ADDRESSES).contains(&ticket.addresses().len()));
    for address in ticket.addresses() {
        assert!(address.bytes().all(|byte| byte.is_ascii_graphic()));
        let (_, port) = address.rsplit_once(':').expect("an address and a port");
        assert!(port.parse::<u16>().is_ok_and(|port| port > 0));
    }
    assert_eq!(Ticket::parse(&ticket.to_string()).as_ref(), Ok(&ticket));
    assert!(format!("{ticket:?}").contains("TicketSecret(…)"));
}
