//! The gate: the control port, where peers come in, and other proxies that want the one here.
//!
//! TLS tells who speaks; the envelope proves it; only then does the driver hear of it. A stranger
//! gets through TLS only while an invitation is open, and can call nothing but `Join`.
//!
//! What callers may cost before that is bounded by `door` (connections), `pace` (frames) and
//! `arriving` (requests that have not come whole).

mod arriving;
mod door;
mod pace;

pub(crate) use pace::paced;

use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::{Identity, TicketSecret};
use model::{PeerName, Peering, SiteKey, limit};
use proto::envelope::{self, EnvelopeError, Sealer};
use proto::federation::federation_server::{Federation, FederationServer};
use proto::federation::{HelloReply, HelloRequest, JoinReply, JoinRequest, Sealed};
use protocol::Op;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tower::util::MapRequestLayer;
use transfer_proxy::Doorstep;

use self::arriving::Arrivals;
pub(crate) use self::door::listen;
use self::door::{Door, Speaker};
use crate::driver::Driver;
use crate::hands::report;
use crate::journal::StoredPeer;
use crate::link::{VERSIONS, now};
use crate::metrics::{self, Direction};
use crate::monitor::Monitor;
use crate::peers::{Peer, Peers};

/// Requests under way at once on one connection.
const MAX_STREAMS: u32 = 256;
/// How often an idle connection is tested, and how long a test may take.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Streams that a peer may open and reset at once before its connection ends.
const MAX_PENDING_RESETS: usize = 20;

/// Answers the calls of peers.
pub(crate) struct Gate {
    pub(crate) identity: Arc<Identity>,
    pub(crate) name: PeerName,
    pub(crate) peers: Peers,
    pub(crate) driver: Driver,
    pub(crate) monitor: Monitor,
}

/// Serves peers on `listener` until `stop` ends.
pub(crate) async fn serve(
    gate: Gate,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    proxy: Option<Doorstep>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), tonic::transport::Error> {
    let (accepted, streams) = mpsc::channel(16);
    let door = Door { tls, proxy, peers: gate.peers.clone() };
    let acceptor = tokio::spawn(door::keep(door, listener, accepted));
    let arrivals = Arrivals::default();
    let service = FederationServer::new(gate)
        .max_decoding_message_size(2 * limit::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(2 * limit::MAX_MESSAGE_BYTES);
    let served = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_header_list_size(16 << 10)
        .layer(MapRequestLayer::new(move |request| arrivals.watch(request)))
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(streams), stop)
        .await;
    acceptor.abort();
    served
}

impl Gate {
    fn speaker<T>(&self, request: &Request<T>) -> Result<SiteKey, Status> {
        let speaker = request.extensions().get::<Speaker>();
        speaker.map(Speaker::asks).ok_or_else(|| Status::unauthenticated("no identity"))
    }

