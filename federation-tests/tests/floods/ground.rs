//! The ground of every flood: a site v, an honest peer h that keeps asking, and a hostile one, f.

use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use federation_tests::process::hostile::{Hostile, site_key};
use federation_tests::process::{Federation, SOON, Site, Usage};
use model::{Bytes, EdgeHandle, SecretKey, SiteKey, VmId};
use proto::federation::federation_client::FederationClient;
use protocol::{Action, Answer, Hop, Op, Origin, Request};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How often h asks on the connection that it has, and how often it makes a new one.
const PACE: Duration = Duration::from_millis(4);
const NEW_PACE: Duration = Duration::from_millis(50);
/// Answers that are waited for before a flood, and in each round of it: on the old connection, and
/// on new ones.
const QUIET: (usize, usize) = (100, 5);
const FLOODED: (usize, usize) = (120, 7);
/// Rounds of a flood; the best one counts, since other programs share the machine and memory grows
/// up to its bound in the first one. What goes on growing does so in all.
const ROUNDS: usize = 5;
/// A quiet value below this counts as this: whoever shares two cores waits so long for a turn, with
/// or without a flood.
const FLOOR: Duration = Duration::from_millis(20);
/// The same for a new connection, in which several turns follow one another.
const CALL_FLOOR: Duration = Duration::from_millis(40);
/// The same for a whole move, whose steps wait for disks and programs.
const MOVE_FLOOR: Duration = Duration::from_millis(200);
/// How many times its quiet value an answer may take.
const FACTOR: u32 = 10;
/// How long a new connection may take where a crowd does all that a peer does up to the point where
/// it would show who it is: h waits in line with it, and must come in.
const IN_LINE: Duration = Duration::from_secs(5);
/// How often a new connection is tried.
const TRIES: usize = 5;
/// How often as long a whole move may take there: it dials again where it gave way to the crowd.
const DIALS: u32 = 4;
/// What a node may take for a flood. Callers that are not known: 1,024 places, each with a TLS
/// message of at most 64 KiB. One peer: 8 connections, each with 1 MiB of bytes that nobody has
/// looked at and 256 streams of some 16 KiB, and 16 MiB of requests that have not come whole. The
/// proxy: 128 handshakes of 256 KiB, and 2 MiB of QUIC's first packets.
const MEMORY: Bytes = Bytes((64 + 8 * (1 + 4) + 16 + 32 + 2) << 20);
/// What it may take more at the end of a round than in its middle.
const GROWTH: Bytes = Bytes(8 << 20);
/// Descriptors that come and go without a flood: of the journal, of the page that tells of health.
pub(crate) const SPARE_FILES: usize = 6;

/// One at a time: two floods at once are another measurement.
static ALONE: Mutex<()> = Mutex::new(());

/// The sites.
pub(crate) struct Ground {
    pub(crate) h: Hostile,
    pub(crate) f: Hostile,
    pub(crate) federation: Federation,
    pub(crate) key: SiteKey,
    /// VMs of v's that are moved from its proxy to that of its honest peer w, if there is one.
    moves: Option<AtomicUsize>,
    /// How long answers take without a flood.
    quiet: OnceLock<Took>,
}

/// Whether a flood has begun, and whether it is to end.
#[derive(Default)]
pub(crate) struct Over {
    begun: AtomicBool,
    ended: AtomicBool,
}

