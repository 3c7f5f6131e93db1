//! Measures the control plane against what it cannot do without, in the same run:
//!
//! - a Migration request over 1, 2 and 4 hops, against mutual-TLS echoes of the same bytes over as
//!   many hops, each hop a process of its own and doing the signatures that the request needs;
//! - a whole placement over two hops, less copying and booting, against the echoes, signatures and
//!   journal syncs that it needs.
//!
//! Sites run simulated guests: no hypervisor is in the way of what is measured.

#![expect(clippy::print_stdout, reason = "a report is what it is for")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::{Identity, Ticket, Trust};
use federation_tests::process::Federation;
use hyper_util::rt::TokioIo;
use model::{Bytes, Descriptor, RequestId, Resources, SecretKey, SiteKey, Time, VmId};
use proto::admin::admin_client::AdminClient;
use proto::envelope::{self, Sealer};
use proto::federation::JoinRequest;
use proto::federation::federation_client::FederationClient;
use protocol::{Answer, Hop, Op, Origin, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

/// Requests of each kind that are measured, after [`WARM`] that are not.
const ROUNDS: usize = 400;
const WARM: usize = 40;
/// Placements that are measured.
const PLACEMENTS: usize = 40;
/// Bytes of a sealed Migration request and of its answer, about.
const REQUEST_BYTES: usize = 600;
const ANSWER_BYTES: usize = 700;

/// Journal syncs of a placement over two hops that wait for one another: A begins; A chooses and
/// offers; B pending; C admits; A initiates and quiets; A sent; C ready; A releases; C owns; B
/// flips; A flips and concludes.
const PLACEMENT_SYNCS: u32 = 11;
/// Requests of a placement over two hops that wait for one another: Migration request, Initiate
/// transfer, Deliver.
const PLACEMENT_ECHOES: u32 = 3;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("first of its kind");
    let runtime = tokio::runtime::Runtime::new()?;
    let arguments: Vec<String> = std::env::args().collect();
    match &arguments[1..] {
        [role, listen, hops] if role == "echo" => {
            runtime.block_on(echo(listen.parse()?, hops.parse()?))
        }
        [] => measure(&runtime),
        _ => Err("usage: bench-control".into()),
    }
}

fn measure(runtime: &tokio::runtime::Runtime) -> Result<(), Failure> {
    println!("Migration request, against echoes over the same hops with the same signatures:");
    println!("hops   request p50    p99      echo p50    p99      ratio p50");
    let mut two_hops = Duration::ZERO;
    for hops in [1_usize, 2, 4] {
        let names = ["s1", "s2", "s3", "s4"];
        let federation = Federation::chain(&names[..hops]);
        let last = federation.sites().last().ok_or("no site")?;
        last.host("one", 8);
        let echoes = Echoes::start(hops)?;
        let first = &federation.sites()[0];
        let invitation = first.done(&["peer", "invite"]);
        let ticket = invitation["ticket"].as_str().ok_or("no ticket")?;
        let (mut requests, mut echoed) = runtime.block_on(async {
            let asker = Asker::join(ticket).await?;
            let mut echo = EchoCaller::connect(echoes.address).await?;
            let (mut requests, mut echoed) = (Vec::new(), Vec::new());
            // Turn and turn about, so that whatever else the machine does meets both.
            for round in 0..WARM + ROUNDS {
                let request = asker.ask(hops).await?;
                let plain = echo.call().await?;
                if round >= WARM {
                    requests.push(request);
                    echoed.push(plain);
                }
            }
            Ok::<_, Failure>((requests, echoed))
        })?;
        let (a, b) = (quantiles(&mut requests), quantiles(&mut echoed));
        println!(
            "{hops:<6}{:>9.2} ms {:>7.2} {:>10.2} ms {:>7.2} {:>11.2}",
            a.0,
            a.1,
            b.0,
            b.1,
            a.0 / b.0
        );
        if hops == 2 {
            two_hops = Duration::from_secs_f64(b.0 / 1000.0);
        }
    }
    placement(runtime, two_hops)
}

