//! What the measuring programs share: how they reach nodes, what they compare with, and how they
//! tell it. Figures are reported, with what they are compared with from the same run; no test
//! asserts them.

pub mod echo;
pub mod report;

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use certs::Identity;
use hyper_util::rt::TokioIo;
use model::{SiteKey, Time};
use proto::admin::admin_client::AdminClient;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};

/// Why a measurement came to nothing.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The machine and what else it does: the first line of a report.
pub fn heading() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let memory = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    let load = read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{cores} cores, {} GiB, Linux {}, load averages {load}",
        memory.unwrap_or_default().div_ceil(1 << 20),
        kernel.trim()
    )
}

/// Milliseconds since 1970, as sites count time.
pub fn clock() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Time(u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX))
}

/// A span in milliseconds.
pub fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// Median and 99th percentile, in milliseconds; there must be at least one.
pub fn quantiles(times: &mut [Duration]) -> (f64, f64) {
    times.sort_unstable();
    let at = |part: f64| ms(times[((times.len() - 1) as f64 * part) as usize]);
    (at(0.5), at(0.99))
}

/// The middle one; there must be at least one.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// The administration of the node whose state folder this is.
///
/// # Errors
///
/// If it does not run.
pub async fn admin(site: &Path) -> Result<AdminClient<Channel>, Failure> {
    let socket = site.join("admin.sock");
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    let endpoint = Endpoint::from_static("http://node.invalid");
    Ok(AdminClient::new(endpoint.connect_with_connector(connector).await?))
}

/// A connection to a site's control port as `identity`, whose bytes are counted.
///
/// # Errors
///
/// If it cannot be made.
pub async fn dial(
    identity: &Identity,
    site: SiteKey,
    address: &str,
    wire: &Wire,
) -> Result<Channel, Failure> {
    let tls = certs::client_config(identity, site)?;
    let (address, wire) = (address.to_owned(), wire.clone());
    let connector = tower::service_fn(move |_: Uri| {
        let (tls, address, wire) = (tls.clone(), address.clone(), wire.clone());
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let connector = tokio_rustls::TlsConnector::from(tls);
            let stream = connector.connect(certs::server_name(&site), wire.count(tcp)).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Ok(Endpoint::from_static("http://site.invalid").connect_with_connector(connector).await?)
}

/// Bytes that have crossed connections, below TLS. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Wire(Arc<AtomicU64>);

impl Wire {
    /// Counts what crosses this connection.
    pub fn count<S>(&self, stream: S) -> Counted<S> {
        Counted { stream, wire: self.clone() }
    }

    /// Bytes so far, of both directions.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection whose bytes are counted.
#[derive(Debug)]
pub struct Counted<S> {
    stream: S,
    wire: Wire,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.wire.0.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = &written {
            self.wire.0.fetch_add(*bytes as u64, Ordering::Relaxed);
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

impl<S> Connected for Counted<S> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