impl Over {
    /// It has its full strength.
    pub(crate) fn begins(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_so(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Does this to its end.
    pub(crate) fn finish(&self, work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(work);
    }

    /// Does this until the flood ends.
    pub(crate) fn storm(&self, work: impl Future<Output = ()>) {
        self.finish(async {
            let over = async {
                while !self.is_so() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                () = work => {}
                () = over => {}
            }
        });
    }
}

/// How long answers took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    asked: Duration,
    called: Duration,
    /// The move of a VM.
    moved: Option<Duration>,
}

/// How h fared.
#[derive(Default)]
struct Honest {
    /// On the connection that it has had all the time.
    asked: Vec<Duration>,
    /// With a new connection each.
    called: Vec<Duration>,
    trouble: Option<String>,
}

/// What a round was like.
struct Round {
    took: Took,
    /// In the middle and at the end.
    memory: [Bytes; 2],
    /// Files and sockets that v had open at the end.
    files: usize,
}

impl Ground {
    pub(crate) fn set() -> Self {
        let mut federation = Federation::new();
        for name in ["v", "h", "f"] {
            let site = federation.add(name);
            site.configure("metrics", "listen", health(site).to_string());
            site.start();
        }
        for peer in ["h", "f"] {
            federation.join("v", peer);
            federation[peer].stop();
        }
        let v = &federation["v"];
        let (h, f) =
            (Hostile::instead_of(&federation["h"], v), Hostile::instead_of(&federation["f"], v));
        let key = site_key(v);
        Self { h, f, federation, key, moves: None, quiet: OnceLock::new() }
    }

    /// The same with a peer w, to which VMs are moved quietly and under the flood.
    pub(crate) fn with_transfers() -> Self {
        let mut ground = Self::set();
        ground.federation.add("w").start();
        ground.federation.join("v", "w");
        ground.federation["w"].host("w1", 16);
        ground.moves = Some(AtomicUsize::new(0));
        ground
    }

    /// Where w is, and what it dials from over QUIC.
    pub(crate) fn w(&self) -> IpAddr {
        self.federation["w"].address().ip()
    }

    /// Moves one more VM, if this is a ground with transfers, and tells how long that took.
    fn transfer(&self) -> Option<Duration> {
        let name = format!("vm{}", self.moves.as_ref()?.fetch_add(1, Ordering::Relaxed));
        let vm = self.federation.import("v", &name);
        let begun = Instant::now();
        self.v().done(&["vm", "place", &name, "--peer", "w"]);
        self.federation.wait_for("it runs at w", SOON, || {
            self.federation.runs_at(&vm, "w").ok_or(String::new())
        });
        Some(begun.elapsed())
    }

    pub(crate) fn v(&self) -> &Site {
        &self.federation["v"]
    }

    /// h asks for something that v has nothing of, and must be told so.
    async fn ask(&self, client: &mut FederationClient<Channel>) -> Result<Duration, Status> {
        let (key, begun) = (SecretKey::from_seed(&rand::random()), Instant::now());
        let op = Op::Control { vm: VmId(rand::random()), action: Action::Stop };
        let edge = Some(EdgeHandle(rand::random()));
        let hop = Hop { edge, hops_left: 1, time_left: Duration::from_secs(5), ..Hop::default() };
        let request =
            Request { origin: Origin { op: op.clone(), key: key.public(), sealed: None }, hop };
        let (sealed, digest) = self.h.seal(self.key, &request, &key);
        let answer = proto::call(client, &op, sealed).await?.into_inner();
        let answer = self.h.open(self.v(), &answer, digest);
        let took = begun.elapsed();
        match answer {
            Answer::Unknown => Ok(took),
            other => Err(Status::internal(format!("{other:?}"))),
        }
    }

