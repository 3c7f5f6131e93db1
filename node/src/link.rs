//! The links to peers: one HTTP/2 connection each, over mutual TLS, made when needed.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use certs::Identity;
use hyper_util::rt::TokioIo;
use model::key::Strict;
use model::{JournalMark, PeerName, PublicKey, Signature, SiteKey, Time, limit};
use proto::envelope::{self, Carried, EnvelopeError, RequestDigest, Sealer, Verdict};
use proto::federation::federation_client::FederationClient;
use proto::federation::{HelloReply, HelloRequest, JoinRequest, Sealed};
use protocol::{Answer, CallError, CallId, Event, Op, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::driver::Driver;
use crate::hands::report;
use crate::lock;
use crate::metrics::{self, Direction};
use crate::peers::Peers;

/// The protocol versions that this program speaks.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u32> = 3..=3;
/// How long a connection, its handshake and the greeting may take, each.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How often a connection is tested while calls wait on it, and how long a test may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long a node that starts waits for its peers to say what they remember of it.
const START_GREETING: Duration = Duration::from_secs(2);
/// How long a peer may take to store values.
const VALUES_LIMIT: Duration = Duration::from_secs(30);
/// Longest words of another site about what it lets this one do.
const MAX_TERMS_CHARS: usize = 500;
/// What a call may take beyond what its sender waits for.
const GRACE: Duration = Duration::from_secs(2);

/// The links to all peers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Links(Arc<Shared>);

struct Shared {
    identity: Arc<Identity>,
    peers: Peers,
    driver: Driver,
    runtime: Handle,
    channels: Mutex<HashMap<SiteKey, Kept>>,
    /// Connections that are being made, each for all calls that wait for it.
    dials: Mutex<HashMap<SiteKey, Dial>>,
}

/// A connection that is being made, or why it was not.
type Dial = Arc<OnceCell<Result<Line, Arc<LinkError>>>>;

/// A connection, and the addresses that it was made for.
type Kept = (Vec<String>, Line);

/// A way to speak to a peer.
#[derive(Clone)]
struct Line {
    client: FederationClient<Channel>,
    refused: Refused,
}

/// Whether the other side refused this site's identity. In TLS 1.3 that is heard only after the
/// handshake, in place of the first answer.
type Refused = Arc<AtomicBool>;

impl Line {
    /// What a call's failure means on this line.
    fn error(&self, status: &tonic::Status) -> LinkError {
        if self.refused.load(Ordering::Relaxed) { LinkError::Refused } else { status_error(status) }
    }
}

/// Why a peer cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("no address of the peer can be connected to ({0})")]
    Connect(String),
    #[error("the peer speaks protocol versions {0} to {1}, this site {min} to {max}",
        min = VERSIONS.start(), max = VERSIONS.end())]
    Version(u32, u32),
    #[error("the other site hangs up when it sees who calls; it may not know this one any more")]
    Refused,
    #[error("the peer has a new key since; asking again")]
    Renewed,
    #[error("the peer says: {0}")]
    Status(String),
    #[error("the peer says: {0}")]
    Busy(String),
    #[error("the peer did not answer in time")]
    Time,
    #[error("the peer's answer is not what it signed")]
    Envelope(#[source] EnvelopeError),
    #[error("TLS cannot be set up")]
    Tls(#[from] certs::TlsError),
    /// The connection that this call had waited for, with others.
    #[error(transparent)]
    Dialled(Arc<LinkError>),
}

impl LinkError {
    /// Its kind, as metrics tell it in place of an answer's.
    fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "no connection",
            Self::Version(..) => "no common version",
            Self::Refused => "hung up",
            Self::Renewed => "new key",
            Self::Status(_) => "error",
            Self::Busy(_) => "too many",
            Self::Time => "no answer in time",
            Self::Envelope(_) => "garbled",
            Self::Tls(_) => "no TLS",
            Self::Dialled(error) => error.kind(),
        }
    }
}

impl Links {
    /// The connections are served by `runtime`.
    pub(crate) fn new(
        identity: Arc<Identity>,
        peers: Peers,
        driver: Driver,
        runtime: Handle,
    ) -> Self {
        let (channels, dials) = <(Mutex<_>, Mutex<_>)>::default();
        Self(Arc::new(Shared { identity, peers, driver, runtime, channels, dials }))
    }

