//! Bytes that pass from one stream to another, or to a connection of this process, unread.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::{Receiver, Sender, Stream};
use crate::session::LAST_WORD_TIMEOUT;
use crate::shaper::Part;

/// Bytes that are passed on at a time, in each direction.
const PART_BYTES: usize = 64 << 10;

/// Makes a connection of this process out of a stream. `head` has come of it already.
pub(crate) fn connection(stream: Stream, head: Vec<u8>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(PART_BYTES);
    tokio::spawn(async move {
        let (from_near, mut to_near) = tokio::io::split(far);
        if to_near.write_all(&head).await.is_ok() {
            let Stream { sender, receiver } = stream;
            let up = send_all(from_near, sender);
            let down = receive_all(receiver, to_near);
            linger(up, down).await;
        }
    });
    near
}

/// Passes bytes on between two streams until both have ended, as fast as `part` lets it.
pub(crate) async fn join(one: Stream, other: Stream, part: &Part) {
    let forth = pass(one.receiver, other.sender, part);
    let back = pass(other.receiver, one.sender, part);
    linger(forth, back).await;
}

/// Waits for both; where one has ended, the other has little left to say.
async fn linger(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    tokio::select! {
        () = &mut one => drop(tokio::time::timeout(LAST_WORD_TIMEOUT, other).await),
        () = &mut other => drop(tokio::time::timeout(LAST_WORD_TIMEOUT, one).await),
    }
}

async fn pass(mut from: Receiver, mut to: Sender, part: &Part) {
    let mut buffer = vec![0; PART_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        part.take(count).await;
        if to.send(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
            return;
        }
    }
    to.finish().await;
}

async fn send_all(mut from: ReadHalf<DuplexStream>, mut to: Sender) {
    let mut buffer = vec![0; PART_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.send(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
            return;
        }
    }
    to.finish().await;
}

async fn receive_all(mut from: Receiver, mut to: WriteHalf<DuplexStream>) {
    let mut buffer = vec![0; PART_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
