//! The two ends of our own transfers: each a process of its own in its namespace, with a proxy as
//! a node has it.
//!
//! ```text
//!   this program ──▶ end: order (JSON), then `go FIRST COUNT`, `wire`; its end ends the end
//!                ◀── end: `ready URI`, `opened`, `received WIRE`, `wire BYTES`,
//!                         `stumbled WHY`, `failed WHY`
//! ```

use std::io::BufRead;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Instant;

use certs::Identity;
use federation_tests::bench::Failure;
use model::{Bytes, Carrier, FileId, MigrationId, ProxyUri, SecretKey, Token, VmId};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use testbed::Side;
use tokio::sync::mpsc;
use transfer_proxy::{
    Config, End, Event, Limits, Proxy, Pull, ResetKey, Serve, Share, TransferProxy,
};

use crate::place::{Place, SOURCE, TARGET};
use crate::program::Teller;

/// The first argument of a process that is to be an end.
pub(crate) const ROLE: &str = "end";
/// Where the source's proxy listens.
const PORT: u16 = 7000;
/// Events that wait to be told.
const EVENTS: usize = 4096;
/// A size that no file here has.
const BUDGET: Bytes = Bytes(64 << 30);

/// What an end is to do: transfers are numbered as they stand here, at both ends alike.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Order {
    /// Where the source's proxy is; none for the source itself.
    from: Option<String>,
    listen: String,
    carrier: Option<Carrier>,
    transfers: Vec<Transfer>,
}

/// One transfer. Without a file nothing is moved: its session is there and idle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transfer {
    pub(crate) file: Option<PathBuf>,
    /// Where it goes, under [`file_name`].
    pub(crate) folder: PathBuf,
    /// What the target has already.
    pub(crate) basis: Option<PathBuf>,
}

/// The name of a file that was received.
pub(crate) fn file_name() -> String {
    FileId::disk(0).file_name()
}

impl Order {
    fn is_source(&self) -> bool {
        self.from.is_none()
    }

    fn migration(number: usize) -> MigrationId {
        let seed = blake3::hash(format!("migration {number}").as_bytes());
        MigrationId(*seed.as_bytes().first_chunk().expect("16 of 32 bytes"))
    }

    fn token(number: usize) -> Token {
        Token(*blake3::hash(format!("token {number}").as_bytes()).as_bytes())
    }

    fn key(side: &str, number: usize) -> SecretKey {
        SecretKey::from_seed(blake3::hash(format!("{side} {number}").as_bytes()).as_bytes())
    }

    fn serve(number: usize) -> Serve {
        Serve {
            migration: Self::migration(number),
            vm: VmId([7; 16]),
            token_hash: Self::token(number).hash(),
            hint: Self::token(number).hint(),
            key: Self::key("source", number),
            peer_key: Self::key("target", number).public(),
            byte_budget: BUDGET,
            dial: None,
            share: Share::default(),
        }
    }

    fn pull(&self, number: usize) -> Result<Pull, Failure> {
        let transfer = &self.transfers[number];
        let disk = FileId::disk(0);
        let from = self.from.as_ref().ok_or("the source pulls nothing")?;
        Ok(Pull {
            migration: Self::migration(number),
            vm: VmId([7; 16]),
            from: from.parse::<ProxyUri>()?,
            token: Self::token(number),
            relay: None,
            key: Self::key("target", number),
            peer_key: Self::key("source", number).public(),
            folder: transfer.folder.clone(),
            budget: BUDGET,
            expected: transfer.file.iter().map(|_| disk).collect(),
            basis: transfer.basis.iter().map(|path| (disk, path.clone())).collect(),
            carrier: self.carrier,
            share: Share::default(),
        })
    }
}

/// Is an end until the input is closed.
pub(crate) async fn serve() -> Result<(), Failure> {
    let mut lines = lines();
    let order: Order = serde_json::from_str(&lines.recv().await.ok_or("no order came")?)?;
    raise_descriptors()?;
    let (sender, mut events) = mpsc::channel(EVENTS);
    let count = order.transfers.len();
    let limits = Limits { serves: count, pulls: count, sessions: count, ..Limits::default() };
    let reset = ResetKey::of(&Identity::from_seed(&[u8::from(order.is_source()); 32]));
    let config =
        Config { listen: order.listen.parse()?, shares_tcp: false, advertise: None, limits, reset };
    let proxy = Proxy::start(config, sender).await?;
    if order.is_source() {
        for number in 0..count {
            proxy.serve(Order::serve(number))?;
        }
    }
    println!("ready {}", proxy.uri());
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                Some(line) => obey(&proxy, &order, &line)?,
                None => break,
            },
            event = events.recv() => tell(&event.ok_or("the proxy has ended")?),
        }
    }
    proxy.shut_down().await;
    Ok(())
}

