//! What carries a session: QUIC over one UDP port, or TLS over several TCP connections.
//!
//! Both offer the same: a [`Port`] that accepts and dials, a [`Link`] (a session), and [`Stream`]s
//! of bytes within it, of which the dialler opens the first for control and the others as lanes.
//! Nothing outside this module knows quinn or a socket.

pub(crate) mod pipe;
pub(crate) mod quic;
pub(crate) mod tcp;

mod congestion;
mod reset;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use model::{Carrier as Kind, PublicKey};

use crate::tls;

pub use reset::ResetKey;
pub use tcp::Doorstep;

/// Streams beside the control stream that a session may have.
pub(crate) const MAX_LANES: usize = 16;

/// A session from which nothing comes for so long has ended.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(12);

/// How often a quiet session says that it is there.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// A stream on which data is due and nothing comes for so long has stalled.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Ports that are tried until one is free for UDP and TCP alike, where any will do.
const MAX_PORTS: usize = 64;

/// Why a session was closed, as one end tells the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// This proxy goes away; the transfer may go on later. Also what a dropped session says.
    Away,
    /// The transfer is over.
    Done,
    /// Key, hint or token do not belong together, or there is no such transfer.
    Refused,
    /// A newer session of the same transfer took over.
    Superseded,
    /// One end gave up; it said why on the control stream.
    Broken,
}

impl Code {
    const ALL: [Self; 5] = [Self::Away, Self::Done, Self::Refused, Self::Superseded, Self::Broken];

    fn text(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Superseded => "superseded",
            Self::Broken => "broken",
        }
    }
}

/// Why a session is over, as seen from here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Closed {
    /// The other end closed it.
    #[error("{}", .0.text())]
    ByPeer(Code),
    /// This end closed it.
    #[error("closed here")]
    Here,
    /// It could not be made or held.
    #[error("session lost: {0}")]
    Lost(String),
}

/// The stream, or the session as a whole, ended; the [`Link`] tells more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut;

/// Whether silence on a stream means that it stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stall {
    /// Silence is normal.
    Never,
    /// Data is due: silence for `STALL_TIMEOUT` cuts the stream.
    Watched,
}

/// Where a proxy listens and dials from: a UDP and a TCP port of the same number.
pub(crate) struct Port {
    quic: quic::Port,
    tcp: tcp::Port,
}

impl Port {
    /// Opens the UDP port, and the TCP port unless somebody else has that. Must be called within a
    /// tokio runtime.
    pub(crate) fn bind(
        listen: SocketAddr,
        has_tcp: bool,
        tls: &tls::Tls,
        reset: &ResetKey,
    ) -> io::Result<Self> {
        let mut tries = if listen.port() == 0 { MAX_PORTS } else { 1 };
        loop {
            let quic = quic::Port::bind(listen, tls.clone(), reset.clone())?;
            tries -= 1;
            match tcp::Port::bind(has_tcp.then(|| quic.address()), tls.clone()) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
                tcp => return Ok(Self { quic, tcp: tcp? }),
            }
        }
    }

    /// Where what came in at a TCP port of somebody else is handed over.
    pub(crate) fn doorstep(&self) -> Doorstep {
        self.tcp.doorstep()
    }

    /// Where the ports are.
    pub(crate) fn address(&self) -> SocketAddr {
        self.quic.address()
    }

    /// Waits for the next one to dial; none once the ports are closed.
    pub(crate) async fn accept(&self) -> Option<Attempt> {
        tokio::select! {
            attempt = self.quic.accept() => attempt.map(Attempt::Quic),
            attempt = self.tcp.accept() => attempt.map(Attempt::Tcp),
        }
    }

    /// Makes a session with the proxy at `address`, which must show `peer`.
    pub(crate) async fn dial(
        &self,
        kind: Kind,
        address: SocketAddr,
        key: tls::TransferKey,
        peer: &PublicKey,
        hint: &tls::Hint,
    ) -> Result<Link, Closed> {
        match kind {
            Kind::Quic => self.quic.dial(address, key, peer, hint).await.map(Link::Quic),
            Kind::Tls => self.tcp.dial(address, key, peer, hint).await.map(Link::Tcp),
        }
    }

    /// Makes a session of connections that `way` makes, sealed in whatever they go through, with
    /// the end that must show `peer`.
    pub(crate) async fn dial_through(
        &self,
        way: tcp::Opener,
        key: tls::TransferKey,
        peer: &PublicKey,
    ) -> Result<Link, Closed> {
        self.tcp.dial_through(way, key, peer).await.map(Link::Tcp)
    }

    /// Someone dials through a connection of this process, which came out of a session with `from`.
    pub(crate) fn sealed(&self, connection: tokio::io::DuplexStream, from: IpAddr) -> Attempt {
        Attempt::Tcp(self.tcp.sealed(connection, from))
    }

    /// Closes every session and both ports. What was told to the other ends is sent before the
    /// future ends, unless that takes longer than `patience`.
    pub(crate) async fn close(&self, patience: Duration) {
        self.tcp.close();
        self.quic.close(patience).await;
    }

    /// Closes every session without waiting.
    pub(crate) fn hang_up(&self) {
        self.tcp.close();
        self.quic.hang_up();
    }
}

