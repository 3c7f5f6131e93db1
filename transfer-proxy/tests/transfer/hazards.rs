//! What paths, disks and other users of them do to a transfer: it ends in a verified copy or in a
//! clear error, and the source's files stay what they were.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use model::{Bytes, Carrier, FileId, ProxyUri};
use tokio::net::UdpSocket;
use transfer_proxy::{End, Event, TransferProxy};

use crate::relay::Relay;
use crate::site::{MIB, Move, Site, allocated, until};

const DISK: FileId = FileId { kind: model::FileKind::Disk, index: 0 };

async fn images_of_any_size_arrive_to_the_last_byte(carrier: Carrier) {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    let sizes = [0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1];
    let file = |(n, size)| it.file(FileId::disk(n), size, &[(0, size)]);
    let files: Vec<_> = (0..).zip(sizes).map(file).collect();
    let before: Vec<_> = files.iter().map(|(id, _)| it.fingerprint(*id)).collect();
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, files.clone());
    let mut pull = it.pull(source.proxy.uri());
    pull.expected = files.iter().map(|(id, _)| *id).collect();
    target.proxy.pull(pull).unwrap();
    let digest = source.sent().await;
    assert_eq!(target.received().await.0, digest);
    for ((id, _), before) in files.iter().zip(before) {
        it.assert_equal(*id);
        assert_eq!(it.fingerprint(*id), before, "the source's {id} was touched");
    }
}

async fn of_a_tebibyte_with_one_mebibyte_of_data_only_that_is_moved(carrier: Carrier) {
    const SIZE: u64 = 1 << 40;
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    let at = SIZE / 2 + 4096;
    let file = it.file(DISK, SIZE, &[(at, MIB)]);
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![file]);
    let mut pull = it.pull(source.proxy.uri());
    pull.budget = Bytes(SIZE);
    target.proxy.pull(pull).unwrap();
    let digest = source.sent().await;
    let (received, wire) = target.received().await;
    assert_eq!(received, digest);
    assert!(wire < MIB + MIB / 8, "{wire} bytes on the wire");
    let copy = std::fs::File::open(it.target_file(DISK)).unwrap();
    assert_eq!(copy.metadata().unwrap().len(), SIZE);
    assert!(allocated(&it.target_file(DISK)) <= 2 * MIB);
    let mut bytes = [vec![0; MIB as usize + 2], vec![0; MIB as usize + 2]];
    let original = std::fs::File::open(it.source_file(DISK)).unwrap();
    original.read_exact_at(&mut bytes[0], at - 1).unwrap();
    copy.read_exact_at(&mut bytes[1], at - 1).unwrap();
    assert!(bytes[0] == bytes[1]);
}

async fn what_is_changed_on_the_wire_is_noticed_and_sent_again(carrier: Carrier) {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    let faults = [MIB / 2, 5 * MIB, 9 * MIB];
    let relay = Relay::meddling(carrier, source.address(), &faults).await;
    let file = it.full_disk(24);
    let before = it.fingerprint(DISK);
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![file]);
    target.proxy.pull(it.pull(relay.uri())).unwrap();
    let digest = source.sent().await;
    assert_eq!(target.received().await.0, digest);
    assert_eq!(relay.faults_left(), 0, "not all was changed that should be");
    it.assert_equal(DISK);
    assert_eq!(it.fingerprint(DISK), before, "the source was touched");
}

async fn a_file_that_changes_while_it_is_read_fails_both_ends(carrier: Carrier) {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    let relay = Relay::start(carrier, source.address(), 2 * MIB).await;
    source.proxy.serve(it.serve()).unwrap();
    target.proxy.pull(it.pull(relay.uri())).unwrap();
    source.opened().await;
    source.proxy.provide(it.migration, vec![it.full_disk(160)]);
    until("the path is stuck", || relay.is_stuck()).await;
    let disk = OpenOptions::new().write(true).open(it.source_file(DISK)).unwrap();
    disk.write_all_at(b"!", 77).unwrap();
    relay.open_fully();
    let errors = (source.failed_for_good().await, target.failed_for_good().await);
    assert!(errors.0.contains("disk0.raw changed while it was sent"), "{errors:?}");
    assert!(errors.1.starts_with("the source gave up: disk0.raw changed"), "{errors:?}");
}