    async fn peer<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let key = self.speaker(request)?;
        let by_key = self.peers.by_key(&key);
        if let (None, Some(old)) = (&by_key, self.peers.renewed(&key)) {
            let renewed = self.driver.visit(move |core| core.renew_peer(&old, &key)).await;
            let noted = matches!(renewed, Ok(Ok(())));
            if !noted {
                return Err(Status::unavailable(
                    "the site cannot note your new key now; try again",
                ));
            }
        }
        let peer = by_key.or_else(|| self.peers.by_key(&key));
        let peer =
            peer.ok_or_else(|| Status::unauthenticated("not a peer; join with a ticket first"))?;
        // Before anything of it is looked at, which is what costs.
        self.peers.spend(&peer, Instant::now()).map_err(|(rate, wait)| {
            let wait = wait.as_millis().max(1);
            Status::resource_exhausted(format!(
                "the peering allows {rate} requests a second; ask again in {wait} ms"
            ))
        })?;
        Ok(peer)
    }

    /// The one way of every operation: verify, let the driver answer, seal.
    async fn exchange(
        &self,
        request: Request<Sealed>,
        fits: impl Fn(&Op) -> bool,
    ) -> Result<Response<Sealed>, Status> {
        let begun = Instant::now();
        let peer = self.peer(&request).await?;
        let me = self.identity.site_key();
        let opened = envelope::open_request(request.into_inner(), peer.key, me, now());
        let (opened, digest) = opened.map_err(|error| {
            tracing::warn!(peer = %peer.name, %error, "a request was refused");
            self.count(&peer.name, metrics::UNREADABLE, "error", begun);
            refusal(error)
        })?;
        self.driver.saw_journal(peer.key, opened.journal);
        let request = opened.content.into_inner();
        if !fits(&request.origin.op) {
            return Err(Status::invalid_argument("the operation is not the one that was called"));
        }
        self.peers.heard(&peer.name, Ok(()));
        let operation = request.origin.op.name();
        let answer = self.driver.request(peer.name.clone(), request).await;
        let answered = answer.map_err(|ended| Status::unavailable(ended.to_string()))?;
        self.count(&peer.name, operation, metrics::kind(&answered.answer), begun);
        let sign = |kind: &str, body: &[u8]| self.identity.sign(kind, body);
        let sealer = Sealer { site: me, sign: &sign, journal: answered.journal };
        let sealed = envelope::seal_answer(&sealer, peer.key, digest, answered.answer);
        Ok(Response::new(sealed))
    }

    /// Counts a request of a peer.
    fn count(
        &self,
        peer: &PeerName,
        operation: &'static str,
        answer: &'static str,
        begun: Instant,
    ) {
        let (received, took) = (Direction::Received, begun.elapsed());
        self.driver.metrics().request(received, peer, operation, answer, took);
    }

    async fn accept_ticket(&self, key: SiteKey, ask: JoinRequest) -> Result<JoinReply, Status> {
        let refused = || Status::permission_denied(USED_TICKET);
        let secret: [u8; 32] = ask.secret.try_into().map_err(|_| refused())?;
        let hash = TicketSecret::from_bytes(secret).hash();
        let name: PeerName =
            ask.name.parse().map_err(|e| Status::invalid_argument(format!("your name: {e}")))?;
        if ask.addresses.is_empty() || ask.addresses.len() > certs::MAX_ADDRESSES {
            return Err(Status::invalid_argument("a site gives 1 to 8 addresses"));
        }
        let legal = |address: &String| {
            address.len() <= 255 && address.bytes().all(|b| b.is_ascii_graphic())
        };
        if !ask.addresses.iter().all(legal) {
            return Err(Status::invalid_argument("an address is not legal"));
        }
        // Whoever is a peer already is called what it was called.
        let known = self.peers.by_key(&key).map(|peer| peer.name);
        let name = known.unwrap_or_else(|| self.free_name(name, &key));
        let peering = Peering::default();
        let peer = StoredPeer { name, key, addresses: ask.addresses, peering };
        let peers = self.peers.clone();
        let joined = self.driver.visit(move |core| {
            let used = core.journal.accept_invitation(&hash, core.now(), &peer)?;
            if used.is_some() {
                peers.load(core.journal.peers()?, core.journal.inviting_until()?);
                core.peers_changed()?;
            }
            Ok::<_, crate::journal::JournalError>(used)
        });
        match joined.await {
            Ok(Ok(Some(peering))) => {
                let terms = peering.to_string();
                Ok(JoinReply { name: self.name.to_string(), terms })
            }
            Ok(Ok(None)) => Err(refused()),
            Ok(Err(error)) => {
                tracing::error!(error = report(&error), "cannot note a new peer");
                Err(Status::unavailable("the site cannot note new peers now; try again"))
            }
            Err(ended) => Err(Status::unavailable(ended.to_string())),
        }
    }

    /// The name that a new peer gets here: what it calls itself, with a number if that is taken.
    fn free_name(&self, wanted: PeerName, key: &SiteKey) -> PeerName {
        let free = |name: &PeerName| self.peers.get(name).is_none_or(|peer| peer.key == *key);
        if free(&wanted) {
            return wanted;
        }
        let base: String = wanted.as_str().chars().take(58).collect();
        (2..10_000).filter_map(|n| format!("{base}-{n}").parse().ok()).find(free).unwrap_or(wanted)
    }
}

/// What whoever shows a ticket that is not good any more reads.
pub(crate) const USED_TICKET: &str =
    "the ticket was used already, has expired, or was not made here; ask for a new one";

/// What this site's user reads where the other site lets no stranger in at all.
pub(crate) const CLOSED_DOOR: &str = "the other site has no open invitation: the ticket was used \
    already, has expired, or was not made there; ask for a new one";

