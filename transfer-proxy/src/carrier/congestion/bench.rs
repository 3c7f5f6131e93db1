//! Real QUIC endpoints over a link in virtual time: no socket, no thread, no sleep.
//!
//! ```text
//!   sender 0 --.                                          .--> receiver 0
//!   sender 1 ---> [ queue | rate ] --> loss --> delay/2 ---> receiver 1
//!      ^                                                        |
//!      '------------- delay/2 <-- loss <------------------------'
//! ```
//!
//! The endpoints are quinn-proto's, with the keys and the settings of real sessions; of the host
//! they see two habits: timers fire on whole milliseconds, as tokio's do, and packets leave in
//! batches, as with segmentation offload.
//! All chance comes from a seed, so a world runs the same way each time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use model::SecretKey;
use quinn::congestion::ControllerFactory;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, StreamId, Transmit,
};

use crate::carrier::quic::{LANES, transport};
use crate::tls::{self, Tls};

pub(super) type Congestion = Arc<dyn ControllerFactory + Send + Sync>;

/// Bytes of IP and UDP headers that each datagram costs on the link.
const HEADER_BYTES: u64 = 28;

/// Datagrams in one batch, as quinn hands them to the system.
const BATCH: usize = 10;

/// Timers fire on whole ticks.
const TICK: Duration = Duration::from_millis(1);

/// How finely the progress of a flow, and the queue, are recorded.
pub(super) const SLOT: Duration = Duration::from_millis(10);

/// Streams of a transfer, as many as a target has under way.
const STREAMS: usize = LANES;

/// What is sent, again and again.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The link between all senders and all receivers.
#[derive(Debug, Clone)]
pub(super) struct Path {
    /// Bits per second, from these moments on.
    pub(super) rate: Vec<(Duration, f64)>,
    /// Both ways together, without queue and serialisation.
    pub(super) rtt: Duration,
    /// What the queue before the link holds, in bytes.
    pub(super) queue: u64,
    /// The fraction of packets that are lost behind the queue.
    pub(super) loss: f64,
    /// Everything is lost for the second of these spans, once in each of the first.
    pub(super) outage: Option<(Duration, Duration)>,
    /// The fraction of packets that are lost on the way back.
    pub(super) loss_back: f64,
    /// Packets on the way back arrive at whole multiples of this.
    pub(super) gather: Option<Duration>,
    /// The largest payload of a datagram that passes, in bytes.
    pub(super) mtu: usize,
    pub(super) seed: u64,
}

impl Path {
    /// A clean path with a queue of one bandwidth-delay product, yet of 30 kB at least.
    pub(super) fn new(mbit: f64, rtt: Duration) -> Self {
        let mut path = Self {
            rate: vec![(Duration::ZERO, mbit * 1e6)],
            rtt,
            queue: 0,
            loss: 0.0,
            outage: None,
            loss_back: 0.0,
            gather: None,
            mtu: 1472,
            seed: 1,
        };
        path.queue = path.queue_of(1.0);
        path
    }

    /// The bytes of a queue of so many bandwidth-delay products; twenty packets at least, since
    /// no real queue is as small as the product of a local network.
    pub(super) fn queue_of(&self, products: f64) -> u64 {
        let product = self.rate[0].1 / 8.0 * self.rtt.as_secs_f64();
        ((product * products) as u64).max(30_000)
    }

    pub(super) fn with_queue(mut self, products: f64) -> Self {
        self.queue = self.queue_of(products);
        self
    }

    /// Loses this fraction of the packets, in both directions.
    pub(super) fn losing(mut self, fraction: f64) -> Self {
        (self.loss, self.loss_back) = (fraction, fraction);
        self
    }