    /// Seals and sends a request; its end comes to the driver.
    pub(crate) fn send(
        &self,
        call: CallId,
        to: PeerName,
        request: Request,
        journal: JournalMark,
        sign_origin: impl FnOnce(&PublicKey, &str, &[u8]) -> Signature,
    ) {
        let links = self.clone();
        let Some(peer) = self.0.peers.get(&to) else {
            let gone = CallError::Unreachable(format!("{to} is no peer any more"));
            let driver = self.0.driver.clone();
            self.0.runtime.spawn(async move {
                driver.event(Event::Answered { call, answer: Err(gone) }).await;
            });
            return;
        };
        let identity = &self.0.identity;
        let sign = |kind: &str, body: &[u8]| identity.sign(kind, body);
        let sealer = Sealer { site: identity.site_key(), sign: &sign, journal };
        let limit = request.hop.time_left.saturating_add(GRACE);
        let (sealed, digest) =
            envelope::seal_request(&sealer, peer.key, &request, sign_origin, now(), rand::random());
        let op = request.origin.op;
        self.0.runtime.spawn(async move {
            let begun = Instant::now();
            let answer = links.call(peer.key, &peer.addresses, &op, sealed, digest, limit, journal);
            let answer = answer.await;
            let kind = answer.as_ref().map_or_else(LinkError::kind, metrics::kind);
            let (sent, took) = (Direction::Sent, begun.elapsed());
            links.0.driver.metrics().request(sent, &peer.name, op.name(), kind, took);
            let heard = answer.as_ref().map(|_| ()).map_err(|error| report(error));
            if let Err(why) = &heard {
                tracing::warn!(peer = %peer.name, operation = op.name(), why, "call failed");
            }
            links.0.peers.heard(&peer.name, heard);
            let answer = answer.map(Box::new).map_err(|error| match error {
                LinkError::Envelope(_) => CallError::Garbled(report(&error)),
                other => CallError::Unreachable(report(&other)),
            });
            links.0.driver.event(Event::Answered { call, answer }).await;
        });
    }

    #[expect(clippy::too_many_arguments, reason = "one call, told apart by type")]
    async fn call(
        &self,
        key: SiteKey,
        addresses: &[String],
        op: &Op,
        sealed: Sealed,
        digest: RequestDigest,
        limit: Duration,
        journal: JournalMark,
    ) -> Result<Answer, LinkError> {
        let work = async {
            let line = self.line(key, addresses, journal).await?;
            self.exchange(line, op, sealed).await.inspect_err(|error| {
                // Whoever has asked too often needs no other connection.
                if !matches!(error, LinkError::Busy(_)) {
                    self.forget(&key);
                }
            })
        };
        let answer = tokio::time::timeout(limit, work).await.map_err(|_| LinkError::Time)??;
        let me = self.0.identity.site_key();
        let opened =
            envelope::open_answer(&answer, key, me, digest).map_err(LinkError::Envelope)?;
        self.0.driver.saw_journal(key, opened.journal);
        Ok(opened.content.into_inner())
    }

    async fn exchange(&self, mut line: Line, op: &Op, sealed: Sealed) -> Result<Sealed, LinkError> {
        let answer = proto::call(&mut line.client, op, sealed).await;
        Ok(answer.map_err(|status| line.error(&status))?.into_inner())
    }

    /// Brings values and usage to a peer; the answer has a verdict for each piece.
    pub(crate) async fn values(
        &self,
        to: &PeerName,
        carried: Vec<Carried>,
    ) -> Result<Vec<Verdict>, LinkError> {
        let begun = Instant::now();
        let answer = self.bring(to, carried).await;
        let kind = answer.as_ref().map_or_else(LinkError::kind, |_| "verdicts");
        let (sent, took) = (Direction::Sent, begun.elapsed());
        self.0.driver.metrics().request(sent, to, metrics::VALUES, kind, took);
        answer
    }

