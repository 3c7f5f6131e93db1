//! How fast a peer may speak: HTTP/2 frames are counted before they are looked at.
//!
//! What a frame costs here has little to do with its length: tens of thousands of PING, SETTINGS or
//! RST_STREAM fit into what arrives at once. So a peer's frames have a rate, over all its
//! connections, and those beyond it wait where they are; and after a few of them others have their
//! turn, for all peers are served by one thread.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use model::SiteKey;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::lock;

/// Frames a second of one peer: at least; and for each request a second that its peering allows.
const FRAMES: u32 = 4_000;
const FRAMES_PER_REQUEST: u32 = 4;
/// Frames that it may have saved up.
const BURST: u32 = 1_000;
/// Frames of one connection after which others have their turn.
const TURN: u32 = 32;
/// Bytes that are taken from a connection at once.
const READ_BYTES: usize = 16 << 10;
/// What a client says first (RFC 9113, section 3.4), and what stands before each frame.
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;

/// What each peer with a connection may say.
#[derive(Default)]
pub(super) struct Paces(Mutex<HashMap<SiteKey, Weak<Mutex<Allowance>>>>);

impl Paces {
    /// For one more connection of this peer, which may make so many requests a second.
    pub(super) fn of(&self, key: SiteKey, requests: u32) -> Pace {
        let mut all = lock(&self.0);
        all.retain(|_, known| known.strong_count() > 0);
        let known = all.get(&key).and_then(Weak::upgrade);
        let allowance = known.unwrap_or_else(|| Arc::new(Mutex::new(Allowance::new())));
        lock(&allowance).rate = requests.saturating_mul(FRAMES_PER_REQUEST).max(FRAMES).into();
        all.insert(key, Arc::downgrade(&allowance));
        Pace::new(allowance)
    }
}

/// Frames that may come now.
struct Allowance {
    rate: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { rate: FRAMES.into(), left: BURST.into(), at: Instant::now() }
    }

    /// Takes one, or tells how long it is until there is one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * self.rate).min(BURST.into());
        self.at = now;
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / self.rate));
        }
        self.left -= 1.0;
        Ok(())
    }
}

/// What has come on a connection, and goes on frame by frame.
pub(super) struct Pace {
    allowance: Arc<Mutex<Allowance>>,
    /// Came and was not given on: `bytes[from..to]`.
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
    /// Bytes of the present frame that are still to be given on, behind its head.
    rest: usize,
    head: [u8; HEAD_BYTES],
    /// Bytes of the head of the next frame that were given on.
    heard: usize,
    /// Frames of this turn.
    turn: u32,
    /// Until the next frame may come.
    wait: Option<Pin<Box<Sleep>>>,
}

/// Why no more is given on.
enum Stop {
    Empty,
    Turn,
    Wait(Duration),
}

impl Pace {
    fn new(allowance: Arc<Mutex<Allowance>>) -> Self {
        Self {
            allowance,
            bytes: vec![0; READ_BYTES].into(),
            from: 0,
            to: 0,
            rest: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            heard: 0,
            turn: 0,
            wait: None,
        }
    }

    /// Reads what may be read now.
    pub(super) fn poll_read<S: AsyncRead>(
        &mut self,
        mut stream: Pin<&mut S>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(context));
                self.wait = None;
            }
            if self.from == self.to {
                let mut read = ReadBuf::new(&mut self.bytes);
                match stream.as_mut().poll_read(context, &mut read) {
                    Poll::Ready(Ok(())) => (self.from, self.to) = (0, read.filled().len()),
                    ended_or_none => {
                        self.turn = 0;
                        return ended_or_none;
                    }
                }
                if self.to == 0 {
                    return Poll::Ready(Ok(()));
                }
            }
            let before = buffer.filled().len();
            let stop = self.give(Instant::now(), buffer);
            if buffer.filled().len() > before || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            match stop {
                Stop::Empty => {}
                Stop::Turn => {
                    self.turn = 0;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Stop::Wait(time) => self.wait = Some(Box::pin(sleep(time))),
            }
        }
    }

    /// Gives on what is there and may be given.
    fn give(&mut self, now: Instant, buffer: &mut ReadBuf<'_>) -> Stop {
        while self.from < self.to && buffer.remaining() > 0 {
            if self.rest > 0 {
                let count = self.rest.min(self.to - self.from).min(buffer.remaining());
                buffer.put_slice(&self.bytes[self.from..self.from + count]);
                self.from += count;
                self.rest -= count;
                continue;
            }
            if self.heard == 0 {
                if self.turn == TURN {
                    return Stop::Turn;
                }
                if let Err(time) = lock(&self.allowance).take(now) {
                    self.turn = 0;
                    return Stop::Wait(time);
                }
                self.turn += 1;
            }
            self.head[self.heard] = self.bytes[self.from];
            buffer.put_slice(&self.head[self.heard..=self.heard]);
            self.from += 1;
            self.heard = (self.heard + 1) % HEAD_BYTES;
            if self.heard == 0 {
                let [high, middle, low, ..] = self.head;
                self.rest = u32::from_be_bytes([0, high, middle, low]) as usize;
            }
        }
        Stop::Empty
    }
}

