//! The door: TCP, TLS, and how many may stand in it.
//!
//! Whoever has not shown a peer's key has one of the places of strangers, which are short-lived and
//! few for one address; a peer has places of its own. Neither kind takes any of the other's, and
//! where they are short one of whoever holds most gives way ([`Places`]), so that nobody is
//! kept out by those who came before.

use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use model::{PeerName, SiteKey};
use rustix::process::{Resource, getrlimit};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use transfer_proxy::{Doorstep, Place, Places, network};

use super::pace::{Pace, Paces};
use crate::hands::report;
use crate::peers::Peers;

/// Connections at once of peers; and of one peer, whose oldest gives way to a new one.
const PEER_PLACES: (usize, usize) = (1024, 8);
/// Connections at once of callers that have not shown a peer's key; and of one address.
const STRANGER_PLACES: (usize, usize) = (1024, 256);
/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// How long after it the first request may take to begin: its headers are whole then.
const FIRST_REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Connections that wait outside, as far as the system lets them. Whoever comes when there are more
/// tries again after a second.
const BACKLOG: u32 = 4096;
/// Connections that are let in before others have their turn.
const TURN: usize = 8;
/// Pause after the system had no descriptor for a connection: those that are open must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the control port.
pub(crate) async fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A node that starts again has its port at once.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Who comes in, and what for.
pub(super) struct Door {
    pub(super) tls: Arc<rustls::ServerConfig>,
    /// Where callers go that want the proxy.
    pub(super) proxy: Option<Doorstep>,
    pub(super) peers: Peers,
}

/// What all connections have to do with.
struct Inside {
    door: Door,
    of_strangers: Places<IpAddr>,
    of_peers: Places<PeerName>,
    paces: Paces,
}

/// Lets callers in at `listener`, and gives on whoever has shown an identity.
pub(super) async fn keep(
    door: Door,
    listener: TcpListener,
    accepted: mpsc::Sender<io::Result<Caller>>,
) {
    let inside = Arc::new(Inside {
        door,
        of_strangers: places(STRANGER_PLACES),
        of_peers: places(PEER_PLACES),
        paces: Paces::default(),
    });
    for number in 1_usize.. {
        // A few, and then all others on this thread: a crowd waits outside, where it costs nothing,
        // and whoever has come in is served before many more do.
        if number.is_multiple_of(TURN) {
            tokio::task::yield_now().await;
        }
        let Ok((tcp, from)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let place = inside.of_strangers.take(network(from.ip()));
        let (inside, accepted) = (inside.clone(), accepted.clone());
        tokio::spawn(async move {
            let mut place = place;
            let shaken = tokio::select! {
                shaken = timeout(HANDSHAKE_LIMIT, inside.shake_hands(tcp, from.ip())) => shaken,
                () = place.lost() => return tracing::debug!("a caller gave way to others"),
            };
            match shaken {
                Ok(Ok(None)) => {}
                Ok(Ok(Some((stream, key)))) => {
                    let _ = accepted.send(Ok(inside.admit(stream, key, place))).await;
                }
                Ok(Err(error)) => tracing::debug!(error = report(&error), "no TLS with a caller"),
                Err(_) => tracing::debug!("a caller did not finish its TLS handshake"),
            }
        });
    }
}

/// Places for so many in all and of one, as far as the system lets this process have sockets: three
/// quarters of its files are for other things, the places of other callers among them.
fn places<K: Clone + Eq + Hash>((most, share): (usize, usize)) -> Places<K> {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = most.min(usize::try_from(files / 4).unwrap_or(most));
    Places::new(most, share.min(most))
}

impl Inside {
    /// Learns who calls; none if it wants the proxy.
    async fn shake_hands(
        &self,
        tcp: TcpStream,
        from: IpAddr,
    ) -> io::Result<Option<(TlsStream<TcpStream>, SiteKey)>> {
        let _ = tcp.set_nodelay(true);
        let begun = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        if let Some(proxy) = &self.door.proxy
            && Doorstep::is_for(&begun.client_hello())
        {
            proxy.hand_over(begun, from);
            return Ok(None);
        }
        let stream = begun.into_stream(self.door.tls.clone()).await?;
        let shown = stream.get_ref().1.peer_certificates();
        let key = shown.and_then(|chain| certs::site_key_of(chain));
        Ok(key.map(|key| (stream, key)))
    }

    fn admit(&self, stream: TlsStream<TcpStream>, key: SiteKey, place: Place<IpAddr>) -> Caller {
        // One that shows a new key, which its old one has certified, is who it was.
        let known_by = self.door.peers.renewed(&key).unwrap_or(key);
        let peer = self.door.peers.by_key(&known_by);
        let requests = peer.as_ref().and_then(|peer| peer.peering.limits.requests);
        let held = match peer {
            Some(peer) => Held::Peer(self.of_peers.take(peer.name)),
            // It may do nothing but join.
            None => Held::Stranger(place),
        };
        let who = Speaker { key, has_asked: Arc::default() };
        let pace = self.paces.of(known_by, requests.unwrap_or_default());
        Caller { stream, who, held, pace, late: Box::pin(sleep(FIRST_REQUEST_LIMIT)) }
    }
}

/// The place that a connection has.
enum Held {
    Peer(Place<PeerName>),
    Stranger(Place<IpAddr>),
}

/// A connection whose other end proved its identity.
pub(super) struct Caller {
    stream: TlsStream<TcpStream>,
    who: Speaker,
    held: Held,
    pace: Pace,
    /// When it must have asked for something.
    late: Pin<Box<Sleep>>,
}

/// Who speaks on a connection.
#[derive(Clone)]
pub(super) struct Speaker {
    key: SiteKey,
    /// Whether a request has begun to come.
    has_asked: Arc<AtomicBool>,
}

impl Speaker {
    /// Who speaks, of whom a request comes.
    pub(super) fn asks(&self) -> SiteKey {
        self.has_asked.store(true, Ordering::Relaxed);
        self.key
    }
}

impl Caller {
    /// Why the connection ends now, if it does.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let lost = match &mut self.held {
            Held::Peer(place) => place.poll_lost(context),
            Held::Stranger(place) => place.poll_lost(context),
        };
        if lost.is_ready() {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "it gave way"));
        }
        if self.who.has_asked.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let late = self.late.as_mut().poll(context);
        late.map(|()| io::Error::new(io::ErrorKind::TimedOut, "it has not asked for anything"))
    }
}

impl Connected for Caller {
    type ConnectInfo = Speaker;

    fn connect_info(&self) -> Speaker {
        self.who.clone()
    }
}

impl AsyncRead for Caller {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(end) = self.poll_end(context) {
            return Poll::Ready(Err(end));
        }
        let Self { stream, pace, .. } = &mut *self;
        pace.poll_read(Pin::new(stream), context, buffer)
    }
}

impl AsyncWrite for Caller {
    // HTTP/2 reads nothing as long as it cannot write: one that takes no answers ends here.
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(end) = self.poll_end(context) {
            return Poll::Ready(Err(end));
        }
        Pin::new(&mut self.stream).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(end) = self.poll_end(context) {
            return Poll::Ready(Err(end));
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
