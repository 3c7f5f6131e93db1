//! Floods of the proxy's port, which is the control port's number: UDP, and TCP where a caller wants
//! the proxy.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use futures_util::future::join_all;
use model::{Bytes, Carrier, FileId, MigrationId, ProxyUri, SecretKey, Token, VmId};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use transfer_proxy::{End, Pull, Share, TransferProxy, fuzzing};

use crate::control::crowd;
use crate::frames::{address, connect};
use crate::ground::{Ground, Over, alone};

/// Sockets that datagrams are sent from at once.
const SOCKETS: usize = 500;
/// Guesses of a token that are made, at least.
const GUESSES: usize = 10_000;
/// Guesses at once.
const AT_ONCE: usize = 64;
/// How long the answer to a guess may take on a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Sessions that are begun, so that their first packets can be sent again by others.
const BEGUN: usize = 48;

fn anywhere(number: usize) -> IpAddr {
    address(number).into()
}

/// Sends these datagrams, each group from a socket of its own, over and over.
fn rain(
    ground: &Ground,
    over: &Over,
    from: impl Fn(usize) -> IpAddr,
    words: impl Fn(usize) -> Vec<Vec<u8>>,
) -> String {
    let sent = Cell::new(0);
    let one = async |number: usize| {
        let socket = UdpSocket::bind((from(number), 0)).await.unwrap();
        loop {
            for datagram in words(number) {
                // The system throws away what does not fit.
                let _ = socket.send_to(&datagram, ground.v().address()).await;
                sent.set(sent.get() + 1);
                if sent.get() == SOCKETS {
                    over.begins();
                }
                tokio::task::yield_now().await;
            }
        }
    };
    over.storm(async {
        join_all((0..SOCKETS).map(one)).await;
    });
    format!("{} datagrams", sent.get())
}

/// The first packet of a connection (RFC 9000, section 17.2.2), with nothing that can be read.
fn initial() -> Vec<u8> {
    let id = |length: u8| [vec![length], (0..length).map(|_| rand::random()).collect()].concat();
    let head = [vec![0xc3, 0, 0, 0, 1], id(8 + rand::random::<u8>() % 13), id(8), vec![0]].concat();
    let rest = 1200 - head.len() - 2;
    let length = (0x4000 | u16::try_from(rest).unwrap()).to_be_bytes();
    let noise = (0..rest).map(|_| rand::random()).collect();
    [head, length.to_vec(), noise].concat()
}

/// The first packets of sessions that an honest program begins, by connection: what a caller says
/// who then never finishes.
fn begun(ground: &Ground) -> Vec<Vec<Vec<u8>>> {
    let trap = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    trap.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let migrations: Vec<_> = (0..BEGUN).map(|_| MigrationId(rand::random())).collect();
    for migration in &migrations {
        ground.f.proxy().pull(pull(ground, *migration, trap.local_addr().unwrap())).unwrap();
    }
    let mut packets: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    let mut datagram = [0; 2048];
    while let Ok(length) = trap.recv(&mut datagram) {
        let datagram = &datagram[..length];
        let id = datagram[6..6 + usize::from(datagram[5])].to_vec();
        packets.entry(id).or_default().push(datagram.to_vec());
        if packets.len() == BEGUN && packets.values().all(|packets| packets.len() > 1) {
            break;
        }
    }
    for migration in migrations {
        ground.f.proxy().close(migration, End::Target);
    }
    assert!(packets.len() >= BEGUN / 2, "{} sessions were begun", packets.len());
    packets.into_values().collect()
}

fn pull(ground: &Ground, migration: MigrationId, at: SocketAddr) -> Pull {
    Pull {
        migration,
        vm: VmId(rand::random()),
        from: ProxyUri::over(Carrier::Quic, at),
        token: Token(rand::random()),
        relay: None,
        key: SecretKey::from_seed(&rand::random()),
        peer_key: SecretKey::from_seed(&rand::random()).public(),
        folder: ground.federation.folder().join(format!("never-{migration}")),
        budget: Bytes::mib(1),
        expected: vec![FileId::disk(0)],
        basis: vec![],
        carrier: None,
        share: Share::default(),
    }
}

#[test]
fn first_packets_of_quic_from_everywhere_keep_no_transfer_out() {
    let _alone = alone();
    let ground = Ground::with_transfers();
    ground.bears("QUIC initials, noise", |over| rain(&ground, over, anywhere, |_| vec![initial()]));
    let begun = begun(&ground);
    ground.bears("QUIC initials, begun", |over| {
        rain(&ground, over, anywhere, |number| begun[number % begun.len()].clone())
    });
}

