//! Legs: sessions whose streams carry connections of others, sealed from end to end.
//!
//! ```text
//!   target ── leg ──▶ relay ── leg ──▶ source        each stream: Through(token), then the sealed
//!                                                    connection, from the target to the source
//!   target ── leg ──▶ relay ◀── leg ── source        a source that takes nothing inbound: Spare
//!                                                    (token), and the first that asks gets it
//! ```
//!
//! Whoever dials a leg shows any key; the token is what counts, and what it stands for is sealed
//! with both ends' transfer keys.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use model::{Carrier, Token};
use tokio::io::DuplexStream;
use tokio::sync::{Mutex as Turn, Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::call::{Call, CallError};
use crate::carrier::{Cut, Link, MAX_LANES, Port, Stream, pipe, tcp::Opener};
use crate::message::{self, Control};
use crate::order::Dial;
use crate::session::{LAST_WORD_TIMEOUT, OPEN_TIMEOUT};
use crate::tls::TransferKey;
use crate::transfer::Transfer;

/// Streams of one transfer that a proxy passes on at once: those of a session, and of another that
/// takes over from it.
pub(crate) const MAX_STREAMS: usize = 2 * (1 + MAX_LANES);

/// Spare streams that a source keeps ready where it cannot be dialled.
const SPARE: usize = 2;

/// Spare streams of one transfer that wait to be used; older ones are dropped.
const MAX_WAITING: usize = 2 * SPARE + MAX_LANES;

/// How long whoever asks for a stream waits until the source brings one.
const SPARE_TIMEOUT: Duration = Duration::from_secs(10);

/// Wait before a leg is made again; doubled for each further time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait before a leg is made again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Bytes of a spare stream's first message that are read to know that it is used.
const HEAD_BYTES: usize = 4096;

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

/// A leg that this proxy dials, made when it is needed.
pub(crate) struct Leg {
    call: Call,
    token: Token,
    link: Turn<Option<Link>>,
}

impl Leg {
    pub(crate) fn new(dial: &Dial, only: Option<Carrier>, key: TransferKey) -> Self {
        let Dial { uri, token, key: peer } = dial;
        let call = Call { uri: uri.clone(), only, key, peer: *peer, hint: token.hint() };
        Self { call, token: token.clone(), link: Turn::default() }
    }

    /// A stream for one connection to whom the token stands for.
    pub(crate) async fn through(&self, port: &Port) -> Result<Stream, CallError> {
        self.open(port, Control::Through { token: self.token.clone() }).await
    }

    async fn open(&self, port: &Port, greeting: Control) -> Result<Stream, CallError> {
        let known = self.link.lock().await.clone();
        if let Some(link) = known {
            if let Ok(stream) = greet(&link, &greeting).await {
                return Ok(stream);
            }
            self.link.lock().await.take_if(|known| known.is_same(&link));
        }
        // One at a time dials; who waited finds what the first has made.
        let mut known = self.link.lock().await;
        let link = match &*known {
            Some(link) => link.clone(),
            None => {
                let link = self.call.connect(port).await?;
                link.be_raw();
                known.insert(link).clone()
            }
        };
        drop(known);
        greet(&link, &greeting).await
    }
}

/// Opens a stream. One that does not come about in time belongs to a leg that is dead, or full.
async fn greet(link: &Link, greeting: &Control) -> Result<Stream, CallError> {
    let greeted = async {
        let mut stream = link.open().await?;
        message::send(&mut stream.sender, greeting).await?;
        Ok::<_, Cut>(stream)
    };
    match timeout(OPEN_TIMEOUT, greeted).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(Cut)) => Err(CallError::Lost("the connection broke".to_owned())),
        Err(_) => Err(CallError::Lost("no answer".to_owned())),
    }
}

/// How connections to the source are made that a leg, or one that the source dialled, carries.
#[derive(Clone)]
pub(crate) enum Way {
    Leg(Arc<Leg>),
    Spares(Arc<Spares>),
}

