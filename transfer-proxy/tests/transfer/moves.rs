use std::time::Instant;

use model::{Carrier, FileId};
use transfer_proxy::{End, Event, Limits, Proxy, ServeError, StartError, TransferProxy};

use crate::site::{MIB, Move, Site, allocated, config};

async fn files_arrive_equal_with_their_holes_and_only_data_travels(carrier: Carrier) {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    let files = vec![
        it.file(FileId::disk(0), 64 * MIB, &[(5 * MIB, 2 * MIB), (63 * MIB, MIB)]),
        it.file(FileId::disk(1), 0, &[]),
        it.file(FileId::disk(2), 1, &[(0, 1)]),
        it.file(FileId::disk(3), 3 * MIB + 12_345, &[(MIB - 1, 2), (3 * MIB, 12_345)]),
        it.file(FileId::STATE, MIB + 1, &[]),
    ];
    source.proxy.serve(it.serve()).unwrap();
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    source.opened().await;
    source.proxy.provide(it.migration, files.clone());
    let sent = source.sent().await;
    let received = target
        .wait(|event| match event {
            Event::Received { digest, size, wire, has_state, .. } => {
                Some((*digest, size.0, wire.0, *has_state))
            }
            Event::Failed { final_: true, error, .. } => panic!("{error}"),
            _ => None,
        })
        .await;
    let (digest, size, wire, has_state) = received;
    assert_eq!(digest, sent);
    assert_eq!(size, 64 * MIB + 1 + (3 * MIB + 12_345) + (MIB + 1));
    assert!(has_state);
    assert!(wire > 3 * MIB && wire < 4 * MIB, "{wire} bytes on the wire");
    for (id, _) in &files {
        it.assert_equal(*id);
    }
    assert!(allocated(&it.target_file(FileId::disk(0))) <= 4 * MIB);
    assert!(allocated(&it.target_file(FileId::STATE)) == 0);
    let names = std::fs::read_dir(it.target()).unwrap().count();
    assert_eq!(names, files.len(), "the folder holds the files and nothing else");
    for (site, end) in [(&source, End::Source), (&target, End::Target)] {
        let progress = site.proxy.progress(it.migration, end).unwrap();
        assert_eq!(progress.done, progress.total);
        assert!(progress.total.0 > 5 * MIB && progress.wire.0 > 3 * MIB);
        assert!(progress.started.is_some());
    }
}

async fn one_site_can_be_both_ends(carrier: Carrier) {
    let mut site = Site::start().await;
    let it = Move::over(carrier);
    site.proxy.serve(it.serve()).unwrap();
    site.proxy.pull(it.pull(site.proxy.uri())).unwrap();
    site.proxy.provide(it.migration, vec![it.full_disk(5)]);
    let digest = site.sent().await;
    assert_eq!(site.received().await.0, digest);
    it.assert_equal(FileId::disk(0));
    site.proxy.tell(it.migration, End::Target, b"ready".into()).unwrap();
    assert_eq!(site.told(End::Source).await, b"ready");
    site.proxy.tell(it.migration, End::Source, b"yours".into()).unwrap();
    assert_eq!(site.told(End::Target).await, b"yours");
}

async fn many_transfers_share_a_port_and_none_is_mixed_up(carrier: Carrier) {
    let (source, mut target) = (Site::start().await, Site::start().await);
    let moves: Vec<_> = (0..6).map(|_| Move::over(carrier)).collect();
    for (n, it) in (1..).zip(&moves) {
        source.proxy.serve(it.serve()).unwrap();
        source.proxy.provide(it.migration, vec![it.full_disk(n)]);
        target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    }
    for _ in &moves {
        target.received().await;
    }
    for it in &moves {
        it.assert_equal(FileId::disk(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_order_changes_nothing_and_a_contradicting_one_is_refused() {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::new();
    let files = vec![it.full_disk(1)];
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, files.clone());
    let digest = source.sent().await;
    source.proxy.provide(it.migration, files);
    assert_eq!(source.sent().await, digest);
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    assert_eq!(target.received().await.0, digest);
    let mut other = it.serve();
    other.peer_key = it.source_key.public();
    assert_eq!(source.proxy.serve(other), Err(ServeError::Conflict(it.migration)));
    assert!(target.proxy.pull(it.pull(target.proxy.uri())).is_err());
}

#[tokio::test]
async fn the_number_of_served_transfers_is_bounded() {
    let (sender, _events) = tokio::sync::mpsc::channel(1);
    let limits = Limits { serves: 1, ..Limits::default() };
    let config = config("127.0.0.1:0".parse().unwrap(), limits);
    let proxy = Proxy::start(config, sender).await.unwrap();
    let (first, second) = (Move::new(), Move::new());
    proxy.serve(first.serve()).unwrap();
    assert_eq!(proxy.serve(second.serve()), Err(ServeError::Full(1)));
    proxy.close(first.migration, End::Source);
    proxy.serve(second.serve()).unwrap();
}

#[tokio::test]
async fn a_port_in_use_and_an_address_that_nobody_can_dial_are_said_clearly() {
    let site = Site::start().await;
    let Err(error) = Site::try_start(site.address()).await else { panic!("started twice") };
    assert!(matches!(error, StartError::PortInUse(address) if address == site.address()));
    let Err(error) = Site::try_start("0.0.0.0:0".parse().unwrap()).await else { panic!() };
    assert!(matches!(error, StartError::Advertise(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn throughput_on_loopback_is_printed() {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::new();
    source.proxy.serve(it.serve()).unwrap();
    let start = Instant::now();
    source.proxy.provide(it.migration, vec![it.full_disk(256)]);
    source.sent().await;
    println!("256 MiB written and hashed in {:?}", start.elapsed());
    let start = Instant::now();
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    let (_, wire) = target.received().await;
    let seconds = start.elapsed().as_secs_f64();
    println!("256 MiB moved in {seconds:.2} s, {:.0} MB/s, {wire} B", wire as f64 / 1e6 / seconds);
}

over_each_carrier!(
    files_arrive_equal_with_their_holes_and_only_data_travels,
    one_site_can_be_both_ends,
    many_transfers_share_a_port_and_none_is_mixed_up,
);