    /// Asks again and again until it is over, or until it is not answered.
    async fn keep_asking(
        &self,
        mut client: FederationClient<Channel>,
        over: &Over,
        took: impl Fn(Duration),
    ) -> Result<(), Status> {
        while !over.is_so() {
            took(self.ask(&mut client).await?);
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }

    /// Makes a new connection again and again, asks once on each, and hangs up. In a crowd it may
    /// be the one that gives way before it has shown who it is; it tries again at once, as a node
    /// does, and that is counted.
    fn keep_calling(&self, over: &Over, took: impl Fn(Duration)) -> Result<(), Status> {
        while !over.is_so() {
            let begun = Instant::now();
            let call = || self.h.call(self.v(), async |mut client| self.ask(&mut client).await);
            let mut tries = (0..TRIES).map(|_| call());
            // A connection that is reset at once has either code, by how far it had come.
            let gave_way = [Code::Unavailable, Code::Unknown];
            let answered = |heard: &Result<_, Status>| {
                heard.as_ref().map_or_else(|status| !gave_way.contains(&status.code()), |_| true)
            };
            let heard = tries.find(answered);
            heard.unwrap_or_else(|| Err(Status::unavailable("it gave way each time")))?;
            took(begun.elapsed());
            std::thread::sleep(NEW_PACE);
        }
        Ok(())
    }

    /// Fails unless v bears a flood: h is answered nearly as soon as without it, v's memory stays
    /// bounded, and nothing is left of it when it is over.
    pub(crate) fn bears(&self, flood: &str, make: impl Fn(&Over) -> String + Sync) {
        self.bears_in_line(flood, Duration::ZERO, make);
    }

    /// The same where h waits in line with a crowd that does what it does.
    pub(crate) fn bears_crowd(&self, flood: &str, make: impl Fn(&Over) -> String + Sync) {
        self.bears_in_line(flood, IN_LINE, make);
    }

    fn bears_in_line(&self, flood: &str, in_line: Duration, make: impl Fn(&Over) -> String + Sync) {
        let honest = Mutex::new(Honest::default());
        let over = Over::default();
        let note = |doing: &str, ended: Result<(), Status>| {
            if let Err(status) = ended {
                lock(&honest).trouble = Some(format!("{doing}: {status}"));
            }
        };
        std::thread::scope(|scope| {
            let _over = EndOnDrop(&over);
            scope.spawn(|| {
                let took = |took| lock(&honest).asked.push(took);
                note(
                    "on the connection that is there",
                    self.h
                        .call(self.v(), async |client| self.keep_asking(client, &over, took).await),
                );
            });
            scope.spawn(|| {
                let took = |took| lock(&honest).called.push(took);
                note("on new connections", self.keep_calling(&over, took));
            });
            let mut quiet = *self.quiet.get_or_init(|| {
                self.listen(&honest, QUIET);
                Took { moved: self.transfer(), ..self.listen(&honest, QUIET).took }
            });
            // Its connections are there.
            self.listen(&honest, (1, 1));
            let before = (self.v().usage(), self.v().descriptors());
            let mut seen = vec![];
            loop {
                let ending = Over::default();
                let (round, made) = std::thread::scope(|scope| {
                    let _ending = EndOnDrop(&ending);
                    let made = scope.spawn(|| make(&ending));
                    self.federation.wait_for("the flood has begun", SOON, || {
                        let begun = ending.begun.load(Ordering::Relaxed);
                        if begun { Ok(()) } else { Err(String::new()) }
                    });
                    let moved = scope.spawn(|| self.transfer());
                    let mut round = self.listen(&honest, FLOODED);
                    round.took.moved = moved.join().unwrap();
                    ending.end();
                    (round, made.join().unwrap())
                });
                let after = self.v().usage();
                let line = Figures { flood, made, quiet, round: &round, before: before.0, after };
                eprintln!("{line}");
                let grown = after.most_memory.0.saturating_sub(before.0.most_memory.0);
                assert!(grown <= MEMORY.0, "it took {grown} bytes, and {MEMORY:?} are allowed");
                seen.push((round.took, round.memory));
                if round.is_borne(quiet, in_line) {
                    break;
                }
                assert!(seen.len() < ROUNDS, "{flood}: {seen:?}, and {quiet:?} without it");
                // Others may have begun to use the machine.
                quiet = quiet.or_slower(self.listen(&honest, QUIET).took);
            }
            self.has_recovered(before.1);
        });
    }

    /// Waits for so many answers, and tells how long they took.
    fn listen(&self, honest: &Mutex<Honest>, (asked, called): (usize, usize)) -> Round {
        let from = {
            let honest = lock(honest);
            (honest.asked.len(), honest.called.len())
        };
        let wait = |share: usize| {
            self.federation.wait_for("h is answered", SOON, || {
                let honest = lock(honest);
                assert_eq!(honest.trouble, None);
                let come = (honest.asked.len() - from.0, honest.called.len() - from.1);
                let is_so = come.0 >= asked / share && come.1 >= called / share;
                if is_so { Ok(()) } else { Err(format!("{come:?} answers")) }
            });
            self.v().usage().memory
        };
        let memory = [wait(2), wait(1)];
        let honest = lock(honest);
        let took = Took {
            asked: p99(&honest.asked[from.0..]),
            called: p99(&honest.called[from.1..]),
            moved: None,
        };
        Round { took, memory, files: self.v().descriptors() }
    }

    /// v is as it was: ready, without complaint, and without what the flood had opened.
    fn has_recovered(&self, files: usize) {
        self.federation.wait_for("the flood's connections are gone", SOON, || {
            let left = self.v().descriptors();
            if left <= files + SPARE_FILES { Ok(()) } else { Err(format!("{left}, not {files}")) }
        });
        self.federation.wait_for("it is ready", SOON, || {
            let said = page(health(self.v()), "/readyz?verbose");
            if said.contains(" 200 ") { Ok(()) } else { Err(said) }
        });
        self.v().done(&["peer", "show", "h"]);
        assert_eq!(self.v().run(&["doctor"]).code, 0);
    }
}

impl Round {
    /// Whether answers were soon enough, and memory had stopped growing.
    fn is_borne(&self, quiet: Took, in_line: Duration) -> bool {
        let [middle, end] = self.memory;
        self.took.is_within(quiet, in_line) && end.0 <= middle.0 + GROWTH.0
    }
}

impl Took {
    /// The longer of each two.
    fn or_slower(self, other: Self) -> Self {
        Self {
            asked: self.asked.max(other.asked),
            called: self.called.max(other.called),
            moved: self.moved.max(other.moved),
        }
    }