/// All that is given on of what one peer says, which comes in parts of so many bytes.
pub(crate) fn paced(said: &[u8], part: usize) -> Vec<u8> {
    let pace = Pace::new(Arc::new(Mutex::new(Allowance::new())));
    passed(pace, said, part, Instant::now()).0
}

/// The same, and when all of it was given on.
fn passed(mut pace: Pace, said: &[u8], part: usize, begun: Instant) -> (Vec<u8>, Instant) {
    let (mut heard, mut now) = (vec![], begun);
    let part = part.clamp(1, READ_BYTES);
    for bytes in said.chunks(part) {
        pace.bytes[..bytes.len()].copy_from_slice(bytes);
        (pace.from, pace.to) = (0, bytes.len());
        while pace.from < pace.to {
            let mut room = [0; 1000];
            let mut buffer = ReadBuf::new(&mut room);
            match pace.give(now, &mut buffer) {
                Stop::Empty => {}
                Stop::Turn => pace.turn = 0,
                Stop::Wait(time) => now += time,
            }
            heard.extend_from_slice(buffer.filled());
        }
    }
    (heard, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The preface and so many frames, with payloads of all kinds of lengths.
    fn said(frames: u32) -> Vec<u8> {
        let frame = |n: u32| {
            let length = [0_u16, 8, 300, 1, 16_000][n as usize % 5];
            let [high, low] = length.to_be_bytes();
            [&[0, high, low, 6, 0, 0, 0, 0, 0][..], &vec![n as u8; length.into()]].concat()
        };
        [vec![b'P'; PREFACE_BYTES], (0..frames).flat_map(frame).collect()].concat()
    }

    /// Has so many frames come in parts of so many bytes, all at once, and tells how long they were
    /// held back.
    fn heard(paces: &Paces, begun: Instant, frames: u32, part: usize) -> Duration {
        let pace = paces.of(certs::Identity::from_seed(&[7; 32]).site_key(), 50);
        let said = said(frames);
        let (heard, now) = passed(pace, &said, part, begun);
        assert!(heard == said, "every byte passes, in order");
        now - begun
    }

    #[test]
    fn frames_pass_whole_and_no_faster_than_a_peer_may_say_them() {
        for part in [1, 7, 100, READ_BYTES] {
            let (paces, begun) = (Paces::default(), Instant::now());
            assert_eq!(heard(&paces, begun, BURST, part), Duration::ZERO);
            let took = heard(&Paces::default(), Instant::now(), BURST + FRAMES / 4, part);
            assert!((0.24..0.26).contains(&took.as_secs_f64()), "{took:?}");
        }
    }

    #[test]
    fn connections_of_one_peer_have_one_rate_together() {
        let (paces, begun) = (Paces::default(), Instant::now());
        let first = paces.of(certs::Identity::from_seed(&[7; 32]).site_key(), 50);
        assert_eq!(heard(&paces, begun, BURST, 100), Duration::ZERO);
        let took = heard(&paces, begun, FRAMES / 4, 100);
        assert!((0.24..0.26).contains(&took.as_secs_f64()), "{took:?}");
        drop(first);
    }

    #[test]
    fn others_have_their_turn_after_a_few_frames() {
        let mut pace = Paces::default().of(certs::Identity::from_seed(&[7; 32]).site_key(), 50);
        let said = [vec![b'P'; PREFACE_BYTES], vec![0; 100 * HEAD_BYTES]].concat();
        pace.bytes[..said.len()].copy_from_slice(&said);
        pace.to = said.len();
        let mut room = [0; 2000];
        let mut buffer = ReadBuf::new(&mut room);
        assert!(matches!(pace.give(Instant::now(), &mut buffer), Stop::Turn));
        assert_eq!(buffer.filled().len(), PREFACE_BYTES + TURN as usize * HEAD_BYTES);
    }
}
