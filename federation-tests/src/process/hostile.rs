//! A site whose node was stopped, played by the test: it has the site's identity, keys and address,
//! asks other sites whatever it likes over real TLS, and answers as it likes.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use certs::Identity;
use hyper_util::rt::TokioIo;
use model::{JournalMark, PublicKey, SecretKey, SiteKey, Time};
use proto::envelope::{self, RequestDigest, Sealer};
use proto::federation::Sealed;
use proto::federation::federation_client::FederationClient;
use proto::federation::federation_server::{Federation as Operations, FederationServer};
use proto::federation::{HelloReply, HelloRequest, JoinReply, JoinRequest, JournalMark as Mark};
use protocol::{Answer, Op, Request};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};
use tower::service_fn;
use transfer_proxy::{Config, Event, Limits, Proxy, ResetKey};

use super::Site;
use crate::bench::clock;

/// How long anything between two sites of one machine may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Larger than any message that a node takes.
const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// What it was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The request.
    pub request: Request,
    /// What an answer must be bound to.
    pub digest: RequestDigest,
}

/// How it answers.
pub enum Reply {
    /// This, sealed as a site does.
    Says(Answer),
    /// These very bytes.
    Sends(Sealed),
    /// Not at all.
    Ends(Status),
}

/// What is said at a connection's beginning.
#[derive(Default)]
struct Greeting {
    /// What it says to remember of the victim's journal.
    remembers: Option<Mark>,
    /// The victim's last mark.
    shown: Option<JournalMark>,
}

/// Decides about every request, one after the other.
pub type Manner = Box<dyn FnMut(&Asked) -> Reply + Send>;

/// The site, as the test plays it.
pub struct Hostile {
    /// Serves and calls. It comes first: what is served ends before the rest is gone.
    runtime: Runtime,
    identity: Identity,
    keys: BTreeMap<PublicKey, SecretKey>,
    manner: Arc<Mutex<Manner>>,
    greeting: Arc<Mutex<Greeting>>,
    proxy: Proxy,
    events: Mutex<mpsc::Receiver<Event>>,
}

impl Hostile {
    /// Takes the place of a site whose node has ended, towards `victim`.
    pub fn instead_of(site: &Site, victim: &Site) -> Self {
        let identity = Identity::load(site.folder()).expect("a site has its key");
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        let manner: Manner = Box::new(|_| Reply::Ends(Status::unavailable("not now")));
        let manner = Arc::new(Mutex::new(manner));
        let greeting = Arc::<Mutex<Greeting>>::default();
        let serves = Serves {
            identity: identity.clone(),
            victim: site_key(victim),
            manner: manner.clone(),
            greeting: greeting.clone(),
        };
        let (sender, events) = mpsc::channel(64);
        let proxy = runtime.block_on(async {
            let listener = TcpListener::bind(site.address()).await.expect("its node has ended");
            tokio::spawn(async move {
                let identity = serves.identity.clone();
                serve(listener, &identity, serves).await;
            });
            let config = Config {
                listen: SocketAddr::new(site.address().ip(), 0),
                shares_tcp: false,
                advertise: None,
                limits: Limits::default(),
                reset: ResetKey::of(&identity),
            };
            Proxy::start(config, sender).await.expect("the address is the site's own")
        });
        let events = Mutex::new(events);
        Self { runtime, identity, keys: site.keys(), manner, greeting, proxy, events }
    }

    /// Its identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A key that its node made.
    pub fn key(&self, public: &PublicKey) -> &SecretKey {
        self.keys.get(public).expect("its node made this key")
    }

    /// Its own transfer proxy, at the site's address.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// The first thing that its proxy tells and `wanted` takes; others are dropped.
    pub fn told<T>(&self, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let mut events = lock(&self.events);
        let mut seen = vec![];
        let found = async {
            loop {
                let event = events.recv().await.expect("the proxy runs");
                if let Some(found) = wanted(&event) {
                    return found;
                }
                seen.push(event);
            }
        };
        let found = self.runtime.block_on(async { tokio::time::timeout(LIMIT, found).await });
        found.unwrap_or_else(|_| panic!("only these events came: {seen:#?}"))
    }