fn refusal(error: EnvelopeError) -> Status {
    match error {
        EnvelopeError::Stale => Status::failed_precondition(error.to_string()),
        _ => Status::invalid_argument(error.to_string()),
    }
}

/// Makes a handler out of the operations that it takes.
macro_rules! operation {
    ($self:ident, $request:ident, $pattern:pat) => {
        $self.exchange($request, |op| matches!(op, $pattern)).await
    };
}

#[tonic::async_trait]
impl Federation for Gate {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let peer = self.peer(&request).await?;
        let hello = request.into_inner();
        let newest = hello.newest_version.min(*VERSIONS.end());
        if newest < hello.oldest_version.max(*VERSIONS.start()) {
            let (oldest, newest) = (VERSIONS.start(), VERSIONS.end());
            return Err(Status::failed_precondition(format!("versions {oldest} to {newest} only")));
        }
        let Some(mark) = hello.journal.and_then(|mark| mark.parse()) else {
            return Err(Status::invalid_argument("the length of your journal is not signed"));
        };
        let known = self.driver.visit(move |core| {
            let seen = core.journal.seen(&peer.key)?;
            core.journal.saw_journal(&peer.key, &mark)?;
            Ok::<_, crate::journal::JournalError>((core.journal_mark(), seen))
        });
        match known.await {
            Ok(Ok((mark, seen))) => Ok(Response::new(HelloReply {
                version: newest,
                journal: Some(mark.into()),
                journal_seen: seen.map(Into::into),
            })),
            _ => Err(Status::unavailable("the site cannot answer now")),
        }
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let key = self.speaker(&request)?;
        self.accept_ticket(key, request.into_inner()).await.map(Response::new)
    }

    async fn migration_request(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::MigrationRequest { .. })
    }

    async fn forced_migration(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::ForcedMigration { .. } | Op::Evict { .. })
    }

    async fn initiate_transfer(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::InitiateTransfer { .. })
    }

    async fn transfer_verification(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::TransferVerification { .. })
    }

    async fn deliver(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::Deliver { .. })
    }

    async fn handback(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::Handback { .. })
    }

    async fn retire(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::Retire { .. })
    }

    async fn control(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::Control { .. } | Op::Monitor { .. })
    }

    async fn report(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::Report { .. })
    }

    async fn confirm(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::Confirm { .. })
    }

    async fn reclaim(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::Reclaim { .. })
    }

    async fn superseded(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::Superseded { .. })
    }

    async fn values(&self, request: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        let begun = Instant::now();
        let peer = self.peer(&request).await?;
        let me = self.identity.site_key();
        let busy = || Status::unavailable("this site is taking values of yours already");
        let _alone = self.monitor.alone(&peer.name).ok_or_else(busy)?;
        let (sealed, key) = (request.into_inner(), peer.key);
        // Not on the thread on which everything between sites is answered.
        let opened =
            tokio::task::spawn_blocking(move || envelope::open_values(sealed, key, me, now()));
        let opened = opened.await.map_err(|_| Status::internal("the values cannot be read"))?;
        let (opened, digest) = opened.map_err(|error| {
            tracing::warn!(peer = %peer.name, %error, "values were refused");
            self.count(&peer.name, metrics::UNREADABLE, "error", begun);
            refusal(error)
        })?;
        self.driver.saw_journal(peer.key, opened.journal);
        self.peers.heard(&peer.name, Ok(()));
        let verdicts = self.monitor.receive(opened.content.into_inner(), &peer.name).await;
        let answer = if verdicts.is_ok() { "verdicts" } else { "error" };
        self.count(&peer.name, metrics::VALUES, answer, begun);
        let verdicts = verdicts.map_err(|error| Status::unavailable(error.to_string()))?;
        let journal = self.driver.visit(|core| core.journal_mark()).await;
        let journal = journal.map_err(|ended| Status::unavailable(ended.to_string()))?;
        let sign = |kind: &str, body: &[u8]| self.identity.sign(kind, body);
        let sealer = Sealer { site: me, sign: &sign, journal };
        Ok(Response::new(envelope::seal_verdicts(&sealer, peer.key, digest, verdicts)))
    }

    async fn withdraw(&self, r: Request<Sealed>) -> Result<Response<Sealed>, Status> {
        operation!(self, r, Op::Withdraw { .. })
    }
}
