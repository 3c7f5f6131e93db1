//! Requests that have not come whole yet: how long they may take, and how much of them is kept.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Bytes, Frame, SizeHint};
use model::{SiteKey, limit};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::door::Speaker;
use crate::lock;

/// How long a request may take to come: as long as a node tries to send values, the largest of them.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of requests of one peer that have not come whole: sixteen of the largest messages.
const MAX_BYTES: usize = 16 * limit::MAX_MESSAGE_BYTES;

/// How many bytes of each peer are on their way.
#[derive(Clone, Default)]
pub(super) struct Arrivals(Arc<Mutex<HashMap<SiteKey, usize>>>);

impl Arrivals {
    /// Watches over how a request comes.
    pub(super) fn watch(&self, request: hyper::Request<Body>) -> hyper::Request<Body> {
        let Some(key) = request.extensions().get::<Speaker>().map(Speaker::asks) else {
            return request;
        };
        request.map(|body| {
            let late = Box::pin(sleep(ARRIVAL_LIMIT));
            Body::new(Arriving { body, key, bytes: 0, late, arrivals: self.clone() })
        })
    }

    fn add(&self, key: SiteKey, bytes: usize) -> Result<(), Status> {
        let mut all = lock(&self.0);
        let sum = all.entry(key).or_default();
        *sum += bytes;
        if *sum <= MAX_BYTES {
            return Ok(());
        }
        let why = format!("more than {MAX_BYTES} bytes of requests at once; ask again");
        Err(Status::resource_exhausted(why))
    }

    fn remove(&self, key: SiteKey, bytes: usize) {
        let mut all = lock(&self.0);
        if let Some(sum) = all.get_mut(&key) {
            *sum = sum.saturating_sub(bytes);
            if *sum == 0 {
                all.remove(&key);
            }
        }
    }
}

/// A request's body, on its way.
struct Arriving {
    body: Body,
    key: SiteKey,
    /// That have come.
    bytes: usize,
    late: Pin<Box<Sleep>>,
    arrivals: Arrivals,
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.late.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Status::deadline_exceeded("the request did not come"))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            let count = frame.data_ref().map_or(0, Bytes::len);
            self.bytes += count;
            self.arrivals.add(self.key, count)?;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.arrivals.remove(self.key, self.bytes);
    }
}