    pub(super) fn seeded(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn rate_at(&self, time: Duration) -> f64 {
        self.rate.iter().rev().find(|(from, _)| *from <= time).expect("a rate from the start").1
    }
}

/// A transfer to run: from when, how much, under which control.
pub(super) struct Plan {
    pub(super) start: Duration,
    pub(super) bytes: u64,
    pub(super) congestion: Congestion,
    /// How many bytes the application has offered by a time since the start of the world.
    pub(super) offered: fn(Duration) -> u64,
}

impl Plan {
    /// Starts at once and has everything to send at once.
    pub(super) fn new(congestion: &Congestion, bytes: u64) -> Self {
        Self { start: Duration::ZERO, bytes, congestion: congestion.clone(), offered: |_| u64::MAX }
    }

    pub(super) fn starting(mut self, start: Duration) -> Self {
        self.start = start;
        self
    }
}

/// What became of a transfer.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// From the first packet of the handshake to the last byte; none if it did not end in time.
    pub(super) took: Option<Duration>,
    /// Bytes that the receiving application had at the end of each [`SLOT`] of the world.
    pub(super) progress: Vec<u64>,
    /// Packets that the sender sent.
    pub(super) sent_packets: u64,
}

impl Outcome {
    /// Megabits per second that the application got between two moments of the world.
    pub(super) fn mbit(&self, from: Duration, to: Duration) -> f64 {
        let at = |time: Duration| {
            let slot = (time.as_nanos() / SLOT.as_nanos()) as usize;
            self.progress.get(slot.min(self.progress.len() - 1)).copied().unwrap_or(0)
        };
        (at(to) - at(from)) as f64 * 8.0 / (to - from).as_secs_f64() / 1e6
    }
}

/// What became of a world.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) flows: Vec<Outcome>,
    /// How long the queue was at the end of each [`SLOT`], as time until its last packet is sent.
    pub(super) queue: Vec<Duration>,
    /// Packets that found the queue full.
    pub(super) overflowed: u64,
}

impl Report {
    /// The delay in the queue that a share of the moments between two moments stay below.
    pub(super) fn queue_quantile(&self, from: Duration, to: Duration, share: f64) -> Duration {
        let slot = |time: Duration| (time.as_nanos() / SLOT.as_nanos()) as usize;
        let mut seen = self.queue[slot(from)..slot(to).min(self.queue.len())].to_vec();
        seen.sort();
        seen[((seen.len() - 1) as f64 * share) as usize]
    }
}

/// Runs `plans` together over `path` until all have ended, or `limit` has passed.
pub(super) fn run(path: &Path, limit: Duration, plans: &[Plan]) -> Report {
    let mut world = World::new(path.clone(), plans);
    world.run(limit);
    let queue = std::mem::take(&mut world.queue_seen);
    let overflowed = world.overflowed;
    let flows = world.flows.into_iter().map(Flow::outcome).collect();
    Report { flows, queue, overflowed }
}

/// Chance from a seed (SplitMix64, Steele, Lea and Flood 2014).
struct Chance(u64);

impl Chance {
    /// Whether something of this probability happens.
    fn strikes(&mut self, probability: f64) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 <= probability && probability > 0.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Sender,
    Receiver,
}

/// A datagram on its way to an end of a flow.
struct Packet {
    flow: usize,
    to: End,
    bytes: BytesMut,
}

enum Happening {
    Start(usize),
    Arrival(Packet),
    Timer(usize, End),
    /// The packet at the head of the queue has left it.
    Departure,
    /// A slot of the record ends.
    Slot,
}

struct World {
    path: Path,
    epoch: Instant,
    now: Instant,
    agenda: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    /// The happenings of the agenda, by the last number there.
    happenings: Vec<Option<Happening>>,
    vacant: Vec<usize>,
    order: u64,
    chance: Chance,
    flows: Vec<Flow>,
    queue: VecDeque<Packet>,
    queue_bytes: u64,
    queue_seen: Vec<Duration>,
    overflowed: u64,
}

