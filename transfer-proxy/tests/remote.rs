//! Proxies in processes of their own, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

#[path = "remote/far.rs"]
mod far;
#[allow(dead_code, reason = "shared with the tests of transfers, which use the rest")]
#[path = "transfer/relay.rs"]
mod relay;
#[allow(dead_code, reason = "shared with the tests of transfers, which use the rest")]
#[path = "transfer/site.rs"]
mod site;

use std::time::Duration;

use model::{Bytes, FileId, SiteKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use transfer_proxy::{End, Event, PullError, ServeError, TransferProxy};

use crate::far::{Far, Path, call, node};
use crate::relay::Relay;
use crate::site::{MIB, Move, until};

const DATA: u64 = 48;

/// A node's greeting: it speaks version 1.
const HELLO: &[u8] = &[0, 0, 0, 2, 3, 3];

/// For orders that are meant to fail.
const SHORT: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_between_two_proxies_of_their_own_is_like_any_other() {
    let (mut source, mut target) = (Far::start(1).await, Far::start(2).await);
    let it = Move::new();
    source.site.proxy.serve(it.serve()).unwrap();
    target.site.proxy.pull(it.pull(source.site.proxy.uri())).unwrap();
    source.site.opened().await;
    source.site.proxy.provide(it.migration, vec![it.full_disk(4)]);
    let digest = source.site.sent().await;
    let (received, _) = target.site.received().await;
    assert_eq!(received, digest);
    it.assert_equal(FileId::disk(0));
    for (site, end) in [(&source.site, End::Source), (&target.site, End::Target)] {
        until("the progress is known", || {
            let progress = site.proxy.progress(it.migration, end).unwrap();
            progress.done == Bytes::mib(4)
                && progress.total == progress.done
                && progress.wire > progress.total
                && progress.started.is_some()
        })
        .await;
    }
    target.site.proxy.tell(it.migration, End::Target, b"owned".into()).unwrap();
    assert_eq!(source.site.told(End::Source).await, b"owned");
    source.site.proxy.tell(it.migration, End::Source, b"thanks".into()).unwrap();
    source.site.proxy.close(it.migration, End::Source);
    assert_eq!(target.site.told(End::Target).await, b"thanks");
    target.closed().await;
    assert!(source.site.proxy.progress(it.migration, End::Source).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn other_terms_for_an_open_transfer_are_refused_and_a_repeat_is_not() {
    let far = Far::start(1).await;
    let it = Move::new();
    let proxy = &far.site.proxy;
    let (serve, pull) = (it.serve(), it.pull(proxy.uri()));
    for _ in 0..2 {
        proxy.serve(serve.clone()).unwrap();
        proxy.pull(pull.clone()).unwrap();
    }
    let other = transfer_proxy::Serve { hint: [0; 16], ..serve };
    assert_eq!(proxy.serve(other), Err(ServeError::Conflict(it.migration)));
    let other = transfer_proxy::Pull { budget: Bytes(1), ..pull };
    assert_eq!(proxy.pull(other), Err(PullError::Conflict(it.migration)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_and_a_proxy_with_another_key_are_refused() {
    let far = Far::start(1).await;
    let it = Move::new();
    let stranger = far.handle_of(node(9), far.key(), far.uri(), SHORT);
    let mistaken = far.handle_of(node(1), SiteKey([3; 32]), far.uri(), SHORT);
    let elsewhere = "quic://192.0.2.1:1".parse().unwrap();
    let misled = far.handle_of(node(1), far.key(), elsewhere, SHORT);
    for mut handle in [stranger, mistaken, misled] {
        handle.site.proxy.serve(it.serve()).unwrap();
        let error = handle.site.failed_for_good().await;
        assert_eq!(error, "the transfer proxy of this host cannot be reached");
        assert!(!handle.site.proxy.is_connected());
        assert!(handle.site.proxy.progress(it.migration, End::Source).is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_comes_late_gets_the_orders_that_waited() {
    let mut far = Far::start(1).await;
    let mut target = Far::start(2).await;
    far.kill().await;
    let it = Move::new();
    far.site.proxy.serve(it.serve()).unwrap();
    far.site.proxy.provide(it.migration, vec![it.full_disk(1)]);
    far.site.proxy.tell(it.migration, End::Source, b"early".into()).unwrap();
    target.site.proxy.pull(it.pull(far.uri())).unwrap();
    far.restart().await;
    far.site.sent().await;
    assert_eq!(target.site.told(End::Target).await, b"early");
}

/// Two proxies, and a transfer of [`DATA`] MiB that stopped somewhere in the middle.
async fn stuck_halfway() -> (Far, Far, Move, Relay) {
    let (mut source, target) = (Far::start(1).await, Far::start(2).await);
    let it = Move::new();
    let relay = Relay::start(
        model::Carrier::Quic,
        source.uri().authority().parse().unwrap(),
        DATA / 2 * MIB,
    )
    .await;
    source.site.proxy.serve(it.serve()).unwrap();
    source.site.proxy.provide(it.migration, vec![it.full_disk(DATA)]);
    source.site.sent().await;
    target.site.proxy.pull(it.pull(relay.uri())).unwrap();
    until("the path is stuck", || relay.is_stuck()).await;
    until("some chunks are verified", || {
        target.site.proxy.progress(it.migration, End::Target).unwrap().done.0 >= MIB
    })
    .await;
    (source, target, it, relay)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_proxy_killed_in_mid_transfer_fetches_only_the_rest_after_its_restart() {
    let (_source, mut target, it, relay) = stuck_halfway().await;
    target.kill().await;
    relay.open_fully();
    target.restart().await;
    let (_, wire) = target.site.received().await;
    it.assert_equal(FileId::disk(0));
    assert!(wire < (DATA - 1) * MIB, "{wire} bytes after the restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_proxy_killed_in_mid_transfer_sends_only_the_rest_after_its_restart() {
    let (mut source, mut target, it, relay) = stuck_halfway().await;
    source.kill().await;
    relay.open_fully();
    source.restart().await;
    let digest = source.site.sent().await;
    let (received, _) = target.site.received().await;
    assert_eq!(received, digest);
    it.assert_equal(FileId::disk(0));
    until("the source's progress is known", || {
        source.site.proxy.progress(it.migration, End::Source).unwrap().wire.0 > 0
    })
    .await;
    let wire = source.site.proxy.progress(it.migration, End::Source).unwrap().wire.0;
    assert!(wire < (DATA - 4) * MIB, "sent again: {wire}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_node_is_cut_off_transfers_go_on_and_both_catch_up_afterwards() {
    let (mut source, mut other) = (Far::start(1).await, Far::start(2).await);
    let (path, mut target) = Path::to(Far::start(3).await).await;
    let (going, closed, new) = (Move::new(), Move::new(), Move::new());
    for it in [&going, &closed] {
        source.site.proxy.serve(it.serve()).unwrap();
        target.proxy.pull(it.pull(source.uri())).unwrap();
        source.site.opened().await;
    }
    path.cut();
    until("the node has noticed", || !target.proxy.is_connected()).await;
    // A whole transfer, a close and a new order while nobody is connected.
    source.site.proxy.provide(going.migration, vec![going.full_disk(3)]);
    let digest = source.site.sent().await;
    source.site.proxy.tell(going.migration, End::Source, b"released".into()).unwrap();
    until("everything arrived", || {
        let progress = source.site.proxy.progress(going.migration, End::Source).unwrap();
        progress.done == Bytes::mib(3)
    })
    .await;
    target.proxy.close(closed.migration, End::Target);
    target.proxy.serve(new.serve()).unwrap();
    path.mend();
    let mut heard = Vec::new();
    while heard.len() < 2 {
        target
            .wait(|event| match event {
                Event::Received { digest: found, .. } => {
                    assert_eq!(*found, digest);
                    heard.push("received");
                    Some(())
                }
                Event::Told { message, .. } => {
                    assert_eq!(message, b"released");
                    heard.push("told");
                    Some(())
                }
                _ => None,
            })
            .await;
    }
    assert!(heard.contains(&"received") && heard.contains(&"told"), "{heard:?}");
    going.assert_equal(FileId::disk(0));
    let over = source.site.wait(|event| match event {
        Event::Closed { migration, .. } => Some(*migration),
        _ => None,
    });
    assert_eq!(over.await, closed.migration);
    other.site.proxy.pull(new.pull(target.proxy.uri())).unwrap();
    target.opened().await;
    other.site.proxy.close(new.migration, End::Target);
    other.site.events.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_hears_what_its_predecessor_may_have_missed_and_the_rest_is_closed() {
    let (mut source, mut target) = (Far::start(1).await, Far::start(2).await);
    let (open, over) = (Move::new(), Move::new());
    for it in [&open, &over] {
        source.site.proxy.serve(it.serve()).unwrap();
        source.site.proxy.provide(it.migration, vec![it.full_disk(1)]);
        target.site.proxy.pull(it.pull(source.uri())).unwrap();
        target.site.received().await;
    }
    let mut node = target.restart_node(|proxy| {
        // It goes on with one of the two, at a later step: there is nothing left to fetch.
        let mut pull = open.pull(source.uri());
        (pull.expected, pull.budget) = (Vec::new(), Bytes(0));
        proxy.pull(pull).unwrap();
    });
    for _ in 0..2 {
        node.received().await;
    }
    source.closed_of(over.migration).await;
    source.site.proxy.tell(open.migration, End::Source, b"released".into()).unwrap();
    assert_eq!(node.told(End::Target).await, b"released");
    open.assert_equal(FileId::disk(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_oversized_frames_close_only_the_connection_that_they_come_on() {
    let (mut source, mut target) = (Far::start(1).await, Far::start(2).await);
    let it = Move::new();
    source.site.proxy.serve(it.serve()).unwrap();
    target.site.proxy.pull(it.pull(source.uri())).unwrap();
    source.site.opened().await;

    // From whoever finds the port.
    let mut raw = tokio::net::TcpStream::connect(source.control()).await.unwrap();
    raw.write_all(&[0x55; 300]).await.unwrap();
    rest_of(&mut raw).await;
    assert!(source.site.proxy.is_connected(), "the node lost its connection");

    // From the node itself: not TLS, but what is in it, makes no sense.
    let long = [HELLO, &u32::MAX.to_be_bytes()].concat();
    let malformed = [HELLO, &[0, 0, 0, 1, 0xff]].concat();
    for frames in [long, malformed, vec![0, 0, 0xff, 0xff]] {
        let mut node = call(&node(1), source.key(), source.control()).await;
        node.write_all(&frames).await.unwrap();
        rest_of(&mut node).await;
    }
    source.site.proxy.provide(it.migration, vec![it.full_disk(1)]);
    target.site.received().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_of_the_node_ends_the_older() {
    let far = Far::start(1).await;
    let mut older = call(&node(1), far.key(), far.control()).await;
    older.write_all(HELLO).await.unwrap();
    // The handle's own connection is cut, and comes back.
    rest_of(&mut older).await;
    until("the node is back", || far.site.proxy.is_connected()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_version_is_told_which_ones_are_spoken() {
    let far = Far::start(1).await;
    let mut node = call(&node(1), far.key(), far.control()).await;
    node.write_all(&[0, 0, 0, 2, 7, 9]).await.unwrap();
    let mut answer = [0; 7];
    node.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [0, 0, 0, 3, 1, 3, 3]);
    assert!(far.site.proxy.is_connected());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_speaks_the_protocol_gets_not_even_a_greeting() {
    let far = Far::start(1).await;
    let mut stranger = call(&node(9), far.key(), far.control()).await;
    // The refusal may be here already.
    let _ = stranger.write_all(HELLO).await;
    assert_eq!(rest_of(&mut stranger).await, b"");
    assert!(far.site.proxy.is_connected(), "the node lost its connection");
}

/// All that comes until the other end closes. How it ends is not the point: perhaps by a reset.
async fn rest_of(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(site::DEADLINE, stream.read_to_end(&mut rest)).await;
    let _ = ended.expect("the connection stays open");
    rest
}
