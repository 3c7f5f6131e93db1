//! Real handshakes over loopback, honest and forged.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{AlertDescription, NamedGroup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 3600);

struct Peers {
    known: BTreeSet<SiteKey>,
    strangers: bool,
}

impl Trust for Peers {
    fn knows(&self, key: &SiteKey) -> bool {
        self.known.contains(key)
    }

    fn admits_strangers(&self) -> bool {
        self.strangers
    }
}

fn knowing(known: &[&Identity]) -> Arc<dyn Trust> {
    let known = known.iter().map(|identity| identity.site_key()).collect();
    Arc::new(Peers { known, strangers: false })
}

fn site(seed: u8) -> Identity {
    Identity::from_seed(&[seed; 32])
}

/// What each side says of a handshake: who it found at the other end, or why it failed.
struct Outcome {
    called: io::Result<SiteKey>,
    caller: io::Result<SiteKey>,
}

impl Outcome {
    fn called_refuses(&self) -> &Refusal {
        Refusal::of(self.called.as_ref().unwrap_err()).expect("a refusal by the called site")
    }

    fn caller_refuses(&self) -> &Refusal {
        Refusal::of(self.caller.as_ref().unwrap_err()).expect("a refusal by the caller")
    }

    /// The alert that the caller got.
    fn alert(&self) -> AlertDescription {
        let error = self.caller.as_ref().unwrap_err();
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(Error::AlertReceived(alert)) => *alert,
            _ => panic!("no alert but {error}"),
        }
    }
}

async fn meet(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let called = async {
        let (tcp, _) = listener.accept().await?;
        let mut tls = TlsAcceptor::from(server).accept(tcp).await?;
        tls.write_all(b"!").await?;
        tls.shutdown().await?;
        let connection = tls.get_ref().1;
        assert_eq!(connection.alpn_protocol(), Some(ALPN));
        assert_eq!(connection.server_name(), None, "no name may stand in the clear");
        Ok(site_key_of(connection.peer_certificates().unwrap()).unwrap())
    };
    let caller = async {
        let tcp = TcpStream::connect(address).await?;
        let mut tls = TlsConnector::from(client).connect(name, tcp).await?;
        // In TLS 1.3 the caller learns with the first byte whether it was let in.
        tls.read_u8().await?;
        let group = tls.get_ref().1.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, NamedGroup::X25519MLKEM768);
        Ok(site_key_of(tls.get_ref().1.peer_certificates().unwrap()).unwrap())
    };
    let both = async { tokio::join!(called, caller) };
    let (called, caller) = tokio::time::timeout(DEADLINE, both).await.expect("within the deadline");
    Outcome { called, caller }
}

/// `a` calls `b`, and shows `shown`.
async fn call_showing(shown: CertifiedKey, b: &Identity, trust: Arc<dyn Trust>) -> Outcome {
    let client = client_showing(shown, b.site_key()).unwrap();
    meet(server_config(b, trust).unwrap(), client, server_name(&b.site_key())).await
}

/// `a` calls `b`, which shows `shown`.
async fn answer_showing(a: &Identity, b: &Identity, shown: CertifiedKey) -> Outcome {
    let server = server_showing(shown, knowing(&[a])).unwrap();
    meet(server, client_config(a, b.site_key()).unwrap(), server_name(&b.site_key())).await
}

async fn call(a: &Identity, b: &Identity, trust: Arc<dyn Trust>) -> Outcome {
    let client = client_config(a, b.site_key()).unwrap();
    meet(server_config(b, trust).unwrap(), client, server_name(&b.site_key())).await
}

fn honest(identity: &Identity) -> CertifiedKey {
    issue(identity, &Leaf::now(identity)).unwrap()
}

