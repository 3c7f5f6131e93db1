//! What of a transfer is the system's and the cipher's alone: a file over several TLS connections,
//! read here, written there, and nothing else. And a flow of bytes over one TCP connection.
//!
//! Each lane is a thread with blocking calls, which is the least that there can be.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use certs::Identity;
use federation_tests::bench::Failure;
use rustls::{ClientConnection, ServerConnection, StreamOwned};

use crate::end::Seconds;
use crate::place::{Place, SOURCE, TARGET};
use crate::program::Teller;
use federation_tests::process::hostile::Anyone;

/// The first argument of a process that is to be a bare end, or one of a flow.
pub(crate) const ROLE: &str = "bare";
/// Connections at once: as many as `carrier/tcp.rs` has lanes.
pub(crate) const LANES: u64 = 2;
/// Bytes that are read or written at once.
const PIECE: usize = 256 << 10;
const PORT: u16 = 7100;

fn identity() -> Identity {
    Identity::from_seed(&[43; 32])
}

/// Is what the first line of the input says, until the input is closed.
pub(crate) fn serve() -> Result<(), Failure> {
    // The first random bytes of a process take it long; ours have theirs when they start, too.
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut [0; 32]).map_err(|_| "the system has no random bytes")?;
    let mut lines = std::io::stdin().lock().lines();
    let order = lines.next().ok_or("no order came")??;
    let words: Vec<&str> = order.split('\t').collect();
    let counted = Arc::new(AtomicU64::new(0));
    match words[..] {
        ["send", listen, file] => {
            let (listener, file) = (TcpListener::bind(listen)?, Arc::new(File::open(file)?));
            println!("ready");
            let tls = certs::server_config(&identity(), Arc::new(Anyone))?;
            std::thread::spawn(move || {
                for socket in listener.incoming() {
                    let (tls, file) = (tls.clone(), file.clone());
                    std::thread::spawn(move || report(send(socket, tls, &file)));
                }
            });
        }
        ["receive", address, file, size] => {
            println!("ready");
            lines.next().ok_or("no word to begin")??;
            receive(address.parse()?, Path::new(file), size.parse()?)?;
            println!("received");
        }
        ["flow-out", listen] => {
            let listener = TcpListener::bind(listen)?;
            println!("ready");
            std::thread::spawn(move || report(flow_out(&listener)));
        }
        ["flow-in", address] => {
            println!("ready");
            lines.next().ok_or("no word to begin")??;
            let (address, counted) = (address.parse::<SocketAddr>()?, counted.clone());
            std::thread::spawn(move || report(flow_in(address, &counted)));
        }
        _ => return Err(format!("{order:?} is no order").into()),
    }
    for line in lines {
        line?;
        println!("flowed {}", counted.load(Ordering::Relaxed));
    }
    Ok(())
}

fn report(done: Result<(), Failure>) {
    if let Err(why) = done {
        println!("failed {why}");
    }
}

/// Sends the range that the other end asks for.
fn send(
    socket: std::io::Result<TcpStream>,
    tls: Arc<rustls::ServerConfig>,
    file: &File,
) -> Result<(), Failure> {
    let socket = socket?;
    socket.set_nodelay(true)?;
    let mut stream = StreamOwned::new(ServerConnection::new(tls)?, socket);
    let mut range = [0; 16];
    stream.read_exact(&mut range)?;
    let (at, length) = range.split_at(8);
    let mut at = u64::from_be_bytes(at.try_into()?);
    let end = at + u64::from_be_bytes(length.try_into()?);
    let mut piece = vec![0; PIECE];
    while at < end {
        let length = (end - at).min(PIECE as u64) as usize;
        file.read_exact_at(&mut piece[..length], at)?;
        stream.write_all(&piece[..length])?;
        at += length as u64;
    }
    Ok(stream.flush()?)
}

