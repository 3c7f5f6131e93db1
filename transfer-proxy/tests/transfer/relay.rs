//! A path with a valve: it lets so many bytes pass from the source to the target, then nothing
//! until it is opened further. It may also change a byte now and then.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model::{Carrier, ProxyUri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};

/// Bursts pass also on a busy machine, as far as the system grants it.
const BUFFER_BYTES: usize = 4 << 20;

pub(crate) struct Relay {
    uri: ProxyUri,
    valve: Arc<Valve>,
    task: JoinHandle<()>,
}

struct Valve {
    passed: AtomicU64,
    allowed: AtomicU64,
    /// Places, in bytes passed, at which a byte is still to be changed: the last one first.
    faults: Mutex<Vec<u64>>,
}

impl Valve {
    /// These bytes pass now.
    fn pass(&self, bytes: &mut [u8]) {
        let before = self.passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut faults = self.faults.lock().unwrap();
        if faults.last().is_some_and(|at| *at <= before) {
            faults.pop();
            // Behind the headers of a packet or record, most probably.
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x55;
        }
    }

    fn is_open(&self) -> bool {
        self.passed.load(Ordering::Relaxed) < self.allowed.load(Ordering::Relaxed)
    }
}

impl Relay {
    /// A path to `source` that lets `allowed` bytes pass on the way back.
    pub(crate) async fn start(carrier: Carrier, source: SocketAddr, allowed: u64) -> Self {
        Self::start_with(carrier, source, allowed, vec![]).await
    }

    /// A path that lets all pass, with one byte changed as soon as so many have passed, each.
    pub(crate) async fn meddling(carrier: Carrier, source: SocketAddr, at: &[u64]) -> Self {
        Self::start_with(carrier, source, u64::MAX, at.iter().rev().copied().collect()).await
    }

    async fn start_with(
        carrier: Carrier,
        source: SocketAddr,
        allowed: u64,
        faults: Vec<u64>,
    ) -> Self {
        let faults = Mutex::new(faults);
        let valve = Arc::new(Valve { passed: 0.into(), allowed: allowed.into(), faults });
        let (address, task) = match carrier {
            Carrier::Quic => {
                let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                let address = front.local_addr().unwrap();
                let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                back.connect(source).await.unwrap();
                for socket in [&front, &back] {
                    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(socket, BUFFER_BYTES);
                }
                (address, tokio::spawn(forward(front, back, valve.clone())))
            }
            Carrier::Tls => {
                let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = front.local_addr().unwrap();
                (address, tokio::spawn(forward_streams(front, source, valve.clone())))
            }
        };
        Self { uri: ProxyUri::over(carrier, address), valve, task }
    }

    pub(crate) fn uri(&self) -> ProxyUri {
        self.uri.clone()
    }

    /// Whether all that may pass has passed.
    pub(crate) fn is_stuck(&self) -> bool {
        !self.valve.is_open()
    }

    /// How many bytes are still to be changed.
    pub(crate) fn faults_left(&self) -> usize {
        self.valve.faults.lock().unwrap().len()
    }

    pub(crate) fn open_fully(&self) {
        self.valve.allowed.store(u64::MAX, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(front: UdpSocket, back: UdpSocket, valve: Arc<Valve>) {
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
                if valve.is_open() {
                    valve.pass(&mut here[..length]);
                    let _ = front.send_to(&here[..length], target).await;
                }
            }
        }
    }
}

async fn forward_streams(front: TcpListener, source: SocketAddr, valve: Arc<Valve>) {
    let mut running = JoinSet::new();
    while let Ok((near, _)) = front.accept().await {
        // Refused while the source restarts: what came is closed.
        let Ok(far) = TcpStream::connect(source).await else { continue };
        running.spawn(forward_stream(near, far, valve.clone()));
    }
}

async fn forward_stream(near: TcpStream, far: TcpStream, valve: Arc<Valve>) {
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let there = async {
        let _ = tokio::io::copy(&mut near_read, &mut far_write).await;
        let _ = far_write.shutdown().await;
    };
    let back = async {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(length @ 1..) = far_read.read(&mut bytes).await {
            while !valve.is_open() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            valve.pass(&mut bytes[..length]);
            if near_write.write_all(&bytes[..length]).await.is_err() {
                break;
            }
        }
        let _ = near_write.shutdown().await;
    };
    tokio::join!(there, back);
}