#[test]
fn datagrams_in_the_name_of_an_honest_address_do_not_keep_it_out() {
    let _alone = alone();
    let ground = Ground::with_transfers();
    let w = ground.w();
    ground.bears("QUIC initials, forged", |over| rain(&ground, over, |_| w, |_| vec![initial()]));
}

#[test]
fn ten_thousand_guessed_tokens_are_refused_and_keep_no_transfer_out() {
    let _alone = alone();
    let ground = Ground::with_transfers();
    ground.bears("guessed tokens", |over| {
        let (guessed, slowest) = (Cell::new(0), Cell::new(Duration::ZERO));
        let one = async |number: usize| {
            let mut key = SecretKey::from_seed(&rand::random());
            while guessed.get() < GUESSES || !over.is_so() {
                // Half of them show the same key each time, and half a new one.
                if number % 2 == 1 {
                    key = SecretKey::from_seed(&rand::random());
                }
                let begun = Instant::now();
                guess(&key, address(guessed.get() % SOCKETS), ground.v().address()).await;
                slowest.set(slowest.get().max(begun.elapsed()));
                guessed.set(guessed.get() + 1);
                over.begins();
            }
        };
        over.finish(async {
            join_all((0..AT_ONCE).map(one)).await;
        });
        let slowest = slowest.get().as_millis();
        format!("{} guesses, each refused within {slowest} ms", guessed.get())
    });
}

/// Guesses a token, and must be hung up on without a word of the proxy's.
async fn guess(key: &SecretKey, from: Ipv4Addr, at: SocketAddr) {
    let refused = async {
        let Ok(tcp) = connect(from, at).await else { return };
        let name = ServerName::from(Ipv4Addr::UNSPECIFIED);
        let Ok(mut tls) = TlsConnector::from(dialler(key)).connect(name, tcp).await else { return };
        let (hello, mut said) = (greeting(), vec![]);
        if tls.write_all(&hello).await.is_ok() && tls.flush().await.is_ok() {
            let _ = tls.read_to_end(&mut said).await;
        }
        // The place of a message has the reason of the end.
        assert!(said.is_empty() || said == REFUSED, "{said:?}");
    };
    timeout(ANSWER_LIMIT, refused).await.expect("every guess is answered");
}

/// What stands in the place of a message's length when a session is refused.
const REFUSED: [u8; 4] = [0xff, 0xff, 0xff, 2];

/// The first message of whoever dials, with a guessed token.
fn greeting() -> Vec<u8> {
    let mut hello = fuzzing::frames().swap_remove(0);
    let sample = [7; 32];
    let at = hello.windows(32).position(|bytes| bytes == sample).unwrap();
    hello[at..at + 32].copy_from_slice(&rand::random::<[u8; 32]>());
    let length = u32::try_from(hello.len()).unwrap().to_be_bytes();
    [&length[..], &hello].concat()
}

/// Dials a proxy with this key and a hint that nobody gave, and takes whatever key answers.
fn dialler(key: &SecretKey) -> Arc<ClientConfig> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let provider = PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider()));
    // RFC 8410, sections 7 and 4.
    let seed =
        [&HEXLOWER.decode(b"302e020100300506032b657004220420").unwrap()[..], &key.seed()[..]];
    let shown = [&HEXLOWER.decode(b"302a300506032b6570032100").unwrap()[..], &key.public().0];
    let (seed, shown) = (seed.concat(), shown.concat());
    let signer = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&seed[..])).unwrap();
    let key = Arc::new(CertifiedKey::new(vec![CertificateDer::from(shown)], signer));
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider.clone())))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
    let hint = HEXLOWER.encode(&rand::random::<[u8; 16]>());
    config.alpn_protocols = vec![b"sojourn-transfer/2".to_vec(), hint.into_bytes()];
    config.enable_sni = false;
    Arc::new(config)
}

/// Takes whatever key answers.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        unreachable!("only TLS 1.3 is offered")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[test]
fn callers_of_the_proxy_that_never_finish_keep_no_transfer_out() {
    let _alone = alone();
    let ground = Ground::with_transfers();
    let config = dialler(&SecretKey::from_seed(&rand::random()));
    let name = ServerName::from(Ipv4Addr::UNSPECIFIED);
    let mut client = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = vec![];
    while client.wants_write() {
        client.write_tls(&mut hello).unwrap();
    }
    ground.bears_crowd("a ClientHello for the proxy", |over| crowd(&ground, over, &hello));
}