impl Way {
    /// By `dial`, or where that has no address by what comes in with its token.
    pub(crate) fn new(dial: &Dial, only: Option<Carrier>, key: TransferKey) -> Self {
        match dial.uri.is_dial_out() {
            true => Self::Spares(Arc::default()),
            false => Self::Leg(Arc::new(Leg::new(dial, only, key))),
        }
    }

    pub(crate) async fn open(&self, port: &Port) -> Result<Stream, CallError> {
        match self {
            Self::Leg(leg) => leg.through(port).await,
            Self::Spares(spares) => spares.next().await,
        }
    }

    pub(crate) fn spares(&self) -> Option<&Arc<Spares>> {
        match self {
            Self::Leg(_) => None,
            Self::Spares(spares) => Some(spares),
        }
    }

    /// Makes connections for a session that is sealed within.
    pub(crate) fn opener(self, port: Arc<Port>) -> Opener {
        Arc::new(move || {
            let (way, port) = (self.clone(), port.clone());
            Box::pin(async move {
                let stream = way.open(&port).await.map_err(io::Error::other)?;
                Ok(pipe::connection(stream, vec![]))
            })
        })
    }
}

/// Streams that a source which cannot be dialled has brought, and nobody uses yet.
#[derive(Default)]
pub(crate) struct Spares {
    waiting: Mutex<VecDeque<Stream>>,
    came: Notify,
}

impl Spares {
    pub(crate) fn add(&self, stream: Stream) {
        let mut waiting = guard(&self.waiting);
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back(stream);
        self.came.notify_one();
    }

    /// The newest: it is the likeliest to be alive.
    async fn next(&self) -> Result<Stream, CallError> {
        let next = async {
            loop {
                let came = self.came.notified();
                let newest = guard(&self.waiting).pop_back();
                match newest {
                    Some(stream) => return stream,
                    None => came.await,
                }
            }
        };
        let none = "the source takes nothing inbound, and has not dialled this proxy";
        timeout(SPARE_TIMEOUT, next).await.map_err(|_| CallError::Lost(none.to_owned()))
    }
}

/// Source: brings spare streams to a proxy that can be dialled, until the transfer is closed. What
/// is used of them goes to `arrived`.
pub(crate) async fn bring_spares<T: Future<Output = ()> + Send + 'static>(
    transfer: &Transfer,
    leg: Leg,
    port: &Port,
    arrived: impl Fn(DuplexStream) -> T,
) {
    let mut running = JoinSet::new();
    let bringing = async {
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        let mut waiting = JoinSet::new();
        let mut pause = FIRST_PAUSE;
        let mut told = false;
        loop {
            while running.try_join_next().is_some() {}
            while waiting.len() < SPARE && streams.available_permits() > 0 {
                match leg.open(port, Control::Spare { token: leg.token.clone() }).await {
                    Ok(stream) => {
                        told = false;
                        waiting.spawn(use_of(stream));
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut told, true) {
                            transfer.stumble(error.to_string()).await;
                        }
                        break;
                    }
                }
            }
            tokio::select! {
                Some(used) = waiting.join_next() => {
                    if let Some(connection) = used.expect("waiting does not panic") {
                        pause = FIRST_PAUSE;
                        let permit = streams.clone().try_acquire_owned();
                        let arrived = arrived(connection);
                        running.spawn(async move {
                            let _permit = permit;
                            arrived.await;
                        });
                        continue;
                    }
                }
                Some(_) = running.join_next() => continue,
                () = sleep(pause), if waiting.len() < SPARE => {}
            }
            // A stream was lost, or none could be made.
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    };
    tokio::select! {
        () = transfer.closing() => {}
        () = bringing => {}
    }
    // Sessions end by themselves, after a last word.
    let ended = async { while running.join_next().await.is_some() {} };
    let _ = timeout(2 * LAST_WORD_TIMEOUT, ended).await;
}

/// Waits until somebody says something on a stream; none if it is lost before.
async fn use_of(mut stream: Stream) -> Option<DuplexStream> {
    let mut head = vec![0; HEAD_BYTES];
    let count = stream.receiver.read(&mut head).await.ok().filter(|count| *count > 0)?;
    head.truncate(count);
    Some(pipe::connection(stream, head))
}
