//! Transfers through relays, and from sources that nobody can dial.

use model::{Carrier, FileId, ProxyUri, SecretKey, Token};
use transfer_proxy::{Dial, End, Pull, Relay, Serve, Share, TransferProxy};

use crate::relay;
use crate::site::{MIB, Move, Site, until};

/// What a relay gives out in the place of the end behind it.
struct Hop {
    token: Token,
    key: SecretKey,
}

impl Hop {
    fn new(seed: u8) -> Self {
        Self { token: Token([seed; 32]), key: SecretKey::from_seed(&[seed; 32]) }
    }

    /// As it is dialled at `uri`.
    fn dial(&self, uri: ProxyUri) -> Dial {
        Dial { uri, token: self.token.clone(), key: self.key.public() }
    }

    fn relay(&self, its: &Move, next: Dial) -> Relay {
        Relay {
            migration: its.migration,
            token_hash: self.token.hash(),
            hint: self.token.hint(),
            key: self.key.clone(),
            next,
            carrier: its.carrier,
            share: Share::default(),
        }
    }
}

/// The source itself, as a relay dials it.
fn source(its: &Move, uri: ProxyUri) -> Dial {
    Dial { uri, token: its.token.clone(), key: its.source_key.public() }
}

fn pull(its: &Move, from: &Dial) -> Pull {
    Pull { token: from.token.clone(), relay: Some(from.key), ..its.pull(from.uri.clone()) }
}

async fn arrives(its: &Move, from: &mut Site, to: &mut Site, disk: (FileId, std::path::PathBuf)) {
    from.opened().await;
    from.proxy.provide(its.migration, vec![disk]);
    let sent = from.sent().await;
    assert_eq!(to.received().await.0, sent);
    its.assert_equal(FileId::disk(0));
}

async fn what_passes_two_relays_arrives_and_both_nodes_hear_each_other(carrier: Carrier) {
    let (mut from, one, two, mut to) =
        (Site::start().await, Site::start().await, Site::start().await, Site::start().await);
    let its = Move::over(carrier);
    let (near_source, near_target) = (Hop::new(201), Hop::new(202));
    one.proxy.relay(near_source.relay(&its, source(&its, from.proxy.uri()))).unwrap();
    let next = near_source.dial(one.proxy.uri());
    two.proxy.relay(near_target.relay(&its, next)).unwrap();
    from.proxy.serve(its.serve()).unwrap();
    to.proxy.pull(pull(&its, &near_target.dial(two.proxy.uri()))).unwrap();
    let disk = its.file(FileId::disk(0), 9 * MIB + 1, &[(0, 3 * MIB), (8 * MIB, MIB + 1)]);
    arrives(&its, &mut from, &mut to, disk).await;
    to.proxy.tell(its.migration, End::Target, b"mine".to_vec()).unwrap();
    assert_eq!(from.told(End::Source).await, b"mine");
    from.proxy.tell(its.migration, End::Source, b"yours".to_vec()).unwrap();
    assert_eq!(to.told(End::Target).await, b"yours");
}

async fn a_source_that_nobody_can_dial_dials_the_target(carrier: Carrier) {
    let (mut from, mut to) = (Site::start().await, Site::start().await);
    let its = Move::over(carrier);
    let token = Token([203; 32]);
    let away = ProxyUri::dial_out();
    to.proxy.pull(Pull { token: token.clone(), ..its.pull(away) }).unwrap();
    let uri = ProxyUri::over(carrier, to.address());
    let dial = Dial { uri, token, key: its.target_key.public() };
    from.proxy.serve(Serve { dial: Some(dial), ..its.serve() }).unwrap();
    let disk = its.full_disk(20);
    arrives(&its, &mut from, &mut to, disk).await;
    // The session stays for what is told, and a new one can be made.
    to.proxy.close(its.migration, End::Target);
    from.wait(|event| matches!(event, transfer_proxy::Event::Closed { .. }).then_some(())).await;
}

async fn two_ends_that_nobody_can_dial_meet_at_a_relay(carrier: Carrier) {
    let (mut from, middle, mut to) =
        (Site::start().await, Site::start().await, Site::start().await);
    let its = Move::over(carrier);
    let (for_source, for_target) = (Hop::new(204), Hop::new(205));
    let next = Dial { key: its.source_key.public(), ..for_source.dial(ProxyUri::dial_out()) };
    let key = for_target.key.clone();
    middle.proxy.relay(for_target.relay(&its, next)).unwrap();
    let uri = ProxyUri::over(carrier, middle.address());
    let dial = Dial { uri, token: for_source.token.clone(), key: key.public() };
    from.proxy.serve(Serve { dial: Some(dial), ..its.serve() }).unwrap();
    to.proxy.pull(pull(&its, &for_target.dial(middle.proxy.uri()))).unwrap();
    let disk = its.full_disk(5);
    arrives(&its, &mut from, &mut to, disk).await;
}

