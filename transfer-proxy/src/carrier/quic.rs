//! The QUIC carrier: one UDP port for every session of a proxy, listening and dialling.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model::PublicKey;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, IdleTimeout, TransportConfig, VarInt};
use rustix::net::sockopt;
use rustls::pki_types::CertificateDer;

use super::{Closed, Code, Cut, IDLE_TIMEOUT, KEEP_ALIVE, MAX_LANES, ResetKey, Stream, congestion};
use crate::tls;

/// Streams that carry data at once. One connection does all work on one core, so that more
/// streams only hide the time in which a chunk is read or written.
pub(crate) const LANES: usize = 4;

/// Bytes of one stream under way.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// Bytes of one session under way, in each direction. It bounds the rate: 32 MiB is 10 Gbit/s at
/// 25 ms, or 1 Gbit/s at 250 ms.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// The round trip that is assumed before one is measured. A lost packet of the handshake is sent
/// again after three of these: the 333 ms that RFC 9002, section 6.2.2, advises would cost a short
/// transfer over a lossy path a fifth of its time, and longer paths see but a packet twice.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Buffer of the UDP socket in bytes, as far as the system grants it.
const SOCKET_BUFFER_BYTES: usize = 16 << 20;

/// Packets of handshakes that wait to be looked at.
const MAX_INCOMING: usize = 256;

/// Bytes kept of one such handshake, and of all together.
const INCOMING_BYTES: u64 = 16 << 10;
const INCOMING_TOTAL_BYTES: u64 = 2 << 20;

fn number(code: Code) -> VarInt {
    VarInt::from_u32(code as u32)
}

impl From<ConnectionError> for Closed {
    fn from(error: ConnectionError) -> Self {
        // The codes of TLS alerts (RFC 9001, section 4.8).
        let is_tls = |code: u64| (0x100..0x200).contains(&code);
        match &error {
            ConnectionError::ApplicationClosed(close) => Code::ALL
                .into_iter()
                .find(|code| number(*code) == close.error_code)
                .map_or_else(|| Self::Lost("closed for an unknown reason".into()), Self::ByPeer),
            // Whether the other end did not like our key, or we not its: both are a refusal, and
            // neither says which.
            ConnectionError::TransportError(inner) if is_tls(inner.code.into()) => {
                Self::ByPeer(Code::Refused)
            }
            ConnectionError::ConnectionClosed(close) if is_tls(close.error_code.into()) => {
                Self::ByPeer(Code::Refused)
            }
            ConnectionError::LocallyClosed => Self::Here,
            _ => Self::Lost(error.to_string()),
        }
    }
}

/// The UDP port.
pub(crate) struct Port {
    tls: tls::Tls,
    address: SocketAddr,
    server: quinn::ServerConfig,
    transport: Arc<TransportConfig>,
    /// Taken when the port is closed.
    endpoint: Mutex<Option<quinn::Endpoint>>,
}

impl Port {
    /// Opens the port. Must be called within a tokio runtime.
    pub(crate) fn bind(listen: SocketAddr, tls: tls::Tls, reset: ResetKey) -> io::Result<Self> {
        let socket = UdpSocket::bind(listen)?;
        // The system may grant less; then bursts are lost earlier, and nothing else. Whoever may
        // administer the network gets all in any case.
        if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
        }
        let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
        let address = socket.local_addr()?;
        let server = server_config(tls.listen());
        let runtime = quinn::default_runtime().expect("called within a tokio runtime");
        let endpoint =
            quinn::Endpoint::new(reset.endpoint(), Some(server.clone()), socket, runtime)?;
        let transport = Arc::new(transport(0));
        Ok(Self { tls, address, server, transport, endpoint: Mutex::new(Some(endpoint)) })
    }

    /// Where the port is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn endpoint(&self) -> Option<quinn::Endpoint> {
        self.endpoint.lock().expect("no holder of this lock panics").clone()
    }

    /// Waits for the next one to dial; none once the port is closed.
    pub(crate) async fn accept(&self) -> Option<Attempt> {
        let endpoint = self.endpoint()?;
        let incoming = endpoint.accept().await?;
        Some(Attempt { incoming, server: self.server.clone(), tls: self.tls.clone() })
    }

    /// Makes a session with the proxy at `address`, which must show `peer`.
    pub(crate) async fn dial(
        &self,
        address: SocketAddr,
        key: tls::TransferKey,
        peer: &PublicKey,
        hint: &tls::Hint,
    ) -> Result<Link, Closed> {
        let endpoint = self.endpoint().ok_or(Closed::Here)?;
        let crypto = QuicClientConfig::try_from(self.tls.dial(key, peer, hint))
            .expect("the provider has the cipher suite of QUIC's first packets");
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.transport.clone());
        // The name is needed by an interface and never sent.
        let connecting = endpoint
            .connect_with(config, address, "0.0.0.0")
            .map_err(|error| Closed::Lost(error.to_string()))?;
        Ok(Link(connecting.await?))
    }

    /// Closes every session and the port. What was told to the other ends is sent before the
    /// future ends, unless that takes longer than `patience`.
    pub(crate) async fn close(&self, patience: Duration) {
        let endpoint = self.endpoint.lock().expect("no holder of this lock panics").take();
        if let Some(endpoint) = endpoint {
            endpoint.close(number(Code::Away), Code::Away.text().as_bytes());
            let _ = tokio::time::timeout(patience, endpoint.wait_idle()).await;
        }
    }

    /// Closes every session without waiting.
    pub(crate) fn hang_up(&self) {
        if let Some(endpoint) = self.endpoint.lock().ok().and_then(|mut endpoint| endpoint.take()) {
            endpoint.close(number(Code::Away), Code::Away.text().as_bytes());
        }
    }
}

