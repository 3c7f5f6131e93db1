//! Transfers of others that go through this proxy: it joins streams, and sees sizes and times.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use crate::carrier::{Port, Stream, pipe};
use crate::leg::{MAX_STREAMS, Way};
use crate::shaper::Part;
use crate::tls::TransferKey;

/// A transfer that this proxy passes on.
pub(crate) struct Route {
    pub(crate) relay: crate::Relay,
    /// What this proxy shows to either side.
    pub(crate) key: TransferKey,
    pub(crate) way: Way,
    part: Part,
    streams: Arc<Semaphore>,
    /// Becomes true once.
    closed: watch::Sender<bool>,
}

impl Route {
    pub(crate) fn new(relay: crate::Relay, key: TransferKey, part: Part) -> Self {
        let way = Way::new(&relay.next, relay.carrier, key.clone());
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        Self { relay, key, way, part, streams, closed: watch::Sender::new(false) }
    }

    /// Ends what is passed on.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Passes on what comes on `stream`, from the target's side, and what comes back.
    pub(crate) async fn carry(&self, port: &Port, stream: Stream) {
        let Ok(_permit) = self.streams.try_acquire() else { return };
        let mut closed = self.closed.subscribe();
        let carrying = async {
            match self.way.open(port).await {
                Ok(next) => pipe::join(stream, next, &self.part).await,
                Err(error) => {
                    let migration = self.relay.migration;
                    tracing::info!(%migration, %error, "the next proxy cannot be reached");
                }
            }
        };
        tokio::select! {
            // Fails when the route is gone, which it is not: it is borrowed.
            _ = closed.wait_for(|closed| *closed) => {}
            () = carrying => {}
        }
    }
}