async fn a_transfer_whose_relay_is_started_again_goes_on(carrier: Carrier) {
    let (mut from, one, mut to) = (Site::start().await, Site::start().await, Site::start().await);
    let its = Move::over(carrier);
    let hop = Hop::new(206);
    // Nothing more passes than this, until the relay is gone.
    let valve = relay::Relay::start(carrier, from.address(), 6 * MIB).await;
    let route = hop.relay(&its, source(&its, valve.uri()));
    one.proxy.relay(route.clone()).unwrap();
    from.proxy.serve(its.serve()).unwrap();
    to.proxy.pull(pull(&its, &hop.dial(one.proxy.uri()))).unwrap();
    from.opened().await;
    from.proxy.provide(its.migration, vec![its.full_disk(20)]);
    until("the valve is shut", || valve.is_stuck()).await;
    let address = one.address();
    one.proxy.shut_down().await;
    let again = Site::start_at(address).await;
    valve.open_fully();
    again.proxy.relay(route).unwrap();
    let sent = from.sent().await;
    assert_eq!(to.received().await.0, sent);
    its.assert_equal(FileId::disk(0));
}

async fn a_source_that_dials_out_says_its_last_word_when_it_closes(carrier: Carrier) {
    let (mut from, mut to) = (Site::start().await, Site::start().await);
    let its = Move::over(carrier);
    let token = Token([210; 32]);
    to.proxy.pull(Pull { token: token.clone(), ..its.pull(ProxyUri::dial_out()) }).unwrap();
    let uri = ProxyUri::over(carrier, to.address());
    let dial = Dial { uri, token, key: its.target_key.public() };
    from.proxy.serve(Serve { dial: Some(dial), ..its.serve() }).unwrap();
    let disk = its.full_disk(1);
    arrives(&its, &mut from, &mut to, disk).await;
    from.proxy.tell(its.migration, End::Source, b"released".to_vec()).unwrap();
    from.proxy.close(its.migration, End::Source);
    assert_eq!(to.told(End::Target).await, b"released");
    to.wait(|event| matches!(event, transfer_proxy::Event::Closed { .. }).then_some(())).await;
}

async fn whoever_saw_a_token_cannot_take_the_place_of_the_source_that_dials_out(carrier: Carrier) {
    let (mut from, thief, mut to) = (Site::start().await, Site::start().await, Site::start().await);
    let its = Move::over(carrier);
    let token = Token([211; 32]);
    to.proxy.pull(Pull { token: token.clone(), ..its.pull(ProxyUri::dial_out()) }).unwrap();
    let uri = ProxyUri::over(carrier, to.address());
    let dial = Dial { uri, token, key: its.target_key.public() };
    let other = SecretKey::from_seed(&[212; 32]);
    thief.proxy.serve(Serve { key: other, dial: Some(dial.clone()), ..its.serve() }).unwrap();
    from.proxy.serve(Serve { dial: Some(dial), ..its.serve() }).unwrap();
    let disk = its.full_disk(3);
    arrives(&its, &mut from, &mut to, disk).await;
}

over_each_carrier!(
    what_passes_two_relays_arrives_and_both_nodes_hear_each_other,
    a_source_that_nobody_can_dial_dials_the_target,
    two_ends_that_nobody_can_dial_meet_at_a_relay,
    a_transfer_whose_relay_is_started_again_goes_on,
    a_source_that_dials_out_says_its_last_word_when_it_closes,
    whoever_saw_a_token_cannot_take_the_place_of_the_source_that_dials_out,
);

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_passes_nothing_on_for_a_token_that_it_does_not_know() {
    let (mut from, middle, mut to) =
        (Site::start().await, Site::start().await, Site::start().await);
    let its = Move::new();
    let (hop, guess) = (Hop::new(207), Token([208; 32]));
    middle.proxy.relay(hop.relay(&its, source(&its, from.proxy.uri()))).unwrap();
    from.proxy.serve(its.serve()).unwrap();
    let dial = Dial { token: guess, ..hop.dial(middle.proxy.uri()) };
    to.proxy.pull(pull(&its, &dial)).unwrap();
    assert!(to.stumbled().await.contains("refused"), "an unknown hint has a key of its own");
    // After the relay has ended nobody comes through, either.
    to.proxy.close(its.migration, End::Target);
    middle.proxy.end_relay(its.migration);
    to.proxy.pull(pull(&its, &hop.dial(middle.proxy.uri()))).unwrap();
    assert!(to.stumbled().await.contains("refused"));
    assert!(from.events.try_recv().is_err(), "the source was asked");
    its.assert_nothing_written();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_pretends_to_be_the_source_gets_nothing_and_gives_nothing() {
    let (mut from, middle, mut to) =
        (Site::start().await, Site::start().await, Site::start().await);
    let its = Move::new();
    let hop = Hop::new(209);
    // It knows the source's token, and serves other files with a key of its own.
    let mut false_serve = its.serve();
    false_serve.key = hop.key.clone();
    middle.proxy.serve(false_serve).unwrap();
    to.proxy
        .pull(pull(&its, &Dial { token: its.token.clone(), ..hop.dial(middle.proxy.uri()) }))
        .unwrap();
    assert!(to.stumbled().await.contains("refused"), "the target pins the source's key");
    // And to the source it is not the target.
    from.proxy.serve(its.serve()).unwrap();
    let mut false_pull = its.pull(from.proxy.uri());
    false_pull.key = hop.key.clone();
    let mut thief = middle;
    thief.proxy.pull(false_pull).unwrap();
    assert!(thief.stumbled().await.contains("refused"));
    assert!(from.events.try_recv().is_err(), "the source let it in");
}