    async fn bring(&self, to: &PeerName, carried: Vec<Carried>) -> Result<Vec<Verdict>, LinkError> {
        let gone = || LinkError::Connect(format!("{to} is no peer any more"));
        let peer = self.0.peers.get(to).ok_or_else(gone)?;
        let ended = |_| LinkError::Connect("this node is shutting down".to_owned());
        let journal =
            self.0.driver.visit(crate::driver::Core::journal_mark).await.map_err(ended)?;
        let count = carried.len();
        let me = self.0.identity.site_key();
        let (sealed, digest) = {
            let sign = |kind: &str, body: &[u8]| self.0.identity.sign(kind, body);
            let sealer = Sealer { site: me, sign: &sign, journal };
            envelope::seal_values(&sealer, peer.key, carried, now(), rand::random())
        };
        let work = async {
            let mut line = self.line(peer.key, &peer.addresses, journal).await?;
            let answer = line.client.values(sealed).await;
            answer.map_err(|status| line.error(&status)).inspect_err(|_| self.forget(&peer.key))
        };
        let answer = tokio::time::timeout(VALUES_LIMIT, work).await.map_err(|_| LinkError::Time);
        let heard = answer.and_then(|answer| answer);
        self.0.peers.heard(to, heard.as_ref().map(|_| ()).map_err(|error| report(error)));
        let opened = envelope::open_verdicts(&heard?.into_inner(), peer.key, me, digest)
            .map_err(LinkError::Envelope)?;
        self.0.driver.saw_journal(peer.key, opened.journal);
        let verdicts = opened.content.into_inner();
        if verdicts.len() == count {
            Ok(verdicts)
        } else {
            Err(LinkError::Status("its verdicts are not one for each piece".to_owned()))
        }
    }

    /// The connection to a peer, greeted; kept for the next call.
    async fn line(
        &self,
        key: SiteKey,
        addresses: &[String],
        journal: JournalMark,
    ) -> Result<Line, LinkError> {
        let kept = lock(&self.0.channels).get(&key).cloned();
        if let Some((_, line)) = kept.filter(|(at, _)| at == addresses) {
            return Ok(line);
        }
        // A node that starts has news of many VMs for a peer at once.
        let dial = lock(&self.0.dials).entry(key).or_default().clone();
        let made = dial.get_or_init(async || {
            let made = self.dial(key, addresses, journal).await;
            lock(&self.0.dials).remove(&key);
            made.map_err(Arc::new)
        });
        made.await.clone().map_err(LinkError::Dialled)
    }

    /// Makes a connection to a peer, and keeps it.
    async fn dial(
        &self,
        key: SiteKey,
        addresses: &[String],
        journal: JournalMark,
    ) -> Result<Line, LinkError> {
        let (mut line, shown) = self.connect(key, addresses).await?;
        if shown != key {
            let renewed = self.0.driver.visit(move |core| core.renew_peer(&key, &shown)).await;
            // What was sealed for the old key is sealed again.
            return Err(match renewed {
                Ok(Ok(())) => LinkError::Renewed,
                _ => LinkError::Connect("its new key cannot be noted".to_owned()),
            });
        }
        let hello = HelloRequest {
            oldest_version: *VERSIONS.start(),
            newest_version: *VERSIONS.end(),
            journal: Some(journal.into()),
        };
        let reply = tokio::time::timeout(CONNECT_LIMIT, line.client.hello(hello))
            .await
            .map_err(|_| LinkError::Time)?
            .map_err(|status| line.error(&status))?
            .into_inner();
        if !VERSIONS.contains(&reply.version) {
            return Err(LinkError::Version(reply.version, reply.version));
        }
        let seen = self.length_seen(&key, &reply, journal.length);
        let mark = reply.journal.and_then(|mark| mark.parse());
        let saw = move |core: &mut crate::driver::Core| {
            let noted = mark.map_or(Ok(()), |mark| core.journal.saw_journal(&key, &mark));
            if let Err(error) = noted {
                tracing::warn!(error = report(&error), "cannot note a peer's journal");
            }
            core.journal.len() < seen
        };
        // While the node starts, the driver does not answer yet; then the start has asked itself.
        if self.0.driver.visit(saw).await == Ok(true) {
            self.0.driver.event(Event::Fence { journal: seen }).await;
        }
        lock(&self.0.channels).insert(key, (addresses.to_vec(), line.clone()));
        Ok(line)
    }

