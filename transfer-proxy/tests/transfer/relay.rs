//! A UDP path with a valve: it lets so many bytes pass from the source to the target, then
//! nothing until it is opened further.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use model::ProxyUri;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

pub(crate) struct Relay {
    uri: ProxyUri,
    passed: Arc<AtomicU64>,
    allowed: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Relay {
    /// A path to `source` that lets `allowed` bytes pass on the way back.
    pub(crate) async fn start(source: SocketAddr, allowed: u64) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        back.connect(source).await.unwrap();
        let uri = ProxyUri::quic(front.local_addr().unwrap());
        let passed = Arc::new(AtomicU64::new(0));
        let allowed = Arc::new(AtomicU64::new(allowed));
        let task = tokio::spawn(forward(front, back, passed.clone(), allowed.clone()));
        Self { uri, passed, allowed, task }
    }

    pub(crate) fn uri(&self) -> ProxyUri {
        self.uri.clone()
    }

    /// Whether all that may pass has passed.
    pub(crate) fn is_stuck(&self) -> bool {
        self.passed.load(Ordering::Relaxed) >= self.allowed.load(Ordering::Relaxed)
    }

    pub(crate) fn open_fully(&self) {
        self.allowed.store(u64::MAX, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(
    front: UdpSocket,
    back: UdpSocket,
    passed: Arc<AtomicU64>,
    allowed: Arc<AtomicU64>,
) {
    let (mut there, mut here) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut target = None;
    loop {
        tokio::select! {
            Ok((length, from)) = front.recv_from(&mut there) => {
                target = Some(from);
                // Refused while the source restarts: a lost packet, as on any path.
                let _ = back.send(&there[..length]).await;
            }
            read = back.recv(&mut here) => {
                let Ok(length) = read else { continue };
                let Some(target) = target else { continue };
                if passed.load(Ordering::Relaxed) < allowed.load(Ordering::Relaxed) {
                    passed.fetch_add(length as u64, Ordering::Relaxed);
                    let _ = front.send_to(&here[..length], target).await;
                }
            }
        }
    }
}
