use model::{Carrier, FileId};
use transfer_proxy::{End, Event, TransferProxy};

use crate::relay::Relay;
use crate::site::{MIB, Move, Site, until};

const DATA: u64 = 48;

/// A transfer of [`DATA`] MiB that stopped somewhere in the middle.
async fn stuck_halfway(carrier: Carrier) -> (Site, Site, Move, Relay) {
    let (mut source, target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    let relay = Relay::start(carrier, source.address(), DATA / 2 * MIB).await;
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![it.full_disk(DATA)]);
    source.sent().await;
    target.proxy.pull(it.pull(relay.uri())).unwrap();
    until("the path is stuck", || relay.is_stuck()).await;
    until("some chunks are verified", || {
        target.proxy.progress(it.migration, End::Target).unwrap().done.0 >= MIB
    })
    .await;
    (source, target, it, relay)
}

async fn after_a_cut_and_a_new_source_proxy_only_the_rest_is_sent(carrier: Carrier) {
    let (source, mut target, it, relay) = stuck_halfway(carrier).await;
    let address = source.address();
    relay.open_fully();
    source.proxy.shut_down().await;
    let error = target.stumbled().await;
    assert_eq!(error, "away");
    let mut source = Site::start_at(address).await;
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![(FileId::disk(0), it.source_file(FileId::disk(0)))]);
    let digest = source.sent().await;
    let (received, wire) = target.received().await;
    assert_eq!(received, digest);
    it.assert_equal(FileId::disk(0));
    let second = source.proxy.progress(it.migration, End::Source).unwrap();
    assert!(second.wire.0 < (DATA - 4) * MIB, "sent again: {:?}", second.wire);
    // What was under way when the path was cut is the only thing sent twice.
    assert!(wire < (DATA + DATA / 2) * MIB, "{wire} bytes in both sessions");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_proxy_that_starts_again_after_a_crash_resets_the_session_it_does_not_know() {
    let (source, mut target, it, relay) = stuck_halfway(Carrier::Quic).await;
    let address = source.address();
    // Nothing that it says when it ends comes through.
    drop(source);
    let mut source = Site::start_at(address).await;
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![(FileId::disk(0), it.source_file(FileId::disk(0)))]);
    relay.open_fully();
    // A session that waits until its idle time is over ends as "timed out".
    assert_eq!(target.stumbled().await, "session lost: reset by peer");
    let digest = source.sent().await;
    assert_eq!(target.received().await.0, digest);
    it.assert_equal(FileId::disk(0));
}

async fn after_a_crash_of_the_target_proxy_only_the_rest_is_fetched(carrier: Carrier) {
    let (_source, target, it, relay) = stuck_halfway(carrier).await;
    let uri = _source.proxy.uri();
    drop(target);
    drop(relay);
    let mut target = Site::start().await;
    target.proxy.pull(it.pull(uri)).unwrap();
    let (_, wire) = target.received().await;
    it.assert_equal(FileId::disk(0));
    assert!(wire < (DATA - 1) * MIB, "{wire} bytes in the second session");
}

/// Cuts a transfer of 100 MiB after so many, starts the source's proxy again, and counts.
async fn cut_after(carrier: Carrier, mib: u64) {
    const WHOLE: u64 = 100;
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    let relay = Relay::start(carrier, source.address(), mib * MIB).await;
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![it.full_disk(WHOLE)]);
    source.sent().await;
    let before = it.fingerprint(FileId::disk(0));
    target.proxy.pull(it.pull(relay.uri())).unwrap();
    until("the path is stuck", || relay.is_stuck()).await;
    // Of what passed, all but the beginnings of a chunk per lane and what is in buffers.
    let least = mib.saturating_sub(12) * MIB;
    let arrived = || target.proxy.progress(it.migration, End::Target).unwrap().done.0;
    until("what passed is verified", || arrived() >= least).await;
    let address = source.address();
    let arrived = arrived();
    relay.open_fully();
    source.proxy.shut_down().await;
    target.stumbled().await;
    let mut source = Site::start_at(address).await;
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![(FileId::disk(0), it.source_file(FileId::disk(0)))]);
    let digest = source.sent().await;
    assert_eq!(target.received().await.0, digest);
    it.assert_equal(FileId::disk(0));
    assert_eq!(it.fingerprint(FileId::disk(0)), before, "the source was touched");
    let rest = WHOLE * MIB - arrived;
    let again = source.proxy.progress(it.migration, End::Source).unwrap().wire.0;
    // Headers, acknowledgements, packets lost to a busy machine, and hashes of what is there.
    assert!(again < rest + rest / 4 + 2 * MIB, "{again} bytes for the {rest} that were missing");
}

async fn a_session_cut_near_its_begin_resumes_and_sends_nothing_again(carrier: Carrier) {
    cut_after(carrier, 1).await;
}

async fn a_session_cut_halfway_resumes_and_sends_nothing_again(carrier: Carrier) {
    cut_after(carrier, 50).await;
}

