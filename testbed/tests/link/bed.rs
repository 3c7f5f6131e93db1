//! What the tests of links share.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};
use testbed::{Emulator, Settings, Side};

/// How long anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Bytes of a ping's header.
const ICMP: usize = 8;

/// A link, or nothing and the reason where the machine has no namespaces to give; that is a failure
/// where `SOJOURN_REQUIRE` names `netns`.
pub(crate) fn emulator(settings: Settings) -> Option<Emulator> {
    Emulator::new(settings).map_err(|why| missing(&why)).ok()
}

/// Why a test cannot run here.
pub(crate) fn missing(why: &str) {
    let required = std::env::var("SOJOURN_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == "netns"), "netns is required: {why}");
    eprintln!("skipped: {why}");
}

/// Waits until something holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(LOOK);
    }
}

/// A UDP socket on a side, which waits for packets no longer than the deadline.
pub(crate) fn udp(emulator: &Emulator, side: Side) -> UdpSocket {
    let made = emulator.side(side).inside(|| UdpSocket::bind((side.address(), 0)));
    let socket = made.unwrap().unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    // What is measured is the link, and not how soon a busy machine lets the test read.
    set_socket_recv_buffer_size_force(&socket, 64 << 20).unwrap();
    socket
}

/// Sends datagrams of this size that begin with these numbers, at this rate of IP packets in bits
/// per second, or at once.
pub(crate) fn send(
    from: &UdpSocket,
    to: &UdpSocket,
    numbers: Range<u32>,
    size: usize,
    rate: Option<u64>,
) {
    let to = to.local_addr().unwrap();
    let pause = rate.map_or(0, |rate| (size as u64 + 28) * 8 * 1_000_000_000 / rate);
    let mut due = Instant::now();
    let mut content = vec![0; size];
    for number in numbers {
        while Instant::now() < due {
            std::thread::yield_now();
        }
        due += Duration::from_nanos(pause);
        content[..4].copy_from_slice(&number.to_be_bytes());
        from.send_to(&content, to).unwrap();
    }
}

/// The numbers that the next datagrams begin with.
pub(crate) fn numbers(to: &UdpSocket, count: u64) -> impl Iterator<Item = u32> {
    (0..count).map(|_| {
        let mut content = [0; 2_000];
        let length = to.recv(&mut content).unwrap();
        assert!(length >= 4);
        u32::from_be_bytes(content[..4].try_into().unwrap())
    })
}

/// A TCP connection from A to B: its two ends.
pub(crate) fn tcp(emulator: &Emulator) -> (TcpStream, TcpStream) {
    let listener = emulator.side(Side::B).inside(|| TcpListener::bind((Side::B.address(), 0)));
    let listener = listener.unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let connected =
        emulator.side(Side::A).inside(|| TcpStream::connect_timeout(&address, DEADLINE));
    let ends = (connected.unwrap().unwrap(), listener.accept().unwrap().0);
    for end in [&ends.0, &ends.1] {
        end.set_read_timeout(Some(DEADLINE)).unwrap();
        end.set_write_timeout(Some(DEADLINE)).unwrap();
    }
    ends
}

/// Round trips of pings from A to B, which B's kernel answers, in ascending order.
pub(crate) fn round_trips(emulator: &Emulator, count: u16) -> Vec<Duration> {
    let raw = || {
        let kind = (AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP));
        rustix::net::socket(kind.0, kind.1, kind.2).unwrap()
    };
    let socket = emulator.side(Side::A).inside(raw).unwrap();
    rustix::net::connect(&socket, &SocketAddr::new(IpAddr::V4(Side::B.address()), 0)).unwrap();
    set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE)).unwrap();
    let mut times = Vec::new();
    for number in 0..count {
        let request = ping(number);
        let begun = Instant::now();
        rustix::net::send(&socket, &request, SendFlags::empty()).unwrap();
        let mut answer = [0; 128];
        loop {
            let length = rustix::net::recv(&socket, &mut answer, RecvFlags::empty()).unwrap().0;
            // Behind an IP header of 20 bytes, an echo's answer is the request with another type.
            let icmp = &answer[20..length];
            if icmp[0] == 0 && icmp[4..] == request[4..] {
                break;
            }
        }
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times
}

/// An echo request (RFC 792) with the 56 bytes that `ping` sends.
fn ping(number: u16) -> Vec<u8> {
    let mut packet = vec![0; ICMP + 56];
    packet[0] = 8;
    packet[6..8].copy_from_slice(&number.to_be_bytes());
    let words = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet
}