/// The chain of `a` with its certificates replaced by what `change` makes of them.
fn forged(a: &Identity, change: impl FnOnce(&mut Vec<CertificateDer<'static>>)) -> CertifiedKey {
    let mut shown = honest(a);
    change(&mut shown.cert);
    shown
}

/// Every way for a site `a` to show something else than its own, sound credentials.
fn bad_credentials(a: &Identity, other: &Identity) -> Vec<(&'static str, CertifiedKey)> {
    let now = SystemTime::now();
    let sound = || Leaf::now(a);
    let with = |leaf: Leaf| issue(a, &leaf).unwrap();
    let name = |identity: &Identity| dns_name(&identity.site_key());
    let others_chain = honest(other).cert;
    let others_root = others_chain[1].clone();
    let own_root = honest(a).cert[1].clone();
    // `other` makes a leaf out to `a`; only a root of `a` could make it good.
    let made_out_to_a = issue(other, &sound()).unwrap();
    let mut under_own_root = made_out_to_a.clone();
    under_own_root.cert[1] = own_root.clone();
    vec![
        ("another site's chain without its key", forged(a, |c| *c = others_chain)),
        ("own leaf under another site's root", forged(a, |c| c[1] = others_root)),
        ("chain in the wrong order", forged(a, |c| c.swap(0, 1))),
        ("no root", forged(a, |c| c.truncate(1))),
        ("the root alone", forged(a, |c| *c = vec![own_root.clone()])),
        ("the root as leaf", forged(a, |c| c[0] = own_root.clone())),
        ("the root twice", forged(a, |c| c.push(own_root.clone()))),
        ("too many certificates", forged(a, |c| c.extend((0..5).map(|_| own_root.clone())))),
        ("an altered leaf", forged(a, |c| c[0] = altered(&c[0]))),
        ("an expired leaf", with(Leaf { not_after: now - DAY / 2, ..sound() })),
        ("a leaf of the future", with(Leaf { not_before: now + DAY, ..sound() })),
        ("a leaf for another site's name", with(Leaf { names: vec![name(other)], ..sound() })),
        ("a leaf without a name", with(Leaf { names: vec![], ..sound() })),
        (
            "a leaf for another use",
            with(Leaf { usages: vec![ExtendedKeyUsagePurpose::EmailProtection], ..sound() }),
        ),
        ("a root of the same names with another key", made_out_to_a),
        ("another site's leaf under own root", under_own_root),
    ]
}

/// The same certificate with one bit of its signature turned.
fn altered(certificate: &CertificateDer<'_>) -> CertificateDer<'static> {
    let mut bytes = certificate.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    bytes.into()
}

#[tokio::test]
async fn two_sites_that_pinned_each_other_meet_and_know_whom_they_met() {
    let (a, b) = (site(1), site(2));
    let outcome = call(&a, &b, knowing(&[&site(3), &a])).await;
    assert_eq!(outcome.called.unwrap(), a.site_key());
    assert_eq!(outcome.caller.unwrap(), b.site_key());
}

#[tokio::test]
async fn a_stranger_is_refused_unless_an_invitation_is_open() {
    let (a, b) = (site(1), site(2));
    let outcome = call(&a, &b, knowing(&[&site(3)])).await;
    assert!(matches!(outcome.called_refuses(), Refusal::Stranger(key) if *key == a.site_key()));

    let open = Arc::new(Peers { known: BTreeSet::new(), strangers: true });
    let outcome = call(&a, &b, open).await;
    assert_eq!(outcome.called.unwrap(), a.site_key(), "a stranger is known by its own key");
    assert_eq!(outcome.caller.unwrap(), b.site_key());
}

#[tokio::test]
async fn a_caller_takes_no_other_site_than_the_one_it_calls() {
    let (a, b, c) = (site(1), site(2), site(3));
    let outcome = answer_showing(&a, &b, honest(&c)).await;
    assert!(matches!(outcome.caller_refuses(), Refusal::OtherSite(key) if *key == c.site_key()));
    assert!(outcome.called.is_err());
}

#[tokio::test]
async fn a_caller_that_asks_for_another_name_than_its_peers_is_refused_by_itself() {
    let (a, b) = (site(1), site(2));
    let client = client_config(&a, b.site_key()).unwrap();
    let server = server_config(&b, knowing(&[&a])).unwrap();
    let outcome = meet(server, client, server_name(&a.site_key())).await;
    assert!(matches!(outcome.caller_refuses(), Refusal::Leaf(_)));
}

#[tokio::test]
async fn forged_credentials_of_a_caller_are_refused_even_between_peers() {
    let (a, b, other) = (site(1), site(2), site(3));
    for (what, shown) in bad_credentials(&a, &other) {
        let outcome = call_showing(shown, &b, knowing(&[&a, &other])).await;
        assert!(outcome.called.is_err(), "{what} was taken");
        assert!(outcome.caller.is_err(), "{what} got an answer");
        outcome.called_refuses();
    }
}

#[tokio::test]
async fn forged_credentials_of_a_caller_are_refused_while_strangers_are_admitted() {
    let (a, b, other) = (site(1), site(2), site(3));
    for (what, shown) in bad_credentials(&a, &other) {
        let open = Arc::new(Peers { known: BTreeSet::new(), strangers: true });
        let outcome = call_showing(shown, &b, open).await;
        assert!(outcome.called.is_err(), "{what} was taken");
    }
}

#[tokio::test]
async fn forged_credentials_of_a_called_site_are_refused() {
    let (a, b, other) = (site(1), site(2), site(3));
    for (what, shown) in bad_credentials(&b, &other) {
        let outcome = answer_showing(&a, &b, shown).await;
        assert!(outcome.caller.is_err(), "{what} was taken");
        outcome.caller_refuses();
    }
}

#[tokio::test]
async fn a_leaf_that_also_names_a_peer_does_not_pass_for_the_peer() {
    let (peer, b, stranger) = (site(1), site(2), site(3));
    let (own, peers) = (dns_name(&stranger.site_key()), dns_name(&peer.site_key()));
    for names in [[own.clone(), peers.clone()], [peers, own]] {
        let leaf = Leaf { names: names.to_vec(), ..Leaf::now(&stranger) };
        let shown = issue(&stranger, &leaf).unwrap();
        let outcome = call_showing(shown, &b, knowing(&[&peer])).await;
        assert!(matches!(outcome.called_refuses(), Refusal::Name | Refusal::Stranger(_)));
    }
}

#[tokio::test]
async fn a_refusal_does_not_tell_whether_a_site_is_a_peer() {
    let (a, b, x) = (site(1), site(2), site(3));
    let replayed = || forged(&a, |chain| *chain = honest(&x).cert);
    let known = call_showing(replayed(), &b, knowing(&[&x])).await;
    let unknown = call_showing(replayed(), &b, knowing(&[])).await;
    assert!(matches!(known.called_refuses(), Refusal::Possession(_)));
    assert!(matches!(unknown.called_refuses(), Refusal::Possession(_)));

    let stranger = call(&a, &b, knowing(&[])).await;
    let expired = Leaf { not_after: SystemTime::now() - DAY / 2, ..Leaf::now(&a) };
    let expired = call_showing(issue(&a, &expired).unwrap(), &b, knowing(&[&a])).await;
    for outcome in [known, unknown, stranger, expired] {
        assert_eq!(outcome.alert(), AlertDescription::CertificateUnknown);
    }
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused() {
    let (a, b) = (site(1), site(2));
    let verifier = Arc::new(PeerVerifier { provider: provider(), peer: b.site_key() });
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    client.alpn_protocols = vec![ALPN.to_vec()];
    let server = server_config(&b, knowing(&[&a])).unwrap();
    let outcome = meet(server, Arc::new(client), server_name(&b.site_key())).await;
    assert!(outcome.called.is_err());
    assert_eq!(outcome.alert(), AlertDescription::CertificateRequired);
}

#[tokio::test]
async fn a_caller_that_speaks_another_protocol_is_refused() {
    let (a, b) = (site(1), site(2));
    let mut client = (*client_config(&a, b.site_key()).unwrap()).clone();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let server = server_config(&b, knowing(&[&a])).unwrap();
    let outcome = meet(server, Arc::new(client), server_name(&b.site_key())).await;
    assert_eq!(outcome.alert(), AlertDescription::NoApplicationProtocol);
}

#[tokio::test]
async fn a_caller_that_has_tls_1_2_at_most_is_refused() {
    let (a, b) = (site(1), site(2));
    let acceptor = TlsAcceptor::from(server_config(&b, knowing(&[&a])).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let called = async { acceptor.accept(listener.accept().await?.0).await.map(|_| ()) };
    let caller = async {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.write_all(&client_hello_of_tls_1_2()).await?;
        let mut alert = [0; 7];
        tcp.read_exact(&mut alert).await.map(|_| alert)
    };
    let both = async { tokio::join!(called, caller) };
    let (called, caller) = tokio::time::timeout(DEADLINE, both).await.expect("within the deadline");
    assert!(called.is_err());
    let [kind, _, _, _, length, level, description] = caller.unwrap();
    assert_eq!((kind, length, level), (21, 2, 2), "a fatal alert");
    assert_eq!(AlertDescription::from(description), AlertDescription::ProtocolVersion);
}

/// RFC 5246, 7.4.1.2, with a cipher suite, group and signature scheme that the server also has.
fn client_hello_of_tls_1_2() -> Vec<u8> {
    let extensions: &[&[u8]] = &[
        &[0, 10, 0, 4, 0, 2, 0, 23],         // groups: secp256r1
        &[0, 11, 0, 2, 1, 0],                // points: uncompressed
        &[0, 13, 0, 6, 0, 4, 4, 3, 8, 7],    // signatures: ECDSA P-256, Ed25519
        &[0, 16, 0, 5, 0, 3, 2, b'h', b'2'], // protocols: h2
    ];
    let extensions = extensions.concat();
    let mut hello = vec![3, 3];
    hello.extend([0x42; 32]);
    hello.push(0); // no session
    hello.extend([0, 2, 0xc0, 0x2b]); // ECDHE-ECDSA-AES128-GCM-SHA256
    hello.extend([1, 0]); // no compression
    hello.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend(extensions);
    let length = u16::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1];
    record.extend((length + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend(length.to_be_bytes());
    record.extend(hello);
    record
}

#[tokio::test]
async fn no_session_outlives_its_connection() {
    let (a, b) = (site(1), site(2));
    let server = server_config(&b, knowing(&[&a])).unwrap();
    let client = client_config(&a, b.site_key()).unwrap();
    assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
    assert!(!server.session_storage.can_cache() && !client.enable_early_data);
    // The second handshake is as full as the first: `meet` finds certificates in both.
    for _ in 0..2 {
        let outcome = meet(server.clone(), client.clone(), server_name(&b.site_key())).await;
        assert_eq!(outcome.called.unwrap(), a.site_key());
    }
}

#[test]
fn a_chain_of_another_shape_names_no_site() {
    let chain = honest(&site(1)).cert;
    assert_eq!(site_key_of(&chain), Some(site(1).site_key()));
    assert_eq!(site_key_of(&chain[..1]), None);
    assert_eq!(site_key_of(&[]), None);
    assert_eq!(site_key_of(&[chain[0].clone(), CertificateDer::from(vec![0x30, 0])]), None);
}

/// A site's identity after each of so many renewals.
fn renewed(times: usize) -> Vec<Identity> {
    let folder = tempfile::tempdir().unwrap();
    let first = Identity::create(folder.path()).unwrap();
    let later = (0..times).map(|_| Identity::renew(folder.path()).unwrap());
    std::iter::once(first).chain(later).collect()
}

/// Pins keys, and follows a site from one to the next.
struct Following(Mutex<SiteKey>);

impl Trust for Following {
    fn knows(&self, key: &SiteKey) -> bool {
        *key == *self.0.lock().unwrap()
    }

    fn succeeded(&self, old: &SiteKey, new: &SiteKey) {
        let mut known = self.0.lock().unwrap();
        assert_eq!(*known, *old);
        *known = *new;
    }

    fn admits_strangers(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_site_with_a_new_key_is_known_to_whoever_pinned_one_of_before() {
    let line = renewed(3);
    let (now, b) = (&line[3], site(2));
    for before in &line {
        let trust = Arc::new(Following(Mutex::new(before.site_key())));
        let called = call(now, &b, trust.clone()).await;
        assert_eq!(called.called.unwrap(), now.site_key());
        assert_eq!(*trust.0.lock().unwrap(), now.site_key());
        let client = client_config(&b, before.site_key()).unwrap();
        let server = server_config(now, knowing(&[&b])).unwrap();
        let answered = meet(server, client, server_name(&before.site_key())).await;
        assert_eq!(answered.caller.unwrap(), now.site_key());
    }
}

#[tokio::test]
async fn a_key_of_before_is_worth_nothing_to_whoever_knows_the_new_one() {
    let line = renewed(1);
    let (b, now) = (site(2), line[1].site_key());
    let called = call(&line[0], &b, knowing(&[&line[1]])).await;
    assert!(
        matches!(called.called_refuses(), Refusal::Stranger(key) if *key == line[0].site_key())
    );
    let server = server_config(&line[0], knowing(&[&b])).unwrap();
    let answered = meet(server, client_config(&b, now).unwrap(), server_name(&now)).await;
    assert!(matches!(answered.caller_refuses(), Refusal::OtherSite(_)));
}

#[tokio::test]
async fn a_line_that_does_not_lead_to_the_leaf_makes_nobody_a_peer() {
    let (line, other, b) = (renewed(2), renewed(1), site(2));
    let honest = honest(&line[2]);
    let by_other = crate::credentials::cross(&other[0], &line[2].site_key()).unwrap();
    let forged_name = {
        // A stranger certifies its own key as if the old key of a peer had.
        let stranger = site(9);
        let mut shown = super::tests::honest(&stranger);
        shown.cert.extend(honest.cert[2..].iter().cloned());
        shown
    };
    let changed = |change: &dyn Fn(&mut Vec<CertificateDer<'static>>)| {
        let mut shown = honest.clone();
        change(&mut shown.cert);
        shown
    };
    let bad = [
        ("the line of a peer behind a stranger's leaf", forged_name),
        ("a line with a gap", changed(&|c| drop(c.remove(2)))),
        ("an altered link", changed(&|c| c[2] = altered(&c[2]))),
        ("a link by another site", changed(&|c| c[2] = by_other.clone())),
        ("no line", changed(&|c| c.truncate(2))),
    ];
    for (what, shown) in bad {
        let trust = Arc::new(Following(Mutex::new(line[0].site_key())));
        let outcome = call_showing(shown.clone(), &b, trust.clone()).await;
        let refused = outcome.called_refuses();
        assert!(matches!(refused, Refusal::Stranger(_) | Refusal::Line), "{what}");
        assert_eq!(*trust.0.lock().unwrap(), line[0].site_key(), "{what}");
        let server = server_showing(shown, knowing(&[&b])).unwrap();
        let client = client_config(&b, line[0].site_key()).unwrap();
        let outcome = meet(server, client, server_name(&line[0].site_key())).await;
        let refused = outcome.caller_refuses();
        assert!(matches!(refused, Refusal::OtherSite(_) | Refusal::Line), "{what}");
    }
}

#[tokio::test]
async fn a_peer_that_certifies_anothers_key_as_its_own_next_changes_nothing() {
    let (peer, other, b) = (site(1), site(2), site(3));
    let cross =
        |old: &Identity, new: &Identity| crate::credentials::cross(old, &new.site_key()).unwrap();
    // The other's chain, as everybody has seen it, with a cross certificate for its key.
    let mut replayed = honest(&other);
    replayed.cert.push(cross(&peer, &other));
    // And a key that is its own next.
    let mut own = honest(&peer);
    own.cert.push(cross(&peer, &peer));
    let mut twice =
        issue(&peer, &Leaf { names: vec![dns_name(&peer.site_key()); 2], ..Leaf::now(&peer) })
            .unwrap();
    twice.cert.push(cross(&peer, &peer));
    for shown in [replayed, own, twice] {
        let trust = Arc::new(Following(Mutex::new(peer.site_key())));
        let _ = call_showing(shown, &b, trust.clone()).await;
        assert_eq!(*trust.0.lock().unwrap(), peer.site_key());
    }
}
