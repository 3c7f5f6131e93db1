//! The control conversation of a session; the same at both ends once it is opened.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::carrier::{Closed, Code, Cut, Link, Receiver, Sender, Stall};
use crate::fault::{Fault, Reason};
use crate::message::{self, Control, FrameError, MAX_CONTROL_BYTES};
use crate::transfer::{Event, Transfer};

/// From the first packet until both ends are sure of each other.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an end waits for the other to take a last word before it closes the session.
pub(crate) const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(2);

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

/// Both halves of the control stream.
pub(crate) struct ControlStream {
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
}

/// Carries told messages both ways until the session ends. `faults` is how the work beside it
/// gives up.
pub(crate) async fn converse(
    transfer: &Transfer,
    link: &Link,
    stream: ControlStream,
    faults: &mut mpsc::Receiver<Fault>,
) -> Outcome {
    transfer.attach(link);
    let conversation = Conversation { transfer, link, sender: stream.sender };
    let Err(outcome) = conversation.run(stream.receiver, faults).await;
    match &outcome {
        Outcome::ClosedHere => link.close(Code::Done),
        Outcome::Fault(_) | Outcome::PeerFault(_) => link.close(Code::Broken),
        Outcome::Over(_) => {}
    }
    transfer.detach(link);
    outcome
}

struct Conversation<'a> {
    transfer: &'a Transfer,
    link: &'a Link,
    sender: Sender,
}

type Received = (Receiver, Result<Control, FrameError>);

/// Owns the receiver while it reads, so that a message is never cut when something else happens.
fn next(mut receiver: Receiver) -> Pin<Box<dyn Future<Output = Received> + Send>> {
    Box::pin(async move {
        let message = message::receive(&mut receiver, MAX_CONTROL_BYTES, Stall::Never).await;
        (receiver, message)
    })
}

impl Conversation<'_> {
    /// Ends only by an outcome, so that `?` leaves the loop.
    async fn run(
        mut self,
        receiver: Receiver,
        faults: &mut mpsc::Receiver<Fault>,
    ) -> Result<Infallible, Outcome> {
        let mut reading = next(receiver);
        let mut closing = self.transfer.closing.subscribe();
        let mut latest = self.transfer.outbox.latest();
        let mut deadline = None;
        let mut sent = 0;
        loop {
            latest.mark_unchanged();
            while let Some((number, body)) = self.transfer.outbox.after(sent) {
                self.say(&Control::Tell { number, body }).await?;
                sent = number;
            }
            if *closing.borrow_and_update() {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + LAST_WORD_TIMEOUT);
                if self.transfer.outbox.is_empty() || Instant::now() >= deadline {
                    return Err(Outcome::ClosedHere);
                }
            }
            let last_word = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                (receiver, message) = &mut reading => {
                    self.heard(message).await?;
                    reading = next(receiver);
                }
                _ = latest.changed() => {}
                _ = closing.changed() => {}
                () = last_word => {}
                Some(fault) = faults.recv() => return Err(self.give_up(fault).await),
            }
        }
    }

    async fn heard(&mut self, message: Result<Control, FrameError>) -> Result<(), Outcome> {
        match message {
            Ok(Control::Tell { number, body }) => {
                let Transfer { migration, end, .. } = *self.transfer;
                self.transfer.emit(Event::Told { migration, end, message: body }).await;
                self.say(&Control::Taken { number }).await
            }
            Ok(Control::Taken { number }) => {
                self.transfer.outbox.taken(number);
                Ok(())
            }
            Ok(Control::Broken(reason)) => Err(Outcome::PeerFault(reason)),
            Err(FrameError::Cut) => Err(self.over().await),
            Ok(Control::Hello { .. } | Control::Welcome { .. }) => {
                Err(self.give_up(Reason::Protocol.into()).await)
            }
            Err(error) => Err(self.give_up(Fault::with(Reason::Protocol, error)).await),
        }
    }

    async fn say(&mut self, message: &Control) -> Result<(), Outcome> {
        match message::send(&mut self.sender, message).await {
            Ok(()) => Ok(()),
            Err(Cut) => Err(self.over().await),
        }
    }

    /// The control stream ended: either the session did, or the other end does not keep to the
    /// protocol.
    async fn over(&self) -> Outcome {
        match tokio::time::timeout(LAST_WORD_TIMEOUT, self.link.closed()).await {
            Ok(closed) => Outcome::Over(closed),
            Err(_) => Outcome::Fault(Reason::Protocol.into()),
        }
    }

    async fn give_up(&mut self, fault: Fault) -> Outcome {
        let last_word = async {
            if message::send(&mut self.sender, &Control::Broken(fault.reason)).await.is_ok() {
                // The other end closes the session when it has read it.
                self.link.closed().await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORD_TIMEOUT, last_word).await;
        Outcome::Fault(fault)
    }
}