fn placement(runtime: &tokio::runtime::Runtime, echo: Duration) -> Result<(), Failure> {
    let federation = Federation::chain(&["a", "b", "c"]);
    let [a, _, c] = federation.sites() else { return Err("three sites".into()) };
    c.host("one", 200);
    let mut whole = Vec::new();
    let mut bare = Vec::new();
    for round in 0..PLACEMENTS {
        let name = format!("vm{round}");
        federation.import("a", &name);
        let took = runtime.block_on(place(a.folder(), &name))?;
        let (copied, booted) = spans(c.folder())?;
        whole.push(took);
        bare.push(took.saturating_sub(copied + booted));
    }
    let sync = journal_sync(federation.folder())?;
    let (whole, bare) = (quantiles(&mut whole), quantiles(&mut bare));
    let needed = ms(echo) * f64::from(PLACEMENT_ECHOES) + ms(sync) * f64::from(PLACEMENT_SYNCS);
    println!();
    println!("Placement over two hops: p50 {:.1} ms, p99 {:.1} ms in all;", whole.0, whole.1);
    println!("less copying and booting: p50 {:.1} ms;", bare.0);
    println!(
        "needed: {PLACEMENT_ECHOES} echoes over two hops of {:.2} ms and {PLACEMENT_SYNCS} journal \
         syncs of {:.2} ms, {needed:.1} ms; ratio {:.2}",
        ms(echo),
        ms(sync),
        bare.0 / needed
    );
    Ok(())
}

/// Places a VM through the admin socket, and returns how long it took to its end.
async fn place(site: &Path, vm: &str) -> Result<Duration, Failure> {
    let socket = site.join("admin.sock");
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    let endpoint = Endpoint::from_static("http://node.invalid");
    let mut node = AdminClient::new(endpoint.connect_with_connector(connector).await?);
    let begun = Instant::now();
    let ask = proto::admin::MoveRequest {
        vm: vm.to_owned(),
        peers: vec!["b".to_owned()],
        boot: true,
        ..Default::default()
    };
    let operation = node.move_vm(ask).await?.into_inner();
    let id = proto::admin::OperationId { id: operation.id };
    let mut watch = node.watch_operation(id).await?.into_inner();
    let mut last = String::new();
    while let Some(now) = watch.message().await? {
        last = now.result;
    }
    if last != "done" {
        return Err(format!("the placement of {vm} ended as {last:?}").into());
    }
    Ok(begun.elapsed())
}

