//! Measures the control plane against what it cannot do without, in the same run:
//!
//! - a Migration request over 1, 2 and 4 hops, against mutual-TLS echoes of the same bytes over as
//!   many hops, each hop a process of its own and doing the signatures that the request needs;
//! - a whole placement over two hops, less copying and booting, against the echoes, signatures and
//!   journal syncs that it needs.
//!
//! Sites run simulated guests: no hypervisor is in the way of what is measured.

#![expect(clippy::print_stdout, reason = "a report is what it is for")]

use std::path::Path;
use std::time::{Duration, Instant};

use certs::{Identity, Ticket};
use federation_tests::bench::echo::{self, EchoCaller, Echoes};
use federation_tests::bench::{Failure, Wire, admin, clock, dial, heading, ms, quantiles};
use federation_tests::process::Federation;
use model::{Bytes, Descriptor, JournalMark, RequestId, Resources, SecretKey, SiteKey, VmId};
use proto::envelope::{self, Sealer};
use proto::federation::JoinRequest;
use proto::federation::federation_client::FederationClient;
use protocol::{Answer, Hop, Op, Origin, Request};
use tonic::transport::Channel;

/// Requests of each kind that are measured, after [`WARM`] that are not.
const ROUNDS: usize = 400;
const WARM: usize = 40;
/// Placements that are measured.
const PLACEMENTS: usize = 40;

/// Journal syncs of a placement over two hops that wait for one another: A begins; A chooses and
/// offers; B pending; C admits; A initiates and quiets; A sent; C ready; A releases; C owns; B
/// flips; A flips and concludes.
const PLACEMENT_SYNCS: u32 = 11;
/// Requests of a placement over two hops that wait for one another: Migration request, Initiate
/// transfer, Deliver.
const PLACEMENT_ECHOES: u32 = 3;

fn main() -> Result<(), Failure> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("first of its kind");
    let runtime = tokio::runtime::Runtime::new()?;
    if let Some(role) = echo::role()? {
        return runtime.block_on(echo::serve(role));
    }
    if std::env::args().len() > 1 {
        return Err("usage: bench-control".into());
    }
    println!("{}", heading());
    measure(&runtime)
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
    let mut node = admin(site).await?;
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
        let channel = dial(&identity, site, &ticket.addresses()[0], &Wire::default()).await?;
        let mut client = FederationClient::new(channel);
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
        let sealer = Sealer { site: me, sign: &sign, journal: JournalMark::new(0, sign) };
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
