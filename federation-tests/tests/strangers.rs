//! Peers that hang, die or talk nonsense: each costs its time limit, and nothing else.
//!
//! Site a has two peers: b, which would be chosen, and c. Something else than b's node answers at
//! b's address, with b's identity; the VM must get to c all the same.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::Identity;
use federation_tests::process::hostile::{self, Anyone};
use federation_tests::process::{Federation, SOON};
use proto::federation::federation_server::Federation as Operations;
use proto::federation::{HelloReply, HelloRequest, JoinReply, JoinRequest, Part, Sealed};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

/// How long a placement may take beside a peer that does not answer: `time.request_s` of the
/// harness, the grace of a call, and room for a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// a with its peers b, whose offer is the better one, and c; and a VM at a.
fn three() -> (Federation, String) {
    let mut federation = Federation::new();
    for (name, price) in [("a", 0), ("b", 0), ("c", 9)] {
        let site = federation.add(name);
        site.configure("offer", "price_milli", price);
        site.start();
    }
    federation.join("a", "b");
    federation.join("a", "c");
    federation["b"].host("b1", 1);
    federation["c"].host("c1", 1);
    let vm = federation.import("a", "web");
    (federation, vm)
}

/// Places the VM, which must get to c in time, and returns what a says of b.
fn placed_beside(federation: &Federation, vm: &str) -> String {
    let began = Instant::now();
    federation["a"].done(&["vm", "place", "web"]);
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    federation.wait_for("it runs at c", SOON, || federation.runs_at(vm, "c").ok_or(String::new()));
    // The call itself may end a little later than the placement, which did not wait for it.
    federation.wait_for("a has noticed b's silence", SOON, || {
        let b = federation["a"].done(&["peer", "show", "b"]);
        let tried = b["reachable"] == false && !b["trouble"].to_string().contains("not tried");
        if tried { Ok(b["trouble"].as_str().unwrap().to_owned()) } else { Err(b.to_string()) }
    })
}

#[test]
fn a_peer_that_accepts_connections_and_says_nothing_costs_its_time_limit() {
    let (federation, vm) = three();
    federation["b"].stop();
    let silent = TcpListener::bind(federation["b"].address()).unwrap();
    let trouble = placed_beside(&federation, &vm);
    assert!(trouble.contains("in time"), "{trouble}");
    drop(silent);
    federation.settle(&vm, "c", true, &["a", "c"]);
}

#[test]
fn a_peer_that_is_frozen_with_its_connections_open_costs_its_time_limit() {
    let (federation, vm) = three();
    // A connection is open before it freezes.
    federation["a"].done(&["vm", "place", "web", "--peer", "b", "--dry-run"]);
    federation["b"].freeze();
    let trouble = placed_beside(&federation, &vm);
    assert!(trouble.contains("in time"), "{trouble}");
    federation["b"].thaw();
    federation.settle(&vm, "c", true, &["a", "c"]);
    federation.wait_for("b is a peer as before", SOON, || {
        let asked = federation["a"].run(&["vm", "place", "web", "--peer", "b", "--dry-run"]);
        if asked.code == 0 { Ok(()) } else { Err(format!("{asked:?}")) }
    });
}

#[test]
fn a_destination_that_dies_for_good_in_mid_request_is_given_up_for_the_next_offer() {
    let (federation, vm) = three();
    let mark = federation.folder().join("killed");
    federation["b"].stop();
    let kill = [("SOJOURN_KILL", "after:admitted"), ("SOJOURN_KILL_ONCE", mark.to_str().unwrap())];
    federation["b"].start_with(&kill);
    federation["a"].done(&["vm", "place", "web"]);
    assert!(mark.exists(), "b was chosen first");
    federation.wait_for("it runs at c", SOON, || federation.runs_at(&vm, "c").ok_or(String::new()));
    // Back again, it waits in vain for the files; its admission expires by itself, later.
    federation.revive();
    let b = federation["b"].done(&["vm", "list"]);
    assert!(b.as_array().unwrap().iter().all(|vm| vm["state"] != "running"), "{b}");
    federation.assert_one_runs(&vm);
    assert!(federation.runs_at(&vm, "c").is_some());
}

#[test]
fn a_source_that_dies_in_mid_request_goes_on_when_it_is_back() {
    let (federation, vm) = three();
    federation["a"].done(&["vm", "place", "web", "--peer", "b"]);
    let boot = federation.wait_for("it runs at b", SOON, || {
        federation.runs_at(&vm, "b").map(|guest| guest.boot).ok_or(String::new())
    });
    let mark = federation.folder().join("killed");
    federation["b"].stop();
    let kill = [("SOJOURN_KILL", "after:initiated"), ("SOJOURN_KILL_ONCE", mark.to_str().unwrap())];
    federation["b"].start_with(&kill);
    federation["a"].done(&["vm", "migrate", "web", "--peer", "c", "--detach"]);
    federation.wait_for("b dies", SOON, || if mark.exists() { Ok(()) } else { Err(String::new()) });
    federation.wait_for("b is down", SOON, || {
        if federation["b"].has_died() { Ok(()) } else { Err(String::new()) }
    });
    federation["b"].start();
    federation.settle(&vm, "c", true, &["a", "c"]);
    assert_eq!(federation.runs_at(&vm, "c").unwrap().boot, boot, "its memory went along");
}

#[test]
fn a_peer_that_speaks_another_version_is_named_with_its_version_and_passed_over() {
    let (federation, vm) = three();
    let _stranger = Stranger::instead_of(&federation, Manner::Version);
    let trouble = placed_beside(&federation, &vm);
    assert!(trouble.contains("protocol versions 99 to 99"), "{trouble}");
}