async fn a_session_cut_near_its_end_resumes_and_sends_nothing_again(carrier: Carrier) {
    cut_after(carrier, 99).await;
}

async fn when_both_proxies_crash_only_the_rest_is_moved(carrier: Carrier) {
    let (source, target, it, relay) = stuck_halfway(carrier).await;
    let before = it.fingerprint(FileId::disk(0));
    drop((source, target, relay));
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![(FileId::disk(0), it.source_file(FileId::disk(0)))]);
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    let digest = source.sent().await;
    let (received, wire) = target.received().await;
    assert_eq!(received, digest);
    it.assert_equal(FileId::disk(0));
    assert_eq!(it.fingerprint(FileId::disk(0)), before, "the source was touched");
    assert!(wire < (DATA - 1) * MIB, "{wire} bytes after the crash");
}

async fn a_restarted_target_with_everything_says_so_again_and_fetches_nothing(carrier: Carrier) {
    let (source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![it.full_disk(8)]);
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    let (digest, _) = target.received().await;
    target.proxy.shut_down().await;
    let mut target = Site::start().await;
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    let (again, wire) = target.received().await;
    assert_eq!(again, digest);
    assert!(wire < MIB / 4, "{wire} bytes");
}

/// What is here may be judged before a lane is open, or after; a session ends either way, and not
/// only when one of its ends loses its patience.
async fn many_targets_with_everything_all_hear_that_it_is_all(carrier: Carrier) {
    let it = Move::over(carrier);
    let disk = it.full_disk(1);
    for _ in 0..100 {
        let (mut source, mut target) = (Site::start().await, Site::start().await);
        source.proxy.serve(it.serve()).unwrap();
        source.proxy.provide(it.migration, vec![disk.clone()]);
        let digest = source.sent().await;
        target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
        assert_eq!(target.received().await.0, digest);
    }
}

async fn what_was_damaged_while_the_target_was_down_is_fetched_again(carrier: Carrier) {
    let (source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    source.proxy.serve(it.serve()).unwrap();
    let file = it.file(FileId::disk(0), 8 * MIB, &[(0, 6 * MIB)]);
    source.proxy.provide(it.migration, vec![file]);
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    let (digest, _) = target.received().await;
    target.proxy.shut_down().await;
    let path = it.target_file(FileId::disk(0));
    let disk = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    for offset in [2 * MIB + 77, 7 * MIB] {
        std::os::unix::fs::FileExt::write_all_at(&disk, b"damage", offset).unwrap();
    }
    drop(disk);
    let mut target = Site::start().await;
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    let (again, wire) = target.received().await;
    assert_eq!(again, digest);
    assert!(wire < MIB / 8, "{wire} bytes");
    it.assert_equal(FileId::disk(0));
}

async fn a_newer_session_of_the_same_token_takes_over(carrier: Carrier) {
    let (source, mut older) = (Site::start().await, Site::start().await);
    let mut newer = Site::start().await;
    let it = Move::over(carrier);
    source.proxy.serve(it.serve()).unwrap();
    older.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    until("the older session is open", || {
        source.proxy.progress(it.migration, End::Source).unwrap().started.is_some()
    })
    .await;
    let mut pull = it.pull(source.proxy.uri());
    pull.folder = it.target().with_file_name("newer");
    newer.proxy.pull(pull).unwrap();
    assert_eq!(older.stumbled().await, "superseded");
    older.proxy.close(it.migration, End::Target);
    source.proxy.provide(it.migration, vec![it.full_disk(2)]);
    newer.received().await;
    it.assert_nothing_written();
}

async fn a_source_that_closes_ends_the_transfer_at_the_target_too(carrier: Carrier) {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    source.proxy.serve(it.serve()).unwrap();
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    source.opened().await;
    source.proxy.tell(it.migration, End::Source, b"last word".into()).unwrap();
    source.proxy.close(it.migration, End::Source);
    assert_eq!(target.told(End::Target).await, b"last word");
    let end = target.wait(|event| match event {
        Event::Closed { migration, end } => Some((*migration, *end)),
        _ => None,
    });
    assert_eq!(end.await, (it.migration, End::Target));
    assert!(source.proxy.progress(it.migration, End::Source).is_none());
}

over_each_carrier!(
    after_a_cut_and_a_new_source_proxy_only_the_rest_is_sent,
    after_a_crash_of_the_target_proxy_only_the_rest_is_fetched,
    a_session_cut_near_its_begin_resumes_and_sends_nothing_again,
    a_session_cut_halfway_resumes_and_sends_nothing_again,
    a_session_cut_near_its_end_resumes_and_sends_nothing_again,
    when_both_proxies_crash_only_the_rest_is_moved,
    a_restarted_target_with_everything_says_so_again_and_fetches_nothing,
    many_targets_with_everything_all_hear_that_it_is_all,
    what_was_damaged_while_the_target_was_down_is_fetched_again,
    a_newer_session_of_the_same_token_takes_over,
    a_source_that_closes_ends_the_transfer_at_the_target_too,
);