/// Someone dials. Nothing is known of them but an address, which may be forged over UDP.
pub(crate) enum Attempt {
    Quic(quic::Attempt),
    Tcp(tcp::Attempt),
}

impl Attempt {
    /// The address that the packets seem to come from.
    pub(crate) fn from(&self) -> IpAddr {
        match self {
            Self::Quic(attempt) => attempt.from(),
            Self::Tcp(attempt) => attempt.from(),
        }
    }

    /// Whether the address is proven.
    pub(crate) fn is_proven(&self) -> bool {
        match self {
            Self::Quic(attempt) => attempt.is_proven(),
            Self::Tcp(_) => true,
        }
    }

    /// Demands a proof of the address; costs no memory here.
    pub(crate) fn demand_proof(self) {
        if let Self::Quic(attempt) = self {
            attempt.demand_proof();
        }
    }

    /// Answers nothing at all.
    pub(crate) fn ignore(self) {
        if let Self::Quic(attempt) = self {
            attempt.ignore();
        }
    }

    /// Makes the session, with the key that `key_of` has for the hint, and tells that hint.
    pub(crate) async fn answer(
        self,
        key_of: impl Fn(&tls::Hint) -> Option<tls::TransferKey> + Send + Sync + 'static,
    ) -> Result<(Link, tls::Hint), Closed> {
        match self {
            Self::Quic(attempt) => {
                let (link, hint) = attempt.answer(key_of).await?;
                Ok((Link::Quic(link), hint))
            }
            Self::Tcp(attempt) => {
                let (link, hint) = attempt.answer(key_of).await?;
                Ok((Link::Tcp(link), hint))
            }
        }
    }
}

/// A session. Clones are the same session; it ends when all are dropped, or by [`Link::close`].
#[derive(Clone)]
pub(crate) enum Link {
    Quic(quic::Link),
    Tcp(tcp::Link),
}

impl Link {
    /// Tells two sessions apart.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Quic(one), Self::Quic(other)) => one.is_same(other),
            (Self::Tcp(one), Self::Tcp(other)) => one.is_same(other),
            _ => false,
        }
    }

    /// What carries it.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Quic(_) => Kind::Quic,
            Self::Tcp(_) => Kind::Tls,
        }
    }

    /// The transfer key that the other end proved to hold.
    pub(crate) fn peer_key(&self) -> Option<PublicKey> {
        match self {
            Self::Quic(link) => link.peer_key(),
            Self::Tcp(link) => link.peer_key(),
        }
    }

    /// The dialler opens a stream; waits while too many are open.
    pub(crate) async fn open(&self) -> Result<Stream, Cut> {
        match self {
            Self::Quic(link) => link.open().await,
            Self::Tcp(link) => link.open().await,
        }
    }

    /// The next stream that the dialler opened. Over TCP this is the first one only: others come
    /// as sessions of their own and are added by [`Link::join`].
    pub(crate) async fn accept(&self) -> Result<Stream, Cut> {
        match self {
            Self::Quic(link) => link.accept().await,
            Self::Tcp(link) => link.accept().await,
        }
    }

    /// From now on the streams carry bytes that are not of this protocol: no reason is told among
    /// them when the session is closed.
    pub(crate) fn be_raw(&self) {
        if let Self::Tcp(link) = self {
            link.be_raw();
        }
    }

    /// Makes `stream`, the first of the session `other`, one of this session: it ends with it.
    pub(crate) fn join(&self, other: &Self, stream: Stream) -> Option<Stream> {
        match (self, other) {
            (Self::Tcp(link), Self::Tcp(other)) => Some(link.join(other, stream)),
            _ => None,
        }
    }

    /// Streams beside the control stream that carry data at once.
    pub(crate) fn lanes(&self) -> usize {
        match self {
            Self::Quic(_) => quic::LANES,
            Self::Tcp(_) => tcp::LANES,
        }
    }

    /// The round trip of the path, as the dialler sees it.
    pub(crate) fn trip(&self) -> Duration {
        match self {
            Self::Quic(link) => link.trip(),
            Self::Tcp(link) => link.trip(),
        }
    }

    /// Ends the session now; what is not sent yet is lost.
    pub(crate) fn close(&self, code: Code) {
        match self {
            Self::Quic(link) => link.close(code),
            Self::Tcp(link) => link.close(code),
        }
    }

    /// Waits until the session is over.
    pub(crate) async fn closed(&self) -> Closed {
        match self {
            Self::Quic(link) => link.closed().await,
            Self::Tcp(link) => link.closed().await,
        }
    }

    /// Bytes given to the network and taken from it so far: in UDP datagrams, or in TCP streams.
    pub(crate) fn wire_bytes(&self) -> u64 {
        match self {
            Self::Quic(link) => link.wire_bytes(),
            Self::Tcp(link) => link.wire_bytes(),
        }
    }
}