    /// How it answers from here on.
    pub fn answers(&self, manner: impl FnMut(&Asked) -> Reply + Send + 'static) {
        *lock(&self.manner) = Box::new(manner);
    }

    /// What it says from here on, when it is greeted, that it remembers of the victim's journal.
    pub fn remembers(&self, mark: Option<Mark>) {
        lock(&self.greeting).remembers = mark;
    }

    /// How long the victim's journal is, as its last greeting said.
    pub fn shown(&self) -> Option<JournalMark> {
        lock(&self.greeting).shown
    }

    /// Seals a request for a site as a node does, signed by these of its keys.
    pub fn seal(&self, to: SiteKey, request: &Request, by: &SecretKey) -> (Sealed, RequestDigest) {
        self.seal_at(to, request, by, clock())
    }

    /// The same, as of another time.
    pub fn seal_at(
        &self,
        to: SiteKey,
        request: &Request,
        by: &SecretKey,
        at: Time,
    ) -> (Sealed, RequestDigest) {
        let sign = |kind: &str, body: &[u8]| self.identity.sign(kind, body);
        let sealer = Sealer {
            site: self.identity.site_key(),
            sign: &sign,
            journal: JournalMark::new(1, sign),
        };
        let origin = |_: &PublicKey, kind: &str, body: &[u8]| by.sign(kind, body);
        envelope::seal_request(&sealer, to, request, origin, at, rand::random())
    }

    /// Asks a site for something, as a node does, and opens the answer.
    pub fn ask(&self, site: &Site, request: &Request, by: &SecretKey) -> Result<Answer, Status> {
        let (sealed, digest) = self.seal(site_key(site), request, by);
        let answer = self.send(site, &request.origin.op, sealed)?;
        Ok(self.open(site, &answer, digest))
    }

    /// Opens an answer to a request of its own.
    pub fn open(&self, site: &Site, answer: &Sealed, digest: RequestDigest) -> Answer {
        let me = self.identity.site_key();
        let opened = envelope::open_answer(answer, site_key(site), me, digest);
        opened.expect("an honest site's answer opens").content.into_inner()
    }

    /// Sends these bytes to a site, as a call of the operation that `op` is.
    pub fn send(&self, site: &Site, op: &Op, sealed: Sealed) -> Result<Sealed, Status> {
        self.call(site, async |mut client| {
            proto::call(&mut client, op, sealed).await.map(Response::into_inner)
        })
    }

    /// Calls a site over a connection of its own.
    pub fn call<T>(
        &self,
        site: &Site,
        work: impl AsyncFnOnce(FederationClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let tls = certs::client_config(&self.identity, site_key(site)).expect("a sound identity");
        self.call_as(tls, site, work)
    }

    /// The same, as whom `tls` shows.
    pub fn call_as<T>(
        &self,
        tls: Arc<rustls::ClientConfig>,
        site: &Site,
        work: impl AsyncFnOnce(FederationClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, Status> {
        self.runtime.block_on(call(tls, site_key(site), site.address(), work))
    }
}

async fn call<T>(
    tls: Arc<rustls::ClientConfig>,
    key: SiteKey,
    address: SocketAddr,
    work: impl AsyncFnOnce(FederationClient<Channel>) -> Result<T, Status>,
) -> Result<T, Status> {
    let connector = service_fn(move |_: tonic::transport::Uri| {
        let tls = tls.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            // As a node does: a request's head and body are sent apart.
            tcp.set_nodelay(true)?;
            let connector = tokio_rustls::TlsConnector::from(tls);
            Ok::<_, io::Error>(TokioIo::new(
                connector.connect(certs::server_name(&key), tcp).await?,
            ))
        }
    });
    let endpoint = Endpoint::from_static("http://site.sojourn.invalid");
    let work = async {
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let client = FederationClient::new(channel);
        work(client.max_encoding_message_size(MAX_MESSAGE_BYTES)).await
    };
    let ended = tokio::time::timeout(LIMIT, work).await;
    ended.unwrap_or_else(|_| Err(Status::deadline_exceeded("the site does not answer")))
}

/// The key that a site is known by.
pub fn site_key(site: &Site) -> SiteKey {
    Identity::load(site.folder()).expect("a site has its key").site_key()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

// What it serves.

/// Lets everybody in.
#[derive(Debug)]
pub struct Anyone;

impl certs::Trust for Anyone {
    fn knows(&self, _: &SiteKey) -> bool {
        true
    }

    fn admits_strangers(&self) -> bool {
        true
    }
}

/// Answers the calls of whoever comes, as the site of this identity.
pub async fn serve(listener: TcpListener, identity: &Identity, operations: impl Operations) {
    let tls = certs::server_config(identity, Arc::new(Anyone)).expect("a sound identity");
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let (accepted, streams) = mpsc::channel(4);
    let accept = async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
            let (mut near, far) = tokio::io::duplex(64 << 10);
            let _ = accepted.send(Ok::<_, io::Error>(far)).await;
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut near).await;
            });
        }
    };
    let server = tonic::transport::Server::builder()
        .add_service(FederationServer::new(operations))
        .serve_with_incoming(ReceiverStream::new(streams));
    tokio::select! {
        () = accept => {}
        _ = server => {}
    }
}