fn receive(address: SocketAddr, path: &Path, size: u64) -> Result<(), Failure> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let share = size.div_ceil(LANES);
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                let (at, file) = ((lane * share).min(size), &file);
                let length = share.min(size - at);
                scope.spawn(move || receive_range(address, file, at, length))
            })
            .collect();
        lanes.into_iter().try_for_each(|lane| lane.join().map_err(|_| "a lane panicked")?)
    })?;
    Ok(file.sync_all()?)
}

fn receive_range(
    address: SocketAddr,
    file: &File,
    mut at: u64,
    length: u64,
) -> Result<(), Failure> {
    let identity = identity();
    let tls = certs::client_config(&identity, identity.site_key())?;
    let name = certs::server_name(&identity.site_key());
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let socket = Buffered(BufReader::with_capacity(PIECE, socket));
    let mut stream = StreamOwned::new(ClientConnection::new(tls, name)?, socket);
    stream.write_all(&[at.to_be_bytes(), length.to_be_bytes()].concat())?;
    let end = at + length;
    let mut piece = vec![0; PIECE];
    while at < end {
        let most = (end - at).min(PIECE as u64) as usize;
        // What is there, so that decrypting and writing overlap with what comes.
        let got = stream.read(&mut piece[..most])?;
        if got == 0 {
            return Err("the sender ended too early".into());
        }
        file.write_all_at(&piece[..got], at)?;
        at += got as u64;
    }
    Ok(())
}

/// A socket that is read by large pieces: rustls by itself takes 4 KiB at a time.
struct Buffered(BufReader<TcpStream>);

impl Read for Buffered {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.get_mut().flush()
    }
}

fn flow_out(listener: &TcpListener) -> Result<(), Failure> {
    let (mut socket, _) = listener.accept()?;
    let piece = vec![0; PIECE];
    // Until this process is ended.
    loop {
        socket.write_all(&piece)?;
    }
}

fn flow_in(address: SocketAddr, counted: &AtomicU64) -> Result<(), Failure> {
    let mut socket = TcpStream::connect(address)?;
    let mut piece = vec![0; PIECE];
    loop {
        match socket.read(&mut piece)? {
            0 => return Err("the flow has ended".into()),
            got => counted.fetch_add(got as u64, Ordering::Relaxed),
        };
    }
}

fn start(place: &Place, side: testbed::Side, order: &[&str]) -> Result<Teller, Failure> {
    let program = std::env::current_exe()?;
    let program = program.to_str().ok_or("the path of this program is no text")?;
    let mut command = place.command(side, program);
    Ok(Teller::start("a bare end", command.arg(ROLE), &order.join("\t"))?.0)
}

fn address() -> String {
    SocketAddrV4::new(SOURCE.address(), PORT).to_string()
}

/// Moves a file; none if it is not there by then.
pub(crate) fn run(
    place: &Place,
    file: &str,
    target: &str,
    size: u64,
    until: impl Fn(Instant) -> Instant,
) -> Result<Option<Seconds>, Failure> {
    let source = start(place, SOURCE, &["send", &address(), file])?;
    let receive = ["receive", &address(), target, &size.to_string()];
    let mut target = start(place, TARGET, &receive)?;
    let begun = Instant::now();
    target.say("go")?;
    if target.hear("received", until(begun))?.is_none() {
        return Ok(None);
    }
    let clock = begun.elapsed().as_secs_f64();
    Ok(Some(Seconds { clock, source: source.end()?, target: target.end()? }))
}

/// One TCP connection from source to target that carries as much as it can, until this goes.
pub(crate) struct Flow {
    _source: Teller,
    target: Teller,
}

impl Flow {
    pub(crate) fn start(place: &Place) -> Result<Self, Failure> {
        let source = start(place, SOURCE, &["flow-out", &address()])?;
        let mut target = start(place, TARGET, &["flow-in", &address()])?;
        target.say("go")?;
        Ok(Self { _source: source, target })
    }

    /// Bytes that have arrived so far.
    pub(crate) fn bytes(&mut self) -> Result<u64, Failure> {
        self.target.ask("flowed")
    }
}