    /// How long a journal of this site the peer of this key has proof of, 0 if of none: what it
    /// cannot prove is not taken, or any peer could have this site hold its VMs.
    fn length_seen(&self, key: &SiteKey, reply: &HelloReply, journal: u64) -> u64 {
        let Some(seen) = &reply.journal_seen else { return 0 };
        if seen.length <= journal {
            return seen.length;
        }
        let keys = self.0.identity.keys();
        if seen.parse().is_some_and(|mark| mark.is_of(&keys, &Strict)) {
            return seen.length;
        }
        let peer = self.0.peers.by_key(key).map(|peer| peer.name.to_string());
        tracing::warn!(
            peer,
            journal_seen = seen.length,
            "a peer says that it remembers a longer journal of this site, and has no proof: not \
             believed"
        );
        0
    }

    fn forget(&self, key: &SiteKey) {
        lock(&self.0.channels).remove(key);
    }

    /// A connection to the site of this key, and the key that it has now.
    async fn connect(
        &self,
        key: SiteKey,
        addresses: &[String],
    ) -> Result<(Line, SiteKey), LinkError> {
        let tls = certs::client_config(&self.0.identity, key)?;
        let mut trouble = Vec::new();
        for address in addresses {
            let refused = Refused::default();
            let shown = Arc::new(OnceLock::new());
            let connected =
                connect_one(tls.clone(), key, address.clone(), refused.clone(), shown.clone());
            match connected.await {
                Ok(channel) => {
                    let client = FederationClient::new(channel)
                        .max_decoding_message_size(2 * limit::MAX_MESSAGE_BYTES)
                        .max_encoding_message_size(2 * limit::MAX_MESSAGE_BYTES);
                    let shown = shown.get().copied().unwrap_or(key);
                    return Ok((Line { client, refused }, shown));
                }
                Err(why) => trouble.push(why),
            }
        }
        Err(LinkError::Connect(trouble.join("; ")))
    }

    /// Asks every peer how long a journal of this site it remembers, for a moment, all at once.
    pub(crate) async fn longest_journal_seen(&self, journal: JournalMark) -> u64 {
        let asked = self.0.peers.all().into_iter().map(|peer| {
            let links = self.clone();
            self.0.runtime.spawn(async move {
                // Of one with a new key it is found out with the first call.
                let (mut line, _) = links.connect(peer.key, &peer.addresses).await?;
                let hello = HelloRequest {
                    oldest_version: *VERSIONS.start(),
                    newest_version: *VERSIONS.end(),
                    journal: Some(journal.into()),
                };
                let reply = line.client.hello(hello).await;
                let reply = reply.map_err(|status| line.error(&status))?;
                Ok::<_, LinkError>(links.length_seen(&peer.key, reply.get_ref(), journal.length))
            })
        });
        let asked: Vec<_> = asked.collect();
        let mut longest = 0;
        let until = tokio::time::Instant::now() + START_GREETING;
        for one in asked {
            // A peer that does not answer is greeted again with the first call to it.
            if let Ok(Ok(Ok(seen))) = tokio::time::timeout_at(until, one).await {
                longest = longest.max(seen);
            }
        }
        longest
    }

    /// Shows a ticket's secret to the site that made it, and returns what that lets this site do,
    /// in its words.
    pub(crate) async fn join(
        &self,
        key: SiteKey,
        addresses: &[String],
        request: JoinRequest,
    ) -> Result<String, LinkError> {
        let (mut line, _) = self.connect(key, addresses).await?;
        let reply = tokio::time::timeout(CONNECT_LIMIT, line.client.join(request)).await;
        let reply = reply.map_err(|_| LinkError::Time)?.map_err(|status| line.error(&status))?;
        // It comes from outside, and goes to a terminal.
        let terms = reply.into_inner().terms;
        Ok(terms.chars().filter(|c| !c.is_control()).take(MAX_TERMS_CHARS).collect())
    }
}