/// How long the newest migration at the Destination copied, and booted, by its journal.
fn spans(site: &Path) -> Result<(Duration, Duration), Failure> {
    let journal = rusqlite::Connection::open(site.join("journal.db"))?;
    let at = |kind: &str| {
        let sql = "SELECT at_ms FROM journal WHERE type = ?1 ORDER BY seq DESC LIMIT 1";
        journal.query_row(sql, [kind], |row| row.get::<_, i64>(0))
    };
    // The operation ends with OWNED; the guest runs a moment later.
    let until = Instant::now() + Duration::from_secs(10);
    while at("started").unwrap_or_default() < at("owned")? {
        if Instant::now() > until {
            return Err("the guest was not started".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let span = |from: i64, to: i64| Duration::from_millis(u64::try_from(to - from).unwrap_or(0));
    Ok((span(at("admitted")?, at("ready")?), span(at("owned")?, at("started")?)))
}

/// The median time of one commit like the journal's, on the same disk.
fn journal_sync(folder: &Path) -> Result<Duration, Failure> {
    let db = rusqlite::Connection::open(folder.join("sync.db"))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.execute_batch("CREATE TABLE rows (seq INTEGER PRIMARY KEY, body TEXT) STRICT")?;
    let body = "x".repeat(1500);
    let mut times = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        db.execute("INSERT INTO rows (body) VALUES (?1)", [&body])?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// A stranger that joined the first site, and asks it.
struct Asker {
    identity: Identity,
    site: SiteKey,
    client: FederationClient<Channel>,
    descriptor: Descriptor,
}

impl Asker {
    async fn join(ticket: &str) -> Result<Self, Failure> {
        let ticket = Ticket::parse(ticket)?;
        let identity = Identity::from_seed(&rand::random());
        let site = ticket.site_key();
        let tls = certs::client_config(&identity, site)?;
        let address = ticket.addresses()[0].clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (tls, address) = (tls.clone(), address.clone());
            async move {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let connector = tokio_rustls::TlsConnector::from(tls);
                let stream = connector.connect(certs::server_name(&site), tcp).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://site.invalid");
        let mut client = FederationClient::new(endpoint.connect_with_connector(connector).await?);
        let request = JoinRequest {
            secret: ticket.secret().as_bytes().to_vec(),
            name: "asker".to_owned(),
            addresses: vec!["127.0.0.1:1".to_owned()],
        };
        client.join(request).await?;
        let descriptor = Descriptor {
            name: "asked".parse()?,
            resources: Resources { cpus: 1, memory: Bytes::mib(64) },
            disks: vec![],
            nics: vec![],
            restrictions: model::vm::Restrictions::default(),
            monitoring: Default::default(),
        };
        Ok(Self { identity, site, client, descriptor })
    }

    /// One request, from sealing to the opened answer, which must have one offer.
    async fn ask(&self, hops: usize) -> Result<Duration, Failure> {
        let me = self.identity.site_key();
        let sign = |kind: &str, body: &[u8]| self.identity.sign(kind, body);
        let begun = Instant::now();
        let key = SecretKey::from_seed(&rand::random());
        let op = Op::MigrationRequest {
            vm: VmId(rand::random()),
            request: RequestId(rand::random()),
            descriptor: self.descriptor.clone(),
        };
        let hop = Hop {
            hops_left: u8::try_from(hops)?,
            time_left: Duration::from_secs(10),
            ..Hop::default()
        };
        let request = Request { origin: Origin { op, key: key.public(), sealed: None }, hop };
        let sealer = Sealer { site: me, sign: &sign, journal: 0 };
        let origin = |_: &model::PublicKey, kind: &str, body: &[u8]| key.sign(kind, body);
        let (sealed, digest) =
            envelope::seal_request(&sealer, self.site, &request, origin, clock(), rand::random());
        let answer = self.client.clone().migration_request(sealed).await?.into_inner();
        let opened = envelope::open_answer(&answer, self.site, me, digest)?;
        let Answer::Offers { offers, reasons } = opened.content.into_inner() else {
            return Err("not an answer to a Migration request".into());
        };
        if offers.len() != 1 || !offers[0].target.is_proven(&model::key::Strict) {
            return Err(format!("{} offers over {hops} hops: {reasons:?}", offers.len()).into());
        }
        Ok(begun.elapsed())
    }
}

/// A chain of echo processes.
struct Echoes {
    address: SocketAddr,
    processes: Vec<std::process::Child>,
}

impl Echoes {
    fn start(hops: usize) -> Result<Self, Failure> {
        let mut processes = Vec::new();
        // Each process finds the next one at its own port + 1.
        let base = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        for hop in 0..hops {
            let port = base + u16::try_from(hop)?;
            let child = std::process::Command::new(std::env::current_exe()?)
                .args(["echo", &format!("127.0.0.1:{port}"), &(hops - hop - 1).to_string()])
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

struct Anyone;

impl Trust for Anyone {
    fn knows(&self, _: &SiteKey) -> bool {
        true
    }

    fn admits_strangers(&self) -> bool {
        true
    }
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

async fn echo(listen: SocketAddr, further: usize) -> Result<(), Failure> {
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

struct EchoCaller {
    stream: Box<dyn Duplex>,
    key: SecretKey,
}

impl EchoCaller {
    async fn connect(address: SocketAddr) -> Result<Self, Failure> {
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

    async fn call(&mut self) -> Result<Duration, Failure> {
        let begun = Instant::now();
        let request = [0; REQUEST_BYTES];
        signatures_of_sender(&self.key, &request);
        write(&mut self.stream, &request).await?;
        let mut answer = [0; ANSWER_BYTES];
        self.stream.read_exact(&mut answer).await?;
        Ok(begun.elapsed())
    }
}

fn clock() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Time(u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX))
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// Median and 99th percentile, in milliseconds.
fn quantiles(times: &mut [Duration]) -> (f64, f64) {
    times.sort_unstable();
    let at = |part: f64| ms(times[((times.len() - 1) as f64 * part) as usize]);
    (at(0.5), at(0.99))
}
