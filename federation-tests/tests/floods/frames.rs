//! HTTP/2 by hand (RFC 9113), so that a test can say what no client would.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use federation_tests::process::Site;
use federation_tests::process::hostile::{Hostile, site_key};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame (section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a Migration request, or of whatever method this is (RFC 7541).
pub(crate) fn headers(method: &str) -> Vec<u8> {
    let path = format!("/sojourn.federation.v1.Federation/{method}");
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    // POST, http, and then `:path`, `:authority` and `content-type` by the numbers of their names.
    let fields = [
        vec![0x83, 0x86],
        [vec![0x04], text(&path)].concat(),
        [vec![0x01], text("v")].concat(),
        [vec![0x0f, 0x10], text("application/grpc")].concat(),
        [vec![0x00], text("te"), text("trailers")].concat(),
    ];
    fields.concat()
}

/// The streams that a client opens, one after the other.
pub(crate) fn streams() -> impl Iterator<Item = u32> {
    (1..u32::MAX >> 1).step_by(2)
}

/// The loopback address with this number; h has the first one.
pub(crate) fn address(number: usize) -> Ipv4Addr {
    let number = u32::try_from(number).unwrap();
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 200, 0, 1).to_bits() + number % (1 << 16))
}

/// A connection from an address of this machine.
pub(crate) async fn connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    dial(TcpSocket::new_v4()?, from, to).await
}

async fn dial(socket: TcpSocket, from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    socket.bind(SocketAddr::new(from.into(), 0))?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A hostile peer at a site's door.
#[derive(Clone)]
pub(crate) struct Caller {
    tls: Arc<rustls::ClientConfig>,
    name: rustls::pki_types::ServerName<'static>,
    to: SocketAddr,
}

pub(crate) type Writer = WriteHalf<TlsStream<TcpStream>>;
type Reader = ReadHalf<TlsStream<TcpStream>>;

impl Caller {
    pub(crate) fn new(who: &Hostile, site: &Site) -> Self {
        let key = site_key(site);
        let tls = certs::client_config(who.identity(), key).unwrap();
        Self { tls, name: certs::server_name(&key), to: site.address() }
    }

    /// The first thing that a caller says.
    pub(crate) fn hello(&self) -> Vec<u8> {
        let mut client =
            rustls::ClientConnection::new(self.tls.clone(), self.name.clone()).unwrap();
        let mut hello = vec![];
        while client.wants_write() {
            client.write_tls(&mut hello).unwrap();
        }
        hello
    }

    /// A TLS connection on which nothing was said.
    pub(crate) async fn call(&self, from: Ipv4Addr) -> io::Result<(Reader, Writer)> {
        self.shake_hands(connect(from, self.to).await?).await
    }

    /// The same, with room for little that is not read.
    pub(crate) async fn call_deaf(&self, from: Ipv4Addr) -> io::Result<(Reader, Writer)> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        self.shake_hands(dial(socket, from, self.to).await?).await
    }

    async fn shake_hands(&self, tcp: TcpStream) -> io::Result<(Reader, Writer)> {
        let tls = TlsConnector::from(self.tls.clone()).connect(self.name.clone(), tcp).await?;
        Ok(tokio::io::split(tls))
    }

    /// A connection on which the two sides may speak. What the site says is read and thrown away.
    pub(crate) async fn greet(&self, from: Ipv4Addr) -> io::Result<Writer> {
        let (reader, mut writer) = self.call(from).await?;
        tokio::spawn(drain(reader));
        writer.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await?;
        writer.flush().await?;
        Ok(writer)
    }
}

/// Reads until nothing comes any more.
pub(crate) async fn drain(mut reader: Reader) {
    let mut bytes = vec![0; 16 << 10];
    while reader.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
}