async fn connect_one(
    tls: Arc<rustls::ClientConfig>,
    key: SiteKey,
    address: String,
    refused: Refused,
    shown: Arc<OnceLock<SiteKey>>,
) -> Result<Channel, String> {
    let connector = tower::service_fn(move |_: Uri| {
        let (tls, address, refused) = (tls.clone(), address.clone(), refused.clone());
        let shown = shown.clone();
        async move {
            if refused.load(Ordering::Relaxed) {
                return Err(std::io::Error::other("refused before"));
            }
            let tcp = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(&address))
                .await
                .map_err(|_| std::io::Error::other("no connection in time"))??;
            tcp.set_nodelay(true)?;
            let name = certs::server_name(&key);
            let handshake = tokio_rustls::TlsConnector::from(tls).connect(name, tcp);
            let stream = tokio::time::timeout(CONNECT_LIMIT, handshake)
                .await
                .map_err(|_| std::io::Error::other("no TLS handshake in time"))?
                .map_err(|error| match certs::Refusal::of(&error) {
                    Some(refusal) => std::io::Error::other(refusal.to_string()),
                    None => error,
                })?;
            let chain = stream.get_ref().1.peer_certificates();
            if let Some(key) = chain.and_then(certs::site_key_of) {
                let _ = shown.set(key);
            }
            Ok(TokioIo::new(Attentive { stream, heard: false, refused }))
        }
    });
    // The URI is for HTTP's form only; the connector knows where to go.
    Endpoint::from_static("http://site.sojourn.invalid")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| report(&error))
}

/// A connection on which a refusal is noticed: the other side ends it before a word. Its alert may
/// be lost, since what is sent to it meanwhile resets the connection.
struct Attentive {
    stream: TlsStream<TcpStream>,
    heard: bool,
    refused: Refused,
}

impl Attentive {
    fn over(&self) {
        if !self.heard {
            self.refused.store(true, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Attentive {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) if buf.filled().len() > before => self.heard = true,
            Poll::Ready(_) => self.over(),
            Poll::Pending => {}
        }
        read
    }
}

impl AsyncWrite for Attentive {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Err(_)) = &written {
            self.over();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What a peer said instead of an answer.
fn status_error(status: &tonic::Status) -> LinkError {
    match status.code() {
        tonic::Code::FailedPrecondition if status.message().starts_with("versions ") => {
            let mut numbers = status.message().split(' ').filter_map(|word| word.parse().ok());
            match (numbers.next(), numbers.next()) {
                (Some(oldest), Some(newest)) => LinkError::Version(oldest, newest),
                _ => LinkError::Status(status.message().to_owned()),
            }
        }
        tonic::Code::ResourceExhausted => LinkError::Busy(status.message().to_owned()),
        tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => LinkError::Time,
        _ if status.message().is_empty() => LinkError::Status(status.code().to_string()),
        _ => LinkError::Status(status.message().to_owned()),
    }
}

/// The time of day, for what is signed.
pub(crate) fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Time(u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn calls_that_come_at_once_make_one_connection_to_their_peer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let came = Arc::new(AtomicUsize::new(0));
        let count = came.clone();
        tokio::spawn(async move {
            // It hangs up at once.
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let [me, peer] = [[1; 32], [2; 32]].map(|seed| Identity::from_seed(&seed));
        let mark = JournalMark::new(0, |kind, body| me.sign(kind, body));
        let (driver, _) = Driver::channel(Metrics::default());
        let links = Links::new(Arc::new(me), Peers::default(), driver, Handle::current());
        let calls = (0..8).map(|_| {
            let (links, key, at) = (links.clone(), peer.site_key(), vec![address.clone()]);
            tokio::spawn(async move { links.line(key, &at, mark).await.map(drop) })
        });
        for call in calls.collect::<Vec<_>>() {
            let error = call.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), "no connection", "{error}");
        }
        assert_eq!(came.load(Ordering::Relaxed), 1);
        // What comes later tries anew.
        links.line(peer.site_key(), &[address], mark).await.map(drop).unwrap_err();
        assert_eq!(came.load(Ordering::Relaxed), 2);
    }
}
