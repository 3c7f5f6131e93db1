//! Whether the addresses that peers are given lead to this site.
//!
//! A machine can only look from its own side: through a router that does not send packets back
//! inside, an address may lead here for everybody else. So a silence is told, and not called wrong;
//! what somebody else answers is.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use certs::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, lookup_host};
use tokio::time::timeout;

use super::Health;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// A datagram as small as a client's first may be (RFC 9000, section 14.1).
const DATAGRAM_BYTES: usize = 1200;

/// What answers at an address.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Here,
    SomebodyElse,
    Nobody(String),
}

/// Looks whether `address` leads to the control port of this site, which is free, or where its node
/// serves.
pub(super) async fn control(
    address: &str,
    free: Option<SocketAddr>,
    identity: Option<&Identity>,
) -> (Health, String) {
    let found = timeout(PATIENCE, async {
        match (free, identity) {
            (Some(listen), _) => through_tcp(address, listen).await,
            (None, Some(identity)) => serves(address, identity).await,
            (None, None) => Ok(Found::Nobody("the site has no identity".to_owned())),
        }
    });
    told(address, "TCP", found.await)
}

/// The same for the port of its proxy over UDP.
pub(super) async fn proxy(address: &str, free: Option<SocketAddr>) -> (Health, String) {
    let found = timeout(PATIENCE, async {
        match free {
            Some(listen) => through_udp(address, listen).await,
            None => speaks_quic(address).await,
        }
    });
    told(address, "UDP", found.await)
}

fn told(
    address: &str,
    over: &str,
    found: Result<io::Result<Found>, tokio::time::error::Elapsed>,
) -> (Health, String) {
    let why = match found {
        Ok(Ok(Found::Here)) => return (Health::Good, format!("{address} leads here ({over})")),
        Ok(Ok(Found::SomebodyElse)) => {
            let text = format!("{address} leads to somebody else ({over}); peers would go there");
            return (Health::Bad, text);
        }
        Ok(Ok(Found::Nobody(why))) => why,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer in {} s", PATIENCE.as_secs()),
    };
    let text = format!(
        "{address} does not lead here from this machine ({over}: {why}); peers need it: try from \
         outside, a router may not send packets back inside"
    );
    (Health::Note, text)
}

/// Listens, dials, and waits for a word of its own.
async fn through_tcp(address: &str, listen: SocketAddr) -> io::Result<Found> {
    let listener = TcpListener::bind(listen).await?;
    let word: [u8; 16] = rand::random();
    let say = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&word).await?;
        stream.shutdown().await?;
        // Somebody else might wait for more, or answer.
        let mut answer = [0; 1];
        let _ = stream.read(&mut answer).await;
        Ok::<_, io::Error>(Found::SomebodyElse)
    };
    let hear = async {
        loop {
            let (mut stream, _) = listener.accept().await?;
            let mut heard = [0; 16];
            let whole = timeout(PATIENCE, stream.read_exact(&mut heard)).await;
            if matches!(whole, Ok(Ok(_))) && heard == word {
                return Ok::<_, io::Error>(Found::Here);
            }
        }
    };
    tokio::select! {
        biased;
        heard = hear => heard,
        said = say => said,
    }
}

async fn through_udp(address: &str, listen: SocketAddr) -> io::Result<Found> {
    let here = UdpSocket::bind(listen).await?;
    let to = resolve(address).await?;
    let from = UdpSocket::bind(SocketAddr::new(unspecified(to), 0)).await?;
    let word: [u8; 16] = rand::random();
    from.send_to(&word, to).await?;
    let mut heard = [0; 64];
    loop {
        let (length, _) = here.recv_from(&mut heard).await?;
        if heard[..length] == word {
            return Ok(Found::Here);
        }
    }
}

/// Whether the node that serves there is this site's.
async fn serves(address: &str, identity: &Identity) -> io::Result<Found> {
    let key = identity.site_key();
    let tls = certs::client_config(identity, key).map_err(io::Error::other)?;
    let stream = TcpStream::connect(address).await?;
    let connector = tokio_rustls::TlsConnector::from(tls);
    match connector.connect(certs::server_name(&key), stream).await {
        Ok(_) => Ok(Found::Here),
        Err(error) if certs::Refusal::of(&error).is_some() => Ok(Found::SomebodyElse),
        Err(error) => Err(error),
    }
}

/// Whether something there speaks QUIC: a version that does not exist is answered with those that
/// do (RFC 9000, section 6).
async fn speaks_quic(address: &str) -> io::Result<Found> {
    let to = resolve(address).await?;
    let from = UdpSocket::bind(SocketAddr::new(unspecified(to), 0)).await?;
    from.connect(to).await?;
    let mut packet = [0; DATAGRAM_BYTES];
    // A long header, a version that is reserved for this, and two connection ids of 8 bytes.
    packet[..6].copy_from_slice(&[0xc0, 0x0a, 0x1a, 0x2a, 0x3a, 8]);
    packet[6..14].copy_from_slice(&rand::random::<[u8; 8]>());
    packet[14] = 8;
    packet[15..23].copy_from_slice(&rand::random::<[u8; 8]>());
    from.send(&packet).await?;
    let mut answer = [0; DATAGRAM_BYTES];
    let length = from.recv(&mut answer).await?;
    let negotiates = length >= 7 && answer[0] & 0x80 != 0 && answer[1..5] == [0; 4];
    Ok(if negotiates { Found::Here } else { Found::SomebodyElse })
}

async fn resolve(address: &str) -> io::Result<SocketAddr> {
    let unknown = || io::Error::other("the name has no address");
    lookup_host(address).await?.next().ok_or_else(unknown)
}

fn unspecified(like: SocketAddr) -> std::net::IpAddr {
    match like {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}