/// What both ends of a session have in common; `streams` are those that the other end may open.
pub(super) fn transport(streams: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0_u32.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(CONNECTION_WINDOW_BYTES.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(
            IdleTimeout::try_from(IDLE_TIMEOUT).expect("seconds fit a QUIC integer"),
        ))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .mtu_discovery_config(Some(quinn::MtuDiscoveryConfig::default()))
        .congestion_controller_factory(Arc::new(congestion::Factory));
    config
}

fn server_config(tls: rustls::ServerConfig) -> quinn::ServerConfig {
    let crypto = QuicServerConfig::try_from(tls)
        .expect("the provider has the cipher suite of QUIC's first packets");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        // The dialler opens the control stream and the lanes.
        .transport_config(Arc::new(transport(1 + MAX_LANES as u32)))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_TOTAL_BYTES);
    config
}

/// Someone dials. Nothing is known of them but an address that may be forged.
pub(crate) struct Attempt {
    incoming: quinn::Incoming,
    server: quinn::ServerConfig,
    tls: tls::Tls,
}

impl Attempt {
    /// The address that the packets seem to come from.
    pub(crate) fn from(&self) -> IpAddr {
        self.incoming.remote_address().ip()
    }

    /// Whether the address is proven.
    pub(crate) fn is_proven(&self) -> bool {
        self.incoming.remote_address_validated()
    }

    /// Demands a proof of the address; costs no memory here.
    pub(crate) fn demand_proof(self) {
        if let Err(error) = self.incoming.retry() {
            error.into_incoming().ignore();
        }
    }

    /// Answers nothing at all.
    pub(crate) fn ignore(self) {
        self.incoming.ignore();
    }

    /// Makes the session, with the key that `key_of` has for the hint, and tells that hint.
    pub(crate) async fn answer(
        mut self,
        key_of: impl Fn(&tls::Hint) -> Option<tls::TransferKey> + Send + Sync + 'static,
    ) -> Result<(Link, tls::Hint), Closed> {
        let (config, hint) = self.tls.answer(key_of);
        self.server.crypto = Arc::new(
            QuicServerConfig::try_from(config)
                .expect("the provider has the cipher suite of QUIC's first packets"),
        );
        let connection = self.incoming.accept_with(Arc::new(self.server))?.await?;
        let hint = *hint.get().expect("without a hint no key was found and no handshake done");
        Ok((Link(connection), hint))
    }
}

/// A session. Clones are the same session; it ends when all are dropped, or by [`Link::close`].
#[derive(Clone)]
pub(crate) struct Link(quinn::Connection);

impl Link {
    /// Tells two sessions apart.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.0.stable_id() == other.0.stable_id()
    }

    /// The transfer key that the other end proved to hold.
    pub(crate) fn peer_key(&self) -> Option<PublicKey> {
        let shown = self.0.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        tls::shown_key(shown.first()?)
    }

    pub(super) async fn open(&self) -> Result<Stream, Cut> {
        self.0.open_bi().await.map(stream).map_err(|_| Cut)
    }

    pub(super) async fn accept(&self) -> Result<Stream, Cut> {
        self.0.accept_bi().await.map(stream).map_err(|_| Cut)
    }

    pub(super) fn trip(&self) -> Duration {
        self.0.rtt()
    }

    /// Ends the session now; what is not sent yet is lost.
    pub(crate) fn close(&self, code: Code) {
        congestion::let_last_word_pass(self.0.congestion_state());
        self.0.close(number(code), code.text().as_bytes());
    }

    /// Waits until the session is over.
    pub(crate) async fn closed(&self) -> Closed {
        self.0.closed().await.into()
    }

    /// Bytes in UDP datagrams so far, in both directions.
    pub(crate) fn wire_bytes(&self) -> u64 {
        let stats = self.0.stats();
        stats.udp_tx.bytes + stats.udp_rx.bytes
    }
}

fn stream((sender, receiver): (quinn::SendStream, quinn::RecvStream)) -> Stream {
    let (sender, receiver) = (Sender(sender), Receiver(receiver));
    Stream { sender: super::Sender::Quic(sender), receiver: super::Receiver::Quic(receiver) }
}

/// The sending half of a stream.
pub(crate) struct Sender(quinn::SendStream);

impl Sender {
    pub(super) async fn send(&mut self, bytes: bytes::Bytes) -> Result<(), Cut> {
        self.0.write_chunk(bytes).await.map_err(|_| Cut)
    }

    pub(super) fn finish(&mut self) {
        // Fails where it is finished already.
        let _ = self.0.finish();
    }
}

/// The receiving half of a stream.
pub(crate) struct Receiver(quinn::RecvStream);

impl Receiver {
    pub(super) async fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Cut> {
        self.0.read_exact(buffer).await.map_err(|_| Cut)
    }

    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Cut> {
        self.0.read(buffer).await.map(Option::unwrap_or_default).map_err(|_| Cut)
    }
}