impl World {
    fn new(path: Path, plans: &[Plan]) -> Self {
        let epoch = Instant::now();
        let mut world = Self {
            chance: Chance(path.seed),
            path,
            epoch,
            now: epoch,
            agenda: BinaryHeap::new(),
            happenings: Vec::new(),
            vacant: Vec::new(),
            order: 0,
            flows: Vec::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            queue_seen: Vec::new(),
            overflowed: 0,
        };
        for (number, plan) in plans.iter().enumerate() {
            world.flows.push(Flow::new(number, plan, &world.path));
            world.plan(epoch + plan.start, Happening::Start(number));
        }
        world.plan(epoch + SLOT, Happening::Slot);
        world
    }

    fn plan(&mut self, at: Instant, happening: Happening) {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.happenings.push(None);
            self.happenings.len() - 1
        });
        self.happenings[place] = Some(happening);
        self.order += 1;
        self.agenda.push(Reverse((at, self.order, place)));
    }

    fn run(&mut self, limit: Duration) {
        while let Some(Reverse((at, _, place))) = self.agenda.pop() {
            if at > self.epoch + limit || self.flows.iter().all(|flow| flow.ended.is_some()) {
                return;
            }
            self.now = at;
            self.vacant.push(place);
            match self.happenings[place].take().expect("planned once, happens once") {
                Happening::Start(flow) => {
                    self.flows[flow].dial(self.now);
                    self.drive(flow, End::Receiver);
                }
                Happening::Arrival(packet) => {
                    let (flow, to) = (packet.flow, packet.to);
                    self.flows[flow].arrive(self.now, packet);
                    self.drive(flow, to);
                }
                Happening::Timer(flow, end) => {
                    let host = self.flows[flow].host(end);
                    if host.timer == Some(at) {
                        host.timer = None;
                        if let Some((_, connection)) = &mut host.connection {
                            connection.handle_timeout(at);
                        }
                        self.drive(flow, end);
                    }
                }
                Happening::Departure => self.depart(),
                Happening::Slot => self.record(),
            }
        }
    }

    fn record(&mut self) {
        let rate = self.path.rate_at(self.now - self.epoch);
        let wait = Duration::from_secs_f64(self.queue_bytes as f64 * 8.0 / rate);
        self.queue_seen.push(wait);
        for number in 0..self.flows.len() {
            self.flows[number].record();
            // An application that offers its data little by little is looked at now.
            self.drive(number, End::Sender);
        }
        self.plan(self.now + SLOT, Happening::Slot);
    }

    /// Lets one end do what it has to do now, and takes what it sends.
    fn drive(&mut self, flow: usize, end: End) {
        let since = self.now - self.epoch;
        let mut sent = Vec::new();
        self.flows[flow].drive(self.now, since, end, &mut sent);
        let to = match end {
            End::Sender => End::Receiver,
            End::Receiver => End::Sender,
        };
        for bytes in sent {
            if bytes.len() <= self.path.mtu {
                self.submit(Packet { flow, to, bytes });
            }
        }
        let host = self.flows[flow].host(end);
        let due = host.connection.as_mut().and_then(|(_, connection)| connection.poll_timeout());
        if let Some(due) = due {
            let ticks = due.saturating_duration_since(self.epoch).as_nanos() / TICK.as_nanos() + 1;
            let due = self.epoch + TICK * u32::try_from(ticks).expect("a world ends within days");
            if host.timer != Some(due) {
                host.timer = Some(due);
                self.plan(due, Happening::Timer(flow, end));
            }
        } else {
            host.timer = None;
        }
    }

    fn submit(&mut self, packet: Packet) {
        let size = packet.bytes.len() as u64 + HEADER_BYTES;
        if packet.to == End::Sender {
            if !self.chance.strikes(self.path.loss_back) {
                let mut at = self.now + self.path.rtt / 2;
                if let Some(grain) = self.path.gather {
                    let grains = (at - self.epoch).as_nanos() / grain.as_nanos() + 1;
                    at = self.epoch + grain * u32::try_from(grains).expect("as for ticks");
                }
                self.plan(at, Happening::Arrival(packet));
            }
        } else if self.queue_bytes + size > self.path.queue && !self.queue.is_empty() {
            self.overflowed += 1;
        } else {
            self.queue_bytes += size;
            self.queue.push_back(packet);
            if self.queue.len() == 1 {
                self.serve();
            }
        }
    }

    /// Begins to send the packet at the head of the queue.
    fn serve(&mut self) {
        if let Some(packet) = self.queue.front() {
            let bits = (packet.bytes.len() as u64 + HEADER_BYTES) as f64 * 8.0;
            let rate = self.path.rate_at(self.now - self.epoch);
            self.plan(self.now + Duration::from_secs_f64(bits / rate), Happening::Departure);
        }
    }

    fn depart(&mut self) {
        let packet = self.queue.pop_front().expect("what departs was at the head");
        self.queue_bytes -= packet.bytes.len() as u64 + HEADER_BYTES;
        let since = self.now - self.epoch;
        let out = self.path.outage.is_some_and(|(every, span)| {
            since >= every && since.as_nanos() % every.as_nanos() < span.as_nanos()
        });
        if !out && !self.chance.strikes(self.path.loss) {
            self.plan(self.now + self.path.rtt / 2, Happening::Arrival(packet));
        }
        self.serve();
    }
}

