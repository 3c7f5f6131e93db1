//! The site above, as far as an Intermediary sees it: it opens and answers what it is brought, and
//! keeps nothing, so that it takes little of the machine.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use certs::{Identity, Trust};
use federation_tests::bench::{Failure, Wire, clock};
use model::{JournalMark, SiteKey};
use prost::Message;
use proto::envelope::{self, Sealer, Verdict};
use proto::federation::{HelloReply, HelloRequest, Sealed};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

/// Bytes of a message, at most.
const MESSAGE: usize = 2 << 20;

/// What has come to it.
#[derive(Default)]
pub(crate) struct Came {
    /// Blocks of values.
    pub(crate) blocks: AtomicU64,
    /// Bytes of the messages that brought them.
    pub(crate) bytes: AtomicU64,
    /// Bytes on its connections, TLS and answers and all.
    pub(crate) wire: Wire,
}

/// A site that values are brought to.
#[derive(Clone)]
pub(crate) struct Sink {
    identity: Arc<Identity>,
    below: SiteKey,
    came: Arc<Came>,
}

/// Only the site below is there to come.
struct Below(SiteKey);

impl Trust for Below {
    fn knows(&self, key: &SiteKey) -> bool {
        *key == self.0
    }

    fn admits_strangers(&self) -> bool {
        false
    }
}

impl Sink {
    /// Serves as `identity` on this listener, for the peer `below` alone, in tasks that end with the
    /// runtime.
    pub(crate) fn start(
        identity: Identity,
        below: SiteKey,
        listener: TcpListener,
    ) -> Result<Arc<Came>, Failure> {
        let came = Arc::new(Came::default());
        let tls = certs::server_config(&identity, Arc::new(Below(below)))?;
        let sink = Self { identity: Arc::new(identity), below, came: came.clone() };
        let (accepted, streams) = mpsc::channel(4);
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        let wire = came.wire.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let _ = tcp.set_nodelay(true);
                if let Ok(stream) = acceptor.accept(wire.count(tcp)).await {
                    let _ = accepted.send(Ok::<_, Infallible>(Wire::default().count(stream))).await;
                }
            }
        });
        let server = tonic::transport::Server::builder().add_service(sink);
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(streams)));
        Ok(came)
    }

    fn take(&self, sealed: Sealed) -> Result<Sealed, Status> {
        let bytes = sealed.encoded_len() as u64;
        let me = self.identity.site_key();
        let (opened, digest) = envelope::open_values(sealed, self.below, me, clock())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let blocks = opened.content.into_inner().len();
        self.came.blocks.fetch_add(blocks as u64, Ordering::Relaxed);
        self.came.bytes.fetch_add(bytes, Ordering::Relaxed);
        let sign = |kind: &str, body: &[u8]| self.identity.sign(kind, body);
        let sealer = Sealer { site: me, sign: &sign, journal: JournalMark::new(0, sign) };
        let verdicts = vec![Verdict::Taken; blocks];
        Ok(envelope::seal_verdicts(&sealer, self.below, digest, verdicts))
    }
}

impl NamedService for Sink {
    const NAME: &'static str = "sojourn.federation.v1.Federation";
}

/// An answer that is being made.
type Answer =
    Pin<Box<dyn Future<Output = Result<http::Response<tonic::body::Body>, Infallible>> + Send>>;

impl Service<http::Request<tonic::body::Body>> for Sink {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Answer {
        let sink = self.clone();
        Box::pin(async move {
            let answer = match request.uri().path().rsplit('/').next() {
                Some("Hello") => {
                    let hello = service_fn(async |hello: Request<HelloRequest>| {
                        let version = hello.into_inner().newest_version;
                        Ok(Response::new(HelloReply { version, ..HelloReply::default() }))
                    });
                    Grpc::new(ProstCodec::default()).unary(hello, request).await
                }
                Some("Values") => {
                    let values = service_fn(move |values: Request<Sealed>| {
                        std::future::ready(sink.take(values.into_inner()).map(Response::new))
                    });
                    let codec = Grpc::new(ProstCodec::default());
                    codec.max_decoding_message_size(MESSAGE).unary(values, request).await
                }
                _ => Status::unimplemented("values only").into_http(),
            };
            Ok(answer)
        })
    }
}
