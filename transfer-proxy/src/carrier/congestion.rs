//! Congestion control of a session: a controller of our own ([`tolerant`]), and a last word that it
//! cannot hold back.
//!
//! quinn-proto 0.11.19 queues the closing frame behind data that waits for the congestion window,
//! and handles no acknowledgement any more once the session is closed: a sender that closes while
//! its window is full is heard only by the idle timeout of the other end. So the window opens when
//! the session closes; nothing but the closing frame is sent then.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod claims;
mod contest;
mod measure;
mod tolerant;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};

use tolerant::Tolerant;

/// Above this many bytes quinn's pacer does not delay either.
const OPEN_WINDOW_BYTES: u64 = 1 << 40;

/// Makes a controller per path.
pub(super) struct Factory;

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Tolerant::new(now, mtu))
    }
}

/// Opens the window of the controller that `state` is a duplicate of.
pub(super) fn let_last_word_pass(state: Box<dyn Controller>) {
    if let Ok(tolerant) = state.into_any().downcast::<Tolerant>() {
        tolerant.closing.store(true, Ordering::Relaxed);
    }
}