    fn is_within(&self, quiet: Self, in_line: Duration) -> bool {
        self.asked <= quiet.asked.max(FLOOR) * FACTOR
            && self.called <= (quiet.called.max(CALL_FLOOR) * FACTOR).max(in_line)
            && self.moved
                <= quiet.moved.map(|moved| (moved.max(MOVE_FLOOR) * FACTOR).max(in_line * DIALS))
    }
}

/// Ends a flood also where a test fails.
struct EndOnDrop<'a>(&'a Over);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What is printed of a round.
struct Figures<'a> {
    flood: &'a str,
    made: String,
    quiet: Took,
    round: &'a Round,
    before: Usage,
    after: Usage,
}

impl fmt::Display for Figures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |took: Duration| took.as_secs_f64() * 1000.0;
        let mib = |bytes: Bytes| bytes.0 as f64 / f64::from(1 << 20);
        let (quiet, flooded) = (self.quiet, self.round.took);
        let moved = quiet.moved.zip(flooded.moved);
        let moved = moved.map(|(quiet, flooded)| format!("{:.0}, {:.0}", ms(quiet), ms(flooded)));
        let moved = moved.unwrap_or_default();
        write!(
            f,
            "| {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} | {:.0} | {:.0} | {:.0} | {:.1} |",
            self.flood,
            self.made,
            ms(quiet.asked),
            ms(flooded.asked),
            flooded.asked.as_secs_f64() / quiet.asked.as_secs_f64(),
            ms(quiet.called),
            ms(flooded.called),
            moved,
            self.round.files,
            mib(self.before.memory),
            mib(self.after.memory),
            mib(self.after.most_memory),
            (self.after.cpu - self.before.cpu).as_secs_f64(),
        )
    }
}

fn p99(took: &[Duration]) -> Duration {
    let mut took = took.to_vec();
    took.sort();
    took[(took.len() * 99).div_ceil(100) - 1]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One after the other.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    // What a flood needs of sockets is more than many systems let a program have at first.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
    lock(&ALONE)
}

fn page(at: SocketAddr, path: &str) -> String {
    let mut said = String::new();
    let mut stream = TcpStream::connect(at).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: v\r\n\r\n").as_bytes()).unwrap();
    stream.read_to_string(&mut said).unwrap();
    said
}

/// Where a site tells how it is.
fn health(site: &Site) -> SocketAddr {
    SocketAddr::new(site.address().ip(), 9464)
}