struct Host {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    timer: Option<Instant>,
}

/// A receiver that dials and asks, and a sender that answers, as in a real session.
struct Flow {
    sender: Host,
    receiver: Host,
    client: quinn::ClientConfig,
    sender_address: SocketAddr,
    receiver_address: SocketAddr,
    offered: fn(Duration) -> u64,
    bytes: u64,
    read: u64,
    /// The streams on which the sender writes, with what it wrote, and the receiver reads.
    out: Vec<(StreamId, u64)>,
    into: Vec<StreamId>,
    began: Option<Instant>,
    ended: Option<Instant>,
    progress: Vec<u64>,
}

impl Flow {
    fn new(number: usize, plan: &Plan, path: &Path) -> Self {
        let tls = Tls::new();
        let [receiver_key, sender_key] = [1, 2].map(|byte| SecretKey::from_seed(&[byte; 32]));
        let hint = [7; 16];
        let shown = tls::transfer_key(&sender_key);
        let (answer, _) = tls.answer(move |_| Some(shown.clone()));
        let answer = QuicServerConfig::try_from(answer).unwrap();
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(answer));
        let mut settings = transport(1 + LANES as u32);
        settings.congestion_controller_factory(plan.congestion.clone());
        server.transport_config(Arc::new(settings));
        let dial = tls.dial(tls::transfer_key(&receiver_key), &sender_key.public(), &hint);
        let dial = QuicClientConfig::try_from(dial).unwrap();
        let mut client = quinn::ClientConfig::new(Arc::new(dial));
        client.transport_config(Arc::new(transport(1)));
        let host = |server: Option<quinn::ServerConfig>, which: u8| {
            let mut config = EndpointConfig::default();
            let mut seed = [which; 32];
            seed[1..9].copy_from_slice(&path.seed.to_le_bytes());
            seed[9] = number as u8;
            config.rng_seed(Some(seed));
            let endpoint = Endpoint::new(Arc::new(config), server.map(Arc::new), true, None);
            Host { endpoint, connection: None, timer: None }
        };
        let address = |last: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, last));
        Self {
            sender: host(Some(server), 1),
            receiver: host(None, 2),
            client,
            sender_address: address(1000 + number as u16),
            receiver_address: address(2000 + number as u16),
            offered: plan.offered,
            bytes: plan.bytes,
            read: 0,
            out: Vec::new(),
            into: Vec::new(),
            began: None,
            ended: None,
            progress: Vec::new(),
        }
    }

    fn host(&mut self, end: End) -> &mut Host {
        match end {
            End::Sender => &mut self.sender,
            End::Receiver => &mut self.receiver,
        }
    }

    fn dial(&mut self, now: Instant) {
        let dialled = self.receiver.endpoint.connect(
            now,
            self.client.clone(),
            self.sender_address,
            "0.0.0.0",
        );
        self.receiver.connection = Some(dialled.unwrap());
        self.began = Some(now);
    }

    fn arrive(&mut self, now: Instant, packet: Packet) {
        let from = match packet.to {
            End::Sender => self.receiver_address,
            End::Receiver => self.sender_address,
        };
        let host = self.host(packet.to);
        let mut buffer = Vec::new();
        match host.endpoint.handle(now, from, None, None, packet.bytes, &mut buffer) {
            Some(DatagramEvent::NewConnection(incoming)) => {
                host.connection =
                    Some(host.endpoint.accept(incoming, now, &mut buffer, None).unwrap());
            }
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut host.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn drive(&mut self, now: Instant, since: Duration, end: End, sent: &mut Vec<BytesMut>) {
        match end {
            End::Sender => self.write(since),
            End::Receiver => self.read(now),
        }
        let host = self.host(end);
        let Some((handle, connection)) = &mut host.connection else { return };
        while connection.poll().is_some() {}
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = host.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        let mut buffer = Vec::new();
        while let Some(transmit) = connection.poll_transmit(now, BATCH, &mut buffer) {
            let Transmit { size, segment_size, .. } = transmit;
            sent.extend(buffer[..size].chunks(segment_size.unwrap_or(size)).map(BytesMut::from));
            buffer.clear();
        }
    }

    /// The sending application: answers the requests as far as it may and can.
    fn write(&mut self, since: Duration) {
        let Some((_, connection)) = &mut self.sender.connection else { return };
        while let Some(id) = connection.streams().accept(Dir::Bi) {
            self.out.push((id, 0));
        }
        let whole = self.bytes / STREAMS as u64;
        let until = ((self.offered)(since) / STREAMS as u64).min(whole);
        for (id, written) in &mut self.out {
            while *written < until {
                let left = (until - *written).min(ZEROS.len() as u64) as usize;
                let mut chunk = [Bytes::from_static(&ZEROS[..left])];
                match connection.send_stream(*id).write_chunks(&mut chunk) {
                    Ok(some) => *written += some.bytes as u64,
                    Err(_) => break,
                }
                if *written == whole {
                    connection.send_stream(*id).finish().unwrap();
                }
            }
        }
    }

    /// The receiving application: asks on several streams, and reads each in order.
    fn read(&mut self, now: Instant) {
        let Some((_, connection)) = &mut self.receiver.connection else { return };
        if connection.is_closed() {
            panic!("the session was lost: {:?}", connection.poll());
        }
        if self.into.is_empty() && !connection.is_handshaking() {
            for _ in 0..STREAMS {
                if let Some(id) = connection.streams().open(Dir::Bi) {
                    connection.send_stream(id).write(b"?").unwrap();
                    self.into.push(id);
                }
            }
        }
        if self.ended.is_some() {
            return;
        }
        for id in &self.into {
            let mut stream = connection.recv_stream(*id);
            let Ok(mut chunks) = stream.read(true) else { continue };
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                self.read += chunk.bytes.len() as u64;
            }
            let _ = chunks.finalize();
        }
        if self.read == self.bytes {
            self.ended = Some(now);
        }
    }

    fn record(&mut self) {
        self.progress.push(self.read);
    }

    fn outcome(mut self) -> Outcome {
        self.record();
        let stats = self.sender.connection.map(|(_, connection)| connection.stats());
        Outcome {
            took: self.began.zip(self.ended).map(|(began, ended)| ended - began),
            progress: self.progress,
            sent_packets: stats.map_or(0, |stats| stats.path.sent_packets),
        }
    }
}