struct Serves {
    identity: Identity,
    victim: SiteKey,
    manner: Arc<Mutex<Manner>>,
    greeting: Arc<Mutex<Greeting>>,
}

impl Serves {
    fn reply(&self, sealed: Sealed) -> Result<Response<Sealed>, Status> {
        let me = self.identity.site_key();
        let opened = envelope::open_request(sealed, self.victim, me, clock());
        let (opened, digest) =
            opened.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let asked = Asked { request: opened.content.into_inner(), digest };
        match lock(&self.manner)(&asked) {
            Reply::Says(answer) => {
                let sign = |kind: &str, body: &[u8]| self.identity.sign(kind, body);
                let sealer = Sealer { site: me, sign: &sign, journal: JournalMark::new(1, sign) };
                Ok(Response::new(envelope::seal_answer(&sealer, self.victim, digest, answer)))
            }
            Reply::Sends(sealed) => Ok(Response::new(sealed)),
            Reply::Ends(status) => Err(status),
        }
    }
}

type Answered<'a, T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'a>>;

macro_rules! operations {
    ($($operation:ident)*) => {
        $(fn $operation<'a, 'async_trait>(
            &'a self,
            request: tonic::Request<Sealed>,
        ) -> Answered<'async_trait, Sealed>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { self.reply(request.into_inner()) })
        })*
    };
}

impl Operations for Serves {
    fn hello<'a, 'async_trait>(
        &'a self,
        asked: tonic::Request<HelloRequest>,
    ) -> Answered<'async_trait, HelloReply>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        let asked = asked.into_inner();
        let sign = |kind: &str, body: &[u8]| self.identity.sign(kind, body);
        let journal = Some(JournalMark::new(1, sign).into());
        let mut greeting = lock(&self.greeting);
        greeting.shown = asked.journal.and_then(|mark| mark.parse());
        let journal_seen = greeting.remembers.clone();
        let reply = HelloReply { version: asked.newest_version, journal, journal_seen };
        Box::pin(async move { Ok(Response::new(reply)) })
    }

    fn join<'a, 'async_trait>(
        &'a self,
        _: tonic::Request<JoinRequest>,
    ) -> Answered<'async_trait, JoinReply>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async { Err(Status::unimplemented("no")) })
    }

    fn values<'a, 'async_trait>(
        &'a self,
        _: tonic::Request<Sealed>,
    ) -> Answered<'async_trait, Sealed>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async { Err(Status::unavailable("not now")) })
    }

    operations! {
        migration_request forced_migration initiate_transfer transfer_verification deliver handback
        retire control report withdraw confirm reclaim superseded
    }
}