/// What comes in, read by a thread of its own: reading blocks.
fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut all = std::io::stdin().lock().lines().map_while(Result::ok);
        all.all(|line| sender.blocking_send(line).is_ok())
    });
    lines
}

fn obey(proxy: &Proxy, order: &Order, line: &str) -> Result<(), Failure> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["go", first, count] => {
            let (first, count): (usize, usize) = (first.parse()?, count.parse()?);
            for number in first..first + count {
                let file = order.transfers[number].file.clone();
                if !order.is_source() {
                    proxy.pull(order.pull(number)?)?;
                } else if let Some(file) = file {
                    proxy.provide(Order::migration(number), vec![(FileId::disk(0), file)]);
                }
            }
        }
        ["wire"] => {
            let end = if order.is_source() { End::Source } else { End::Target };
            let all = (0..order.transfers.len())
                .filter_map(|number| proxy.progress(Order::migration(number), end));
            println!("wire {}", all.map(|progress| progress.wire.0).sum::<u64>());
        }
        _ => return Err(format!("{line:?} is no order").into()),
    }
    Ok(())
}

fn tell(event: &Event) {
    match event {
        Event::Opened { .. } => println!("opened"),
        Event::Received { wire, .. } => println!("received {}", wire.0),
        Event::Failed { final_: true, error, .. } => println!("failed {error}"),
        Event::Failed { error, .. } => println!("stumbled {error}"),
        Event::Sent { .. } | Event::Told { .. } | Event::Closed { .. } => {}
    }
}

/// As many descriptors as the system lets a process have: a session over TCP takes one at least.
fn raise_descriptors() -> Result<(), Failure> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// Both ends, at a place.
pub(crate) struct Pair {
    pub(crate) source: Teller,
    pub(crate) target: Teller,
}

/// What a pair took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seconds {
    /// By the clock, from the word to begin until the last transfer was received.
    pub(crate) clock: f64,
    /// Of processors, at either end.
    pub(crate) source: f64,
    pub(crate) target: f64,
}

impl Pair {
    /// Both are ready; nothing has crossed the network.
    pub(crate) fn start(
        place: &Place,
        carrier: Option<Carrier>,
        transfers: &[Transfer],
    ) -> Result<Self, Failure> {
        let listen = |side: Side, port| SocketAddr::V4(SocketAddrV4::new(side.address(), port));
        let source = Order {
            from: None,
            listen: listen(SOURCE, PORT).to_string(),
            carrier,
            transfers: transfers.to_vec(),
        };
        let (source_end, uri) = start(place, SOURCE, &source)?;
        let target = Order { from: Some(uri), listen: listen(TARGET, 0).to_string(), ..source };
        let (target_end, _) = start(place, TARGET, &target)?;
        Ok(Self { source: source_end, target: target_end })
    }

    /// Tells both to begin with some of the transfers.
    pub(crate) fn go(&mut self, first: usize, count: usize) -> Result<(), Failure> {
        let order = format!("go {first} {count}");
        self.source.say(&order)?;
        self.target.say(&order)
    }

    /// Runs all transfers to their end; none if that is not reached by `until`.
    pub(crate) fn run(
        mut self,
        count: usize,
        until: impl Fn(Instant) -> Instant,
    ) -> Result<Option<Seconds>, Failure> {
        let begun = Instant::now();
        self.go(0, count)?;
        for _ in 0..count {
            if self.target.hear("received", until(begun))?.is_none() {
                return Ok(None);
            }
        }
        let clock = begun.elapsed().as_secs_f64();
        Ok(Some(Seconds { clock, source: self.source.end()?, target: self.target.end()? }))
    }
}

fn start(place: &Place, side: Side, order: &Order) -> Result<(Teller, String), Failure> {
    let program = std::env::current_exe()?;
    let program = program.to_str().ok_or("the path of this program is no text")?;
    let name = if order.is_source() { "the source" } else { "the target" };
    let mut command = place.command(side, program);
    Teller::start(name, command.arg(ROLE), &serde_json::to_string(order)?)
}
