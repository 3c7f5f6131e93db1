use model::Carrier;
use transfer_proxy::{End, MAX_TELL_BYTES, TellError, TransferProxy};

use crate::site::{Move, Site};

async fn messages_go_both_ways_before_during_and_after_the_copy(carrier: Carrier) {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.tell(it.migration, End::Source, b"early".into()).unwrap();
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    assert_eq!(target.told(End::Target).await, b"early");
    source.proxy.provide(it.migration, vec![it.full_disk(3)]);
    target.received().await;
    let long = vec![0xab; MAX_TELL_BYTES];
    target.proxy.tell(it.migration, End::Target, long.clone()).unwrap();
    assert!(source.told(End::Source).await == long);
    source.proxy.tell(it.migration, End::Source, Vec::new()).unwrap();
    assert_eq!(target.told(End::Target).await, b"");
}

async fn a_message_told_while_the_path_is_down_arrives_after_the_reconnect(carrier: Carrier) {
    let (source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    source.proxy.serve(it.serve()).unwrap();
    let files = vec![it.full_disk(1)];
    source.proxy.provide(it.migration, files.clone());
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    let (digest, _) = target.received().await;
    let address = source.address();
    source.proxy.shut_down().await;
    target.stumbled().await;
    target.proxy.tell(it.migration, End::Target, b"ready".into()).unwrap();
    let mut source = Site::start_at(address).await;
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.tell(it.migration, End::Source, b"released".into()).unwrap();
    assert_eq!(source.told(End::Source).await, b"ready");
    assert_eq!(target.told(End::Target).await, b"released");
    source.proxy.provide(it.migration, files);
    assert_eq!(source.sent().await, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_took_is_bounded_and_the_latest_is_kept() {
    let (source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::new();
    source.proxy.serve(it.serve()).unwrap();
    for n in 0..20 {
        source.proxy.tell(it.migration, End::Source, vec![n]).unwrap();
    }
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    for n in 12..20 {
        assert_eq!(target.told(End::Target).await, [n]);
    }
}

#[tokio::test]
async fn a_message_too_long_or_to_nobody_is_an_error() {
    let site = Site::start().await;
    let it = Move::new();
    let tell = |message| site.proxy.tell(it.migration, End::Source, message);
    assert_eq!(tell(Vec::new()), Err(TellError::Unknown(it.migration)));
    site.proxy.serve(it.serve()).unwrap();
    let long = MAX_TELL_BYTES + 1;
    assert_eq!(tell(vec![0; long]), Err(TellError::Long(long)));
    site.proxy.close(it.migration, End::Source);
    assert_eq!(tell(Vec::new()), Err(TellError::Unknown(it.migration)));
}

async fn a_session_with_nothing_to_fetch_carries_messages_and_touches_no_file(carrier: Carrier) {
    let (mut source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![it.full_disk(2)]);
    source.sent().await;
    let mut pull = it.pull(source.proxy.uri());
    (pull.expected, pull.budget) = (Vec::new(), model::Bytes(0));
    target.proxy.pull(pull).unwrap();
    source.opened().await;
    source.proxy.tell(it.migration, End::Source, b"released".into()).unwrap();
    assert_eq!(target.told(End::Target).await, b"released");
    target.proxy.tell(it.migration, End::Target, b"owned".into()).unwrap();
    assert_eq!(source.told(End::Source).await, b"owned");
    it.assert_nothing_written();
}

over_each_carrier!(
    messages_go_both_ways_before_during_and_after_the_copy,
    a_message_told_while_the_path_is_down_arrives_after_the_reconnect,
    a_session_with_nothing_to_fetch_carries_messages_and_touches_no_file,
);