#[test]
fn a_peer_whose_answers_are_junk_is_passed_over() {
    let (federation, vm) = three();
    let _stranger = Stranger::instead_of(&federation, Manner::Junk);
    let trouble = placed_beside(&federation, &vm);
    assert!(trouble.contains("not what it signed"), "{trouble}");
}

#[test]
fn a_peer_whose_answers_another_key_has_signed_is_passed_over() {
    let (federation, vm) = three();
    let _stranger = Stranger::instead_of(&federation, Manner::WrongKey);
    let trouble = placed_beside(&federation, &vm);
    assert!(trouble.contains("not signed with the peer's key"), "{trouble}");
}

#[test]
fn a_peer_that_sends_noise_through_its_tls_is_passed_over() {
    let (federation, vm) = three();
    let _stranger = Stranger::instead_of(&federation, Manner::Noise);
    placed_beside(&federation, &vm);
}

#[test]
fn another_site_at_a_peers_address_is_not_taken_for_it() {
    let (federation, vm) = three();
    let _stranger = Stranger::instead_of(&federation, Manner::Impostor);
    let trouble = placed_beside(&federation, &vm);
    assert!(trouble.contains("another site answered"), "{trouble}");
}

#[test]
fn noise_at_the_control_port_and_the_transfer_port_does_no_harm() {
    let (federation, vm) = three();
    let at = federation["a"].address();
    for length in [0, 1, 5, 1000, 100_000] {
        let noise: Vec<u8> = (0..length).map(|_| rand::random()).collect();
        let mut tcp = std::net::TcpStream::connect(at).unwrap();
        // It may hang up before all is said.
        let _ = tcp.write_all(&noise);
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let _ = udp.send_to(&noise[..noise.len().min(1400)], at);
    }
    federation["a"].done(&["vm", "place", "web"]);
    federation.settle(&vm, "b", true, &["a", "b"]);
}

/// How something else behaves that answers in a peer's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// It greets with a version that nobody speaks.
    Version,
    /// It greets well, and answers with random bytes.
    Junk,
    /// It greets well, and its answers are signed with a key that is not the peer's.
    WrongKey,
    /// It completes TLS, and then sends what is not HTTP/2.
    Noise,
    /// It has a sound identity, which is not the peer's.
    Impostor,
}

/// A server in b's place, until it is dropped.
struct Stranger {
    _stop: oneshot::Sender<()>,
}

impl Stranger {
    fn instead_of(federation: &Federation, manner: Manner) -> Self {
        let b = &federation["b"];
        b.stop();
        let identity = match manner {
            Manner::Impostor => Identity::from_seed(&rand::random()),
            _ => Identity::load(b.folder()).unwrap(),
        };
        let (address, (stop, stopped)) = (b.address(), oneshot::channel());
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let serving = serve(address, identity, manner, ready);
            runtime.unwrap().block_on(async {
                tokio::select! {
                    () = serving => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv_timeout(Duration::from_secs(10)).expect("it listens");
        Self { _stop: stop }
    }
}

async fn serve(
    address: SocketAddr,
    identity: Identity,
    manner: Manner,
    ready: std::sync::mpsc::Sender<()>,
) {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    ready.send(()).unwrap();
    match manner {
        Manner::Noise => make_noise(listener, &identity).await,
        _ => hostile::serve(listener, &identity, Nonsense(manner)).await,
    }
}

async fn make_noise(listener: tokio::net::TcpListener, identity: &Identity) {
    let tls = certs::server_config(identity, Arc::new(Anyone)).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
        let noise: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
        let _ = stream.write_all(&noise).await;
        let _ = stream.shutdown().await;
    }
}

/// A site's operations, answered with nonsense.
struct Nonsense(Manner);

type Answered<'a, T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'a>>;

impl Nonsense {
    fn sealed(&self) -> Result<Response<Sealed>, Status> {
        let random = |length| (0..length).map(|_| rand::random()).collect::<Vec<u8>>();
        let hop = match self.0 {
            Manner::WrongKey => {
                let other = Identity::from_seed(&[9; 32]);
                let body = random(100);
                let signature = other.sign("application/vnd.sojourn.answer.v2", &body).0.to_vec();
                Part { body, key: other.site_key().public().0.to_vec(), signature }
            }
            _ => Part { body: random(5000), key: random(3), signature: random(70) },
        };
        Ok(Response::new(Sealed { origin: None, hop: Some(hop) }))
    }
}

macro_rules! nonsense {
    ($($operation:ident)*) => {
        $(fn $operation<'a, 'async_trait>(
            &'a self,
            _: Request<Sealed>,
        ) -> Answered<'async_trait, Sealed>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { self.sealed() })
        })*
    };
}

impl Operations for Nonsense {
    fn hello<'a, 'async_trait>(
        &'a self,
        asked: Request<HelloRequest>,
    ) -> Answered<'async_trait, HelloReply>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        let spoken = asked.into_inner().newest_version;
        let version = if self.0 == Manner::Version { 99 } else { spoken };
        let reply = HelloReply { version, journal: None, journal_seen: None };
        Box::pin(async move { Ok(Response::new(reply)) })
    }

    fn join<'a, 'async_trait>(
        &'a self,
        _: Request<JoinRequest>,
    ) -> Answered<'async_trait, JoinReply>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async { Err(Status::unimplemented("no")) })
    }

    nonsense! {
        migration_request forced_migration initiate_transfer transfer_verification deliver handback
        retire control report withdraw confirm reclaim superseded values
    }
}
