//! Mutual-TLS echoes over several hops, each hop a process of its own that does the signatures which
//! a request needs there: what a request between sites is measured against.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::Identity;
use model::SecretKey;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Failure;
use crate::process::hostile::Anyone;

/// The first argument of a process that is to echo.
const ROLE: &str = "echo";
/// Bytes of a sealed Migration request and of its answer, about.
const REQUEST_BYTES: usize = 600;
const ANSWER_BYTES: usize = 700;

/// A chain of echo processes, which end with this.
pub struct Echoes {
    /// Where the first of them listens.
    pub address: SocketAddr,
    processes: Vec<std::process::Child>,
}

impl Echoes {
    /// Starts `hops` of them, each a process of this same program.
    ///
    /// # Errors
    ///
    /// If a process cannot be started.
    pub fn start(hops: usize) -> Result<Self, Failure> {
        let mut processes = Vec::new();
        // Each process finds the next one at its own port + 1.
        let base = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        for hop in 0..hops {
            let port = base + u16::try_from(hop)?;
            let child = std::process::Command::new(std::env::current_exe()?)
                .args([ROLE, &format!("127.0.0.1:{port}"), &(hops - hop - 1).to_string()])
                .spawn()?;
            processes.push(child);
        }
        Ok(Self { address: SocketAddr::from(([127, 0, 0, 1], base)), processes })
    }
}

impl Drop for Echoes {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// All echo processes and their caller are one identity: who it is does not matter here.
fn echo_identity() -> Identity {
    Identity::from_seed(&[42; 32])
}

/// The signatures of one hop that receives a request: hop and origin verified; of the answer: made
/// here, and at the end of the chain two keys and their proof as well.
fn signatures_of_receiver(key: &SecretKey, body: &[u8], is_last: bool) {
    let signature = key.sign("echo", body);
    use model::key::Verify;
    for _ in 0..2 {
        assert!(model::key::Strict.verify(&key.public(), "echo", body, &signature));
    }
    if is_last {
        let keys = [1, 2].map(|n| SecretKey::from_seed(&[n; 32]));
        std::hint::black_box(keys[0].sign("proof", &keys[1].public().0));
    }
}

/// The signatures of one hop that sends a request: its hop part made; of the answer: verified,
/// with the proof of the one offer in it.
fn signatures_of_sender(key: &SecretKey, body: &[u8]) {
    use model::key::Verify;
    let signature = key.sign("echo", body);
    for _ in 0..2 {
        assert!(model::key::Strict.verify(&key.public(), "echo", body, &signature));
    }
}

/// What one echo process was asked to be: where it listens, and how many come after it.
pub struct Role {
    listen: SocketAddr,
    further: usize,
}

/// The role that this process was started with by [`Echoes::start`], if it was.
///
/// # Errors
///
/// If it is none.
pub fn role() -> Result<Option<Role>, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [role, listen, further] if role == ROLE => {
            Ok(Some(Role { listen: listen.parse()?, further: further.parse()? }))
        }
        _ => Ok(None),
    }
}

/// Echoes until it is ended.
///
/// # Errors
///
/// If its address cannot be listened on.
pub async fn serve(Role { listen, further }: Role) -> Result<(), Failure> {
    let identity = echo_identity();
    let tls = certs::server_config(&identity, Arc::new(Anyone))?;
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let listener = TcpListener::bind(listen).await?;
    let next = SocketAddr::new(listen.ip(), listen.port() + 1);
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(mut stream) = acceptor.accept(tcp).await else { return };
            let mut onward = None;
            let key = SecretKey::from_seed(&[7; 32]);
            let mut body = vec![0; REQUEST_BYTES];
            while stream.read_exact(&mut body).await.is_ok() {
                signatures_of_receiver(&key, &body, further == 0);
                if further > 0 {
                    if onward.is_none() {
                        onward = EchoCaller::connect(next).await.ok();
                    }
                    let Some(onward) = &mut onward else { return };
                    if onward.call().await.is_err() {
                        return;
                    }
                }
                if write(&mut stream, &[0; ANSWER_BYTES]).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Whoever calls the first of them.
pub struct EchoCaller {
    stream: Box<dyn Duplex>,
    key: SecretKey,
}

impl EchoCaller {
    /// Connects, as soon as somebody listens there.
    ///
    /// # Errors
    ///
    /// If nobody does for ten seconds.
    pub async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let identity = echo_identity();
        let site = identity.site_key();
        let tls = certs::client_config(&identity, site)?;
        let until = Instant::now() + Duration::from_secs(10);
        let tcp = loop {
            match TcpStream::connect(address).await {
                Ok(tcp) => break tcp,
                Err(error) if Instant::now() > until => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        tcp.set_nodelay(true)?;
        let connector = tokio_rustls::TlsConnector::from(tls);
        let stream = connector.connect(certs::server_name(&site), tcp).await?;
        Ok(Self { stream: Box::new(stream), key: SecretKey::from_seed(&[7; 32]) })
    }

    /// One echo over all hops: how long it took.
    ///
    /// # Errors
    ///
    /// If one of them has gone.
    pub async fn call(&mut self) -> Result<Duration, Failure> {
        let begun = Instant::now();
        let request = [0; REQUEST_BYTES];
        signatures_of_sender(&self.key, &request);
        write(&mut self.stream, &request).await?;
        let mut answer = [0; ANSWER_BYTES];
        self.stream.read_exact(&mut answer).await?;
        Ok(begun.elapsed())
    }
}
