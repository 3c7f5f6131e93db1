//! Congestion control of a session: quinn's cubic, and a last word that it cannot hold back.
//!
//! quinn-proto 0.11.19 queues the closing frame behind data that waits for the congestion window,
//! and handles no acknowledgement any more once the session is closed: a sender that closes while
//! its window is full is heard only by the idle timeout of the other end. So the window opens when
//! the session closes; nothing but the closing frame is sent then.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};
use quinn_proto::RttEstimator;

/// Above this many bytes quinn's pacer does not delay either.
const OPEN_WINDOW_BYTES: u64 = 1 << 40;

/// Makes a controller per path.
#[derive(Default)]
pub(super) struct Factory(Arc<CubicConfig>);

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let cubic = Box::new(Cubic::new(self.0.clone(), now, mtu));
        Box::new(Closable { cubic, closing: Arc::default() })
    }
}

struct Closable {
    cubic: Box<dyn Controller>,
    /// Shared by all duplicates of the controller.
    closing: Arc<AtomicBool>,
}

/// Opens the window of the controller that `state` is a duplicate of.
pub(super) fn let_last_word_pass(state: Box<dyn Controller>) {
    if let Ok(closable) = state.into_any().downcast::<Closable>() {
        closable.closing.store(true, Ordering::Relaxed);
    }
}

impl Controller for Closable {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.closing.load(Ordering::Relaxed) { OPEN_WINDOW_BYTES } else { self.cubic.window() }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.cubic.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { cubic: self.cubic.clone_box(), closing: self.closing.clone() })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
