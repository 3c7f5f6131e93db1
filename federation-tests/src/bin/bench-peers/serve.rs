//! What stands beside the node: the peers that it calls, and the server that it is measured
//! against, which has the settings of `node/src/gate.rs` and answers all calls with nothing.

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use certs::Identity;
use federation_tests::bench::{Failure, Wire, clock};
use federation_tests::process::Usage;
use federation_tests::process::hostile::Anyone;
use model::{JournalMark, SiteKey};
use proto::envelope::{self, Sealer};
use proto::federation::{HelloReply, HelloRequest, Sealed};
use protocol::Answer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

/// The first argument of the process that answers with nothing.
pub(crate) const ROLE: &str = "bare";
/// The settings of the node's own server.
const MAX_STREAMS: u32 = 256;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const MAX_PENDING_RESETS: usize = 20;
const MAX_HEADERS: u32 = 16 << 10;
const MAX_MESSAGE: usize = 2 * model::limit::MAX_MESSAGE_BYTES;

/// Who answers.
#[derive(Clone)]
pub(crate) enum Server {
    /// Nobody in particular, with nothing.
    Bare,
    /// A peer of the site of this key: what it is told is counted and acknowledged.
    Peer { identity: Arc<Identity>, site: SiteKey, told: Arc<AtomicU64> },
}

impl Server {
    /// Answers whoever comes, for as long as the runtime lives.
    pub(crate) fn start(self, identity: &Identity, listener: TcpListener) -> Result<(), Failure> {
        let tls = certs::server_config(identity, Arc::new(Anyone))?;
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        let (accepted, streams) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
                tokio::spawn(async move {
                    let _ = tcp.set_nodelay(true);
                    if let Ok(stream) = acceptor.accept(tcp).await {
                        let stream = Wire::default().count(stream);
                        let _ = accepted.send(Ok::<_, Infallible>(stream)).await;
                    }
                });
            }
        });
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .http2_max_header_list_size(MAX_HEADERS)
            .add_service(self);
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(streams)));
        Ok(())
    }

    fn answer(&self, asked: Sealed) -> Result<Sealed, Status> {
        let Self::Peer { identity, site, told } = self else { return Ok(Sealed::default()) };
        let me = identity.site_key();
        let opened = envelope::open_request(asked, *site, me, clock());
        let (_, digest) = opened.map_err(|why| Status::invalid_argument(why.to_string()))?;
        told.fetch_add(1, Ordering::Relaxed);
        let sign = |kind: &str, body: &[u8]| identity.sign(kind, body);
        let sealer = Sealer { site: me, sign: &sign, journal: JournalMark::new(1, sign) };
        Ok(envelope::seal_answer(&sealer, *site, digest, Answer::Done))
    }
}

impl NamedService for Server {
    const NAME: &'static str = "sojourn.federation.v1.Federation";
}

/// An answer that is being made.
type Answering =
    Pin<Box<dyn Future<Output = Result<http::Response<tonic::body::Body>, Infallible>> + Send>>;

impl Service<http::Request<tonic::body::Body>> for Server {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Answering {
        let server = self.clone();
        Box::pin(async move {
            if request.uri().path().ends_with("/Hello") {
                let hello = service_fn(async |hello: Request<HelloRequest>| {
                    let version = hello.into_inner().newest_version;
                    Ok(Response::new(HelloReply { version, ..HelloReply::default() }))
                });
                return Ok(Grpc::new(ProstCodec::default()).unary(hello, request).await);
            }
            let all = service_fn(move |asked: Request<Sealed>| {
                std::future::ready(server.answer(asked.into_inner()).map(Response::new))
            });
            let codec = Grpc::new(ProstCodec::default());
            Ok(codec.max_decoding_message_size(MAX_MESSAGE).unary(all, request).await)
        })
    }
}

/// The process that answers with nothing. It ends with this.
pub(crate) struct Bare {
    pub(crate) address: SocketAddr,
    pub(crate) key: SiteKey,
    process: Child,
}

impl Bare {
    /// Starts it, as this same program.
    pub(crate) fn start() -> Result<Self, Failure> {
        let mut program = Command::new(std::env::current_exe()?);
        let mut process = program.arg(ROLE).stdout(Stdio::piped()).spawn()?;
        let said = process.stdout.take().ok_or("it has an output")?;
        let key = identity().site_key();
        let mut bare = Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), key, process };
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        bare.address = line.trim().parse().map_err(|_| "the bare server does not start")?;
        Ok(bare)
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage::of(self.process.id())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Who it is does not matter.
fn identity() -> Identity {
    Identity::from_seed(&[42; 32])
}

/// Answers with nothing until it is ended, on one thread, as a node's control plane does.
pub(crate) fn serve() -> Result<(), Failure> {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    let runtime = threads.worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Server::Bare.start(&identity(), listener)?;
        #[expect(clippy::print_stdout, reason = "whoever started it reads it")]
        {
            println!("{address}");
        }
        std::future::pending::<Result<(), Failure>>().await
    })
}