/// Both halves of a stream.
pub(crate) struct Stream {
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
}

/// The sending half of a stream.
pub(crate) enum Sender {
    Quic(quic::Sender),
    Tcp(tcp::Sender),
}

impl Sender {
    /// Sends `bytes`; waits while the windows are full.
    pub(crate) async fn send(&mut self, bytes: bytes::Bytes) -> Result<(), Cut> {
        match self {
            Self::Quic(sender) => sender.send(bytes).await,
            Self::Tcp(sender) => sender.send(&bytes).await,
        }
    }

    /// Tells the other end that nothing more comes on this stream.
    pub(crate) async fn finish(&mut self) {
        match self {
            Self::Quic(sender) => sender.finish(),
            Self::Tcp(sender) => sender.finish().await,
        }
    }
}

/// The receiving half of a stream.
pub(crate) enum Receiver {
    Quic(quic::Receiver),
    Tcp(tcp::Receiver),
}

impl Receiver {
    /// Fills `buffer`.
    pub(crate) async fn fill(&mut self, buffer: &mut [u8], stall: Stall) -> Result<(), Cut> {
        match stall {
            Stall::Never => self.fill_at_last(buffer).await,
            Stall::Watched => {
                // By parts, so that slow is not silent.
                for part in buffer.chunks_mut(WATCHED_BYTES) {
                    let filling = self.fill_at_last(part);
                    tokio::time::timeout(STALL_TIMEOUT, filling).await.map_err(|_| Cut)??;
                }
                Ok(())
            }
        }
    }

    async fn fill_at_last(&mut self, buffer: &mut [u8]) -> Result<(), Cut> {
        match self {
            Self::Quic(receiver) => receiver.fill(buffer).await,
            Self::Tcp(receiver) => receiver.fill(buffer).await,
        }
    }

    /// Takes what has come, waiting for the first of it; 0 when nothing more comes.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Cut> {
        match self {
            Self::Quic(receiver) => receiver.read(buffer).await,
            Self::Tcp(receiver) => receiver.read(buffer).await,
        }
    }

    /// `length` stands where a message's length should. Over TCP it may be the reason for which
    /// the other end closes the session; then this is true, and the session is over.
    pub(crate) fn is_closing(&self, length: u32) -> bool {
        match (self, tcp::closing_code(length)) {
            (Self::Tcp(receiver), Some(code)) => {
                receiver.end(Closed::ByPeer(code));
                true
            }
            _ => false,
        }
    }

    /// Nothing comes any more. Over TCP that is the end of the session whose control stream this
    /// is; QUIC finds out by itself.
    pub(crate) fn is_lost(&self, why: &str) {
        if let Self::Tcp(receiver) = self {
            receiver.end(Closed::Lost(why.to_owned()));
        }
    }
}

/// Bytes that must come within `STALL_TIMEOUT` where silence is watched.
const WATCHED_BYTES: usize = 64 << 10;
