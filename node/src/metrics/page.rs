//! The door for whoever watches the site: three pages over HTTP/1, for reading only.
//!
//! It is for a Prometheus and a few probes. Each connection is for one request, and ends in time
//! whatever the other end does; when there are too many, the oldest gives way, so that one that
//! holds all of them open keeps nobody out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use monitoring::book::Census;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::health::{Health, report};
use super::kpi::Kpis;
use super::snapshot::{SiteView, Snapshot, write};
use crate::config::MetricsConfig;
use crate::driver::Driver;
use crate::hands::Hands;
use crate::monitor::Monitor;
use crate::peers::Peers;

/// Connections at once.
const MAX_CONNECTIONS: usize = 64;
/// Bytes of a request's line and headers.
const MAX_REQUEST_BYTES: usize = 16 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// How long a request's line and headers may take to come.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long the metrics may take to be looked at.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may last.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// Wait after a connection could not be accepted, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many times as long as a census took its outcome is told again: the book has other work.
const CENSUS_SHARE: u32 = 20;

/// The content type of OpenMetrics' text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// What is shown.
pub(crate) struct Page {
    driver: Driver,
    peers: Peers,
    monitor: Monitor,
    hands: Hands,
    health: Health,
    /// One at a time looks.
    kept: Mutex<Kept>,
}

/// What is kept between two looks.
struct Kept {
    census: Option<(Census, Instant, Duration)>,
    /// None unless the operator chose some.
    kpis: Option<Kpis>,
}

/// Listens at the operator's address.
pub(crate) async fn listen(config: &MetricsConfig) -> std::io::Result<TcpListener> {
    if !config.listen.ip().is_loopback() {
        tracing::warn!(
            address = %config.listen,
            "metrics are not on loopback: whoever reaches them sees this site's hosts, peers and \
             load"
        );
    }
    TcpListener::bind(config.listen).await
}

impl Page {
    pub(crate) fn new(config: &MetricsConfig, peers: Peers, health: Health) -> Self {
        let (driver, monitor, hands) =
            (health.driver.clone(), health.monitor.clone(), health.hands.clone());
        let kpis = (!config.kpis.is_empty()).then(|| Kpis::new(config, &monitor));
        let kept = Mutex::new(Kept { census: None, kpis });
        Self { driver, peers, monitor, hands, health, kept }
    }

    /// Serves, until the task ends.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let page = Arc::new(self);
        let mut connections = JoinSet::new();
        let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            while connections.try_join_next().is_some() {}
            oldest_first.retain(|connection| !connection.is_finished());
            if oldest_first.len() >= MAX_CONNECTIONS
                && let Some(oldest) = oldest_first.pop_front()
            {
                oldest.abort();
            }
            oldest_first.push_back(connections.spawn(connection(page.clone(), stream)));
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<String> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let said = "metrics and health are for reading only\n".to_owned();
            let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, said);
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        if !request.body().is_end_stream() {
            let said = "a request has no body here\n".to_owned();
            return response(StatusCode::PAYLOAD_TOO_LARGE, TEXT, said);
        }
        match request.uri().path() {
            "/metrics" => match timeout(LOOK_LIMIT, self.metrics()).await {
                Ok(Some(text)) => response(StatusCode::OK, OPENMETRICS, text),
                Ok(None) => unavailable("the node is shutting down, or its database fails"),
                Err(_) => unavailable("the node was not looked at in time"),
            },
            "/livez" => response(StatusCode::OK, TEXT, "live\n".to_owned()),
            "/readyz" => {
                let (is_ready, said) = report(&self.health.examine().await, verbose(&request));
                let status =
                    if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                response(status, TEXT, said)
            }
            _ => {
                let said = "here are /metrics, /livez and /readyz\n".to_owned();
                response(StatusCode::NOT_FOUND, TEXT, said)
            }
        }
    }

    /// All metrics; nothing if a part of the node does not answer any more.
    async fn metrics(&self) -> Option<String> {
        let mut kept = self.kept.lock().await;
        let Kept { census, kpis } = &mut *kept;
        let measures = kpis.as_ref().map(|kpis| kpis.measures().to_vec()).unwrap_or_default();
        let site = self
            .driver
            .visit(move |core| SiteView::of(&core.site.state, core.journal.len(), &measures));
        let mut site = site.await.ok()?;
        let candidates = std::mem::take(&mut site.candidates);
        let kpis = match kpis {
            Some(kpis) => Some(kpis.look(candidates, &self.driver, &self.monitor).await.ok()?),
            None => None,
        };
        let census = self.census(census).await?;
        let tried = self.peers.all().into_iter();
        let reachable = tried.filter_map(|peer| Some((peer.name, peer.heard?.is_ok()))).collect();
        let transfers = self.hands.count_transfers();
        let metrics = self.driver.metrics();
        let uptime = metrics.uptime();
        let snapshot = Snapshot { uptime, site, reachable, transfers, census, kpis };
        let mut text = String::new();
        metrics.write(&mut text);
        write(snapshot, &mut text);
        text.push_str("# EOF\n");
        Some(text)
    }

    async fn census(&self, kept: &mut Option<(Census, Instant, Duration)>) -> Option<Census> {
        if let Some((census, at, took)) = kept
            && at.elapsed() < *took * CENSUS_SHARE
        {
            return Some(census.clone());
        }
        let begun = Instant::now();
        let census = self.monitor.census().await.ok()?;
        *kept = Some((census.clone(), Instant::now(), begun.elapsed()));
        Some(census)
    }
}

async fn connection(page: Arc<Page>, stream: TcpStream) {
    let service = service_fn(move |request| {
        let page = page.clone();
        async move { Ok::<_, Infallible>(page.answer(request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(REQUEST_LIMIT)
        .max_buf_size(MAX_REQUEST_BYTES)
        .max_headers(MAX_HEADERS)
        .keep_alive(false);
    let serving = http.serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_LIMIT, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request for metrics came to nothing"),
        Err(_) => tracing::debug!("a request for metrics was not done in time"),
    }
}

fn verbose(request: &Request<Incoming>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="))
}

fn unavailable(why: &str) -> Response<String> {
    response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n"))
}

fn response(status: StatusCode, kind: &'static str, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
