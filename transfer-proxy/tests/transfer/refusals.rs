use std::collections::BTreeSet;

use model::{Carrier, SecretKey, Token};
use transfer_proxy::{End, Pull, TransferProxy};

use crate::site::{Move, Site};

/// Pulls with altered terms: the answer, after which nothing may have been opened or written.
async fn answer_to(source: &Site, it: &Move, alter: impl FnOnce(&mut Pull)) -> String {
    let mut target = Site::start().await;
    let mut pull = it.pull(source.proxy.uri());
    alter(&mut pull);
    target.proxy.pull(pull).unwrap();
    let error = target.stumbled().await;
    target.proxy.shut_down().await;
    it.assert_nothing_written();
    error
}

async fn every_bad_token_or_key_gets_the_same_answer_and_nothing_is_written(carrier: Carrier) {
    let source = Site::start().await;
    let (it, other, revoked) = (Move::over(carrier), Move::over(carrier), Move::over(carrier));
    for served in [&it, &other, &revoked] {
        source.proxy.serve(served.serve()).unwrap();
    }
    source.proxy.provide(it.migration, vec![it.full_disk(1)]);
    source.proxy.close(revoked.migration, End::Source);
    let stranger = SecretKey::from_seed(&[0xee; 32]);
    let answers = BTreeSet::from([
        answer_to(&source, &it, |pull| pull.token = Token([0xee; 32])).await,
        answer_to(&source, &it, |pull| pull.key = stranger.clone()).await,
        answer_to(&source, &it, |pull| pull.peer_key = stranger.public()).await,
        // The token of one transfer with the keys of another.
        answer_to(&source, &it, |pull| pull.token = other.token.clone()).await,
        answer_to(&source, &other, |pull| pull.key = it.target_key.clone()).await,
        answer_to(&source, &revoked, |_| ()).await,
    ]);
    assert_eq!(answers, BTreeSet::from(["refused".to_owned()]));
    let progress = source.proxy.progress(it.migration, End::Source).unwrap();
    assert_eq!(progress.started, None, "a session was opened");
}

async fn a_target_that_comes_too_early_is_let_in_later(carrier: Carrier) {
    let (source, mut target) = (Site::start().await, Site::start().await);
    let it = Move::over(carrier);
    target.proxy.pull(it.pull(source.proxy.uri())).unwrap();
    assert_eq!(target.stumbled().await, "refused");
    source.proxy.serve(it.serve()).unwrap();
    source.proxy.provide(it.migration, vec![it.full_disk(1)]);
    target.received().await;
}

over_each_carrier!(
    every_bad_token_or_key_gets_the_same_answer_and_nothing_is_written,
    a_target_that_comes_too_early_is_let_in_later,
);
