//! The control conversation of a session; the same at both ends once it is opened.

use std::time::Duration;

use model::Carrier;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::carrier::{
    Closed, Code, Cut, IDLE_TIMEOUT, KEEP_ALIVE, Link, Receiver, Sender, Stall, Stream,
};
use crate::fault::{Fault, Reason};
use crate::message::{self, Control, FrameError, MAX_CONTROL_BYTES};
use crate::transfer::{Event, Transfer};

/// From the first packet until both ends are sure of each other.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an end waits for the other to take a last word before it closes the session.
pub(crate) const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(2);

/// Messages about content that wait to be said, and that wait to be worked on.
pub(crate) const WAITING_MESSAGES: usize = 8;

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The node here closed the transfer.
    ClosedHere,
    /// The other end closed the session, or it was lost.
    Over(Closed),
    /// This end gave up.
    Fault(Fault),
    /// The other end gave up, for this reason.
    PeerFault(Reason),
}

/// What the work beside the conversation says and hears: messages about content.
pub(crate) struct Talk {
    pub(crate) say: mpsc::Receiver<Control>,
    pub(crate) heard: mpsc::Sender<Control>,
    /// How the work gives up.
    pub(crate) faults: mpsc::Receiver<Fault>,
}

/// The work's side of a [`Talk`].
pub(crate) struct Work {
    pub(crate) say: mpsc::Sender<Control>,
    pub(crate) heard: mpsc::Receiver<Control>,
    pub(crate) give_up: mpsc::Sender<Fault>,
}

/// Both sides.
pub(crate) fn talk() -> (Talk, Work) {
    let (say, said) = mpsc::channel(WAITING_MESSAGES);
    let (tell, heard) = mpsc::channel(WAITING_MESSAGES);
    let (give_up, faults) = mpsc::channel(1);
    (Talk { say: said, heard: tell, faults }, Work { say, heard, give_up })
}

/// Carries messages both ways until the session ends.
pub(crate) async fn converse(
    transfer: &Transfer,
    link: &Link,
    stream: Stream,
    talk: Talk,
) -> Outcome {
    transfer.attach(link);
    let Talk { say, heard, mut faults } = talk;
    let (taken, taken_here) = watch::channel(0);
    let stirred = Notify::new();
    let is_tcp = link.kind() == Carrier::Tls;
    let listener = Listener { transfer, link, heard, taken, stirred: &stirred, is_tcp };
    let mut speaker = Speaker { sender: stream.sender, midway: false, is_tcp };
    let ending = tokio::select! {
        ending = listener.run(stream.receiver) => ending,
        ending = speaker.run(transfer, say, taken_here, &stirred) => match ending {
            None => over(link).await,
            Some(outcome) => outcome,
        },
        Some(fault) = faults.recv() => Outcome::Fault(fault),
    };
    match &ending {
        Outcome::ClosedHere => link.close(Code::Done),
        Outcome::Fault(fault) => {
            speaker.give_up(link, fault.reason).await;
            link.close(Code::Broken);
        }
        Outcome::PeerFault(_) => link.close(Code::Broken),
        Outcome::Over(_) => {}
    }
    transfer.detach(link);
    ending
}

/// The control stream ended: either the session did, or the other end does not keep to the
/// protocol.
async fn over(link: &Link) -> Outcome {
    match tokio::time::timeout(LAST_WORD_TIMEOUT, link.closed()).await {
        Ok(closed) => Outcome::Over(closed),
        Err(_) => Outcome::Fault(Reason::Protocol.into()),
    }
}

/// What comes.
struct Listener<'a> {
    transfer: &'a Transfer,
    link: &'a Link,
    heard: mpsc::Sender<Control>,
    /// The last told message that was taken here.
    taken: watch::Sender<u64>,
    stirred: &'a Notify,
    is_tcp: bool,
}

impl Listener<'_> {
    async fn run(self, mut receiver: Receiver) -> Outcome {
        loop {
            let message = match self.next(&mut receiver).await {
                Ok(message) => message,
                Err(FrameError::Cut) => {
                    receiver.is_lost("the connection broke");
                    return over(self.link).await;
                }
                Err(error) => return Outcome::Fault(Fault::with(Reason::Protocol, error)),
            };
            let Transfer { migration, end, .. } = *self.transfer;
            match (message, end) {
                (Control::Tell { number, body }, _) => {
                    self.transfer.emit(Event::Told { migration, end, message: body }).await;
                    self.taken.send_replace(number);
                }
                (Control::Taken { number }, _) => {
                    self.transfer.outbox.taken(number);
                    self.stirred.notify_one();
                }
                (Control::Broken(reason), _) => return Outcome::PeerFault(reason),
                (Control::Alive, _) => {}
                (message, end) if message.content_for() == Some(end) => {
                    // Fails where nobody works any more, because the session is about to end.
                    let _ = self.heard.send(message).await;
                }
                _ => return Outcome::Fault(Reason::Protocol.into()),
            }
        }
    }

    async fn next(&self, receiver: &mut Receiver) -> Result<Control, FrameError> {
        let next = message::receive(receiver, MAX_CONTROL_BYTES, Stall::Never);
        if !self.is_tcp {
            return next.await;
        }
        match tokio::time::timeout(IDLE_TIMEOUT, next).await {
            Ok(message) => message,
            Err(_) => {
                receiver.is_lost("timed out");
                Err(FrameError::Cut)
            }
        }
    }
}

/// What goes.
struct Speaker {
    sender: Sender,
    /// Part of a message is sent.
    midway: bool,
    is_tcp: bool,
}

impl Speaker {
    /// Ends by an outcome, or with none where the stream was cut.
    async fn run(
        &mut self,
        transfer: &Transfer,
        mut say: mpsc::Receiver<Control>,
        mut taken: watch::Receiver<u64>,
        stirred: &Notify,
    ) -> Option<Outcome> {
        let mut closing = transfer.closing.subscribe();
        let mut latest = transfer.outbox.latest();
        let mut alive = tokio::time::interval(KEEP_ALIVE);
        let mut deadline = None;
        let mut told = 0;
        loop {
            latest.mark_unchanged();
            while let Some((number, body)) = transfer.outbox.after(told) {
                self.say(&Control::Tell { number, body }).await?;
                told = number;
            }
            if taken.has_changed().unwrap_or(false) {
                let number = *taken.borrow_and_update();
                self.say(&Control::Taken { number }).await?;
            }
            if *closing.borrow_and_update() {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + LAST_WORD_TIMEOUT);
                if transfer.outbox.is_empty() || Instant::now() >= deadline {
                    return Some(Outcome::ClosedHere);
                }
            }
            let last_word = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(message) = say.recv() => self.say(&message).await?,
                _ = latest.changed() => {}
                _ = closing.changed() => {}
                Ok(()) = taken.changed() => taken.mark_changed(),
                () = stirred.notified() => {}
                () = last_word => {}
                _ = alive.tick(), if self.is_tcp => self.say(&Control::Alive).await?,
            }
        }
    }

    async fn say(&mut self, message: &Control) -> Option<()> {
        self.midway = true;
        let sent = message::send(&mut self.sender, message).await;
        self.midway = false;
        sent.map_err(|Cut| ()).ok()
    }

    /// Tells the other end why, and waits until it closes the session, if it does soon.
    async fn give_up(&mut self, link: &Link, reason: Reason) {
        let last_word = async {
            if !self.midway
                && message::send(&mut self.sender, &Control::Broken(reason)).await.is_ok()
            {
                link.closed().await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORD_TIMEOUT, last_word).await;
    }
}
