//! What the kernel knows of a TCP connection, asked through its socket diagnostics (sock_diag(7)):
//! the same as the option `TCP_INFO`, which no safe interface reads.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `SOCK_DIAG_BY_FAMILY`, of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`, of linux/netlink.h: without `NLM_F_DUMP` one socket is asked about.
const REQUEST: u16 = 1;
/// `INET_DIAG_INFO`, of linux/inet_diag.h: an attribute with a `struct tcp_info`.
const INFO: u16 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// Sizes of `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const HEADER: usize = 16;
const QUESTION: usize = 56;
const MESSAGE: usize = 72;
/// An answer is far below: one socket with one attribute.
const MAX_ANSWER_BYTES: usize = 4096;

/// What a connection that sends data went through so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// Segments with data, those sent again included.
    pub(super) sent: u32,
    /// Segments that were sent again.
    pub(super) again: u32,
    /// The round trip of late, and the shortest.
    pub(super) trip: Duration,
    pub(super) least_trip: Duration,
}

/// A way to ask the kernel; in the network namespace of whoever opened it.
pub(super) struct Diag(OwnedFd);

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::SOCK_DIAG),
        )?;
        Ok(Self(socket))
    }

    /// Asks about the connection between these addresses. The kernel answers within the call.
    pub(super) fn ask(&self, own: SocketAddr, peer: SocketAddr) -> io::Result<Sample> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.0, &question(own, peer), SendFlags::empty(), &kernel)?;
        let mut answer = [0; MAX_ANSWER_BYTES];
        let (length, _) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        sample(&answer[..length]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

fn question(own: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let length = u32::try_from(HEADER + QUESTION).expect("72 bytes");
    let mut bytes = Vec::with_capacity(HEADER + QUESTION);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    // Sequence number and port: nobody else asks over this socket.
    bytes.extend([0; 8]);
    let family = if own.is_ipv4() { AF_INET } else { AF_INET6 };
    bytes.extend([family, IPPROTO_TCP, 1 << (INFO - 1), 0]);
    // In any state.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(own.port().to_be_bytes());
    bytes.extend(peer.port().to_be_bytes());
    for address in [own.ip(), peer.ip()] {
        match address {
            IpAddr::V4(v4) => bytes.extend([&v4.octets()[..], &[0; 12]].concat()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    // Any interface, any cookie.
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

/// None if it is an error, or tells nothing of segments: kernels before 4.6.
fn sample(answer: &[u8]) -> Option<Sample> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    let mut rest = answer.get(HEADER + MESSAGE..).filter(|_| kind == BY_FAMILY)?;
    let info = loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let body = rest.get(4..length)?;
        if kind == INFO {
            break body;
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    };
    // Where they stand in `struct tcp_info`, of linux/tcp.h.
    let number = |at: usize| Some(u32::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    Some(Sample {
        trip: Duration::from_micros(number(68)?.into()),
        again: number(100)?,
        least_trip: Duration::from_micros(number(148)?.into()),
        sent: number(156)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_kernel_tells_of_a_connection_that_sent_and_of_none_that_is_not_there() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                assert!(address.starts_with('['), "a machine without IPv6 may be, not without v4");
                continue;
            };
            let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            let (own, peer) = (near.local_addr().unwrap(), near.peer_addr().unwrap());
            let diag = Diag::open().unwrap();
            for n in 1..=3 {
                near.write_all(&[7; 1000]).unwrap();
                far.read_exact(&mut [0; 1000]).unwrap();
                let sample = diag.ask(own, peer).unwrap();
                assert_eq!((sample.sent, sample.again), (n, 0), "{sample:?}");
                assert!(sample.trip >= sample.least_trip && sample.trip.as_micros() > 0);
            }
            let nobody = SocketAddr::new(peer.ip(), 1);
            assert!(diag.ask(own, nobody).is_err());
            assert!(diag.ask(own, peer).is_ok(), "the next answer is not the one before");
        }
    }

    #[test]
    fn an_answer_that_is_cut_short_is_none() {
        let mut answer = vec![0; HEADER + MESSAGE];
        answer[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        answer.extend([164_u16.to_ne_bytes(), INFO.to_ne_bytes()].concat());
        answer.extend([1; 160]);
        assert_eq!(sample(&answer).unwrap().sent, 0x0101_0101);
        for end in 0..answer.len() {
            assert_eq!(sample(&answer[..end]), None);
        }
    }
}