async fn a_slow_target_holds_a_source_back(carrier: Carrier) {
    let (mut source, target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    let file = it.full_disk(256);
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![file]);
    source.sent().await;
    let mut pull = it.pull(source.proxy.uri());
    pull.share.rate = Some(Bytes(4 * MIB));
    target.proxy.pull(pull.clone()).unwrap();
    let done = |site: &Site, end| site.proxy.progress(it.migration, end).unwrap();
    until("some chunks are verified", || done(&target, End::Target).done.0 >= 8 * MIB).await;
    // What the source gave away and the target did not take lies in windows and socket buffers,
    // which at most double while it is looked.
    let (gave, took) = (done(&source, End::Source).wire.0, done(&target, End::Target).done.0);
    assert!(gave < took + 128 * MIB, "{gave} bytes given, {took} taken");
    target.proxy.close(it.migration, End::Target);
    until("the transfer is over", || target.proxy.progress(it.migration, End::Target).is_none())
        .await;
    let mut target = Site::start().await;
    pull.share.rate = None;
    target.proxy.pull(pull).unwrap();
    target.received().await;
    it.assert_equal(DISK);
}

async fn a_hundred_transfers_at_once_all_arrive(carrier: Carrier) {
    const COUNT: u64 = 100;
    let (source, mut target) =
        (Site::with_room(COUNT as usize).await, Site::with_room(COUNT as usize).await);
    let moves: Vec<_> = (0..COUNT).map(|_| Move::over(carrier)).collect();
    for (n, it) in (0..).zip(&moves) {
        source.proxy.serve(it.serve()).unwrap();
        let size = MIB / 2 + n;
        source.proxy.provide(it.migration, vec![it.file(DISK, size, &[(n, size - n)])]);
        target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    }
    // Nobody waits for what it tells, and it does not go on untold.
    let mut events = source.events;
    let listening = tokio::spawn(async move { while events.recv().await.is_some() {} });
    for _ in &moves {
        target.received().await;
    }
    for it in &moves {
        it.assert_equal(DISK);
    }
    drop((source.proxy, target));
    listening.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_udp_is_dropped_a_transfer_just_works() {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::new();
    // The TCP port of the path; at the UDP port of the same number somebody takes all and says
    // nothing.
    let (relay, address, _silent) = loop {
        let relay = Relay::start(Carrier::Tls, source.address(), u64::MAX).await;
        let address = relay.uri().authority().parse().unwrap();
        if let Ok(silent) = UdpSocket::bind::<std::net::SocketAddr>(address).await {
            break (relay, address, silent);
        }
    };
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![it.full_disk(8)]);
    target.proxy.pull(it.pull(ProxyUri::at(address))).unwrap();
    let digest = source.sent().await;
    assert_eq!(target.received().await.0, digest);
    it.assert_equal(DISK);
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_carrier_sends_no_byte_twice() {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::new();
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![it.full_disk(20)]);
    source.sent().await;
    let mut pull = it.pull(source.proxy.uri());
    // So slow that it is worth it to try the other carrier.
    pull.share.rate = Some(Bytes(MIB));
    target.proxy.pull(pull).unwrap();
    let (_, wire) = target.received().await;
    it.assert_equal(DISK);
    let mut sessions = 0;
    while let Ok(event) = source.events.try_recv() {
        sessions += usize::from(matches!(event, Event::Opened { .. }));
    }
    assert!(sessions >= 2, "the carrier was not changed");
    assert!(wire < 20 * MIB + 20 * MIB / 12, "{wire} bytes");
}

over_each_carrier!(
    images_of_any_size_arrive_to_the_last_byte,
    of_a_tebibyte_with_one_mebibyte_of_data_only_that_is_moved,
    what_is_changed_on_the_wire_is_noticed_and_sent_again,
    a_file_that_changes_while_it_is_read_fails_both_ends,
    a_slow_target_holds_a_source_back,
    a_hundred_transfers_at_once_all_arrive,
);
