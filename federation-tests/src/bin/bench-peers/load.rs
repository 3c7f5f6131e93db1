//! Requests of many peers at once. All are sealed before the first is sent and all answers are
//! opened after the last has come, since what asks shares the machine with what answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use federation_tests::bench::{Failure, clock};
use federation_tests::process::Usage;
use model::vm::Restrictions;
use model::{Bytes, Descriptor, JournalMark, RequestId, Resources, SecretKey, SiteKey, VmId};
use proto::envelope::{self, RequestDigest, Sealer};
use proto::federation::Sealed;
use protocol::{Action, Answer, Hop, Op, Origin, Request};

use crate::fleet::{SIZE, Vm};
use crate::peers::{Line, Peers};

/// Requests that are under way at once, each on a connection of its own.
pub(crate) const AT_ONCE: usize = 64;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A place for a VM that is larger than what is free, which policy refuses.
    Refused,
    /// A place for a small VM, which is offered.
    Offered,
    /// The state of a VM that the peer has placed.
    Shown,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Refused, Self::Offered, Self::Shown];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Refused => "place, refused",
            Self::Offered => "place, offered",
            Self::Shown => "state of a VM",
        }
    }

    fn is_answered_by(self, answer: &Answer) -> bool {
        match (self, answer) {
            (Self::Refused, Answer::Offers { offers, reasons }) => {
                offers.is_empty() && reasons.iter().any(|why| why.contains("memory are wanted"))
            }
            (Self::Offered, Answer::Offers { offers, .. }) => offers.len() == 1,
            (Self::Shown, Answer::State { .. }) => true,
            _ => false,
        }
    }
}

/// A sealed request.
#[derive(Clone)]
pub(crate) struct Ask {
    /// The peer that asks.
    peer: usize,
    /// The connection by which it does.
    line: usize,
    sealed: Sealed,
    digest: RequestDigest,
}

/// So many requests for `site`, of all connections in turn; for the state of a VM, of the peers
/// that have one there.
pub(crate) fn asks(
    kind: Kind,
    count: usize,
    (peers, lines): (&Peers, usize),
    vms: &[Vm],
    site: SiteKey,
) -> Vec<Ask> {
    let here: Vec<&Vm> = vms.iter().filter(|vm| vm.is_here).collect();
    let one = |at: usize| {
        let (peer, line, op, edge) = match kind {
            Kind::Refused | Kind::Offered => {
                let line = at % lines;
                (line % peers.all.len(), line, place(kind == Kind::Refused), None)
            }
            Kind::Shown => {
                let vm = here[at % here.len()];
                let op = Op::Control { vm: vm.id, action: Action::Show };
                (vm.above, vm.above, op, Some(vm.handle))
            }
        };
        let identity = &peers.all[peer].identity;
        let key = SecretKey::from_seed(&rand::random());
        let time_left = Duration::from_secs(10);
        let hop = Hop { edge, hops_left: 1, time_left, ..Hop::default() };
        let request = Request { origin: Origin { op, key: key.public(), sealed: None }, hop };
        let sign = |kind: &str, body: &[u8]| identity.sign(kind, body);
        let sealer =
            Sealer { site: identity.site_key(), sign: &sign, journal: JournalMark::new(1, sign) };
        let origin = |_: &_, kind: &str, body: &[u8]| key.sign(kind, body);
        let (sealed, digest) =
            envelope::seal_request(&sealer, site, &request, origin, clock(), rand::random());
        Ask { peer, line, sealed, digest }
    };
    (0..count).map(one).collect()
}

fn place(is_too_large: bool) -> Op {
    let resources = match is_too_large {
        true => Resources { memory: Bytes::mib(1 << 24), ..SIZE },
        false => SIZE,
    };
    let descriptor = Descriptor {
        name: "asked".parse().expect("a legal name"),
        resources,
        disks: vec![],
        nics: vec![],
        restrictions: Restrictions::default(),
        monitoring: Default::default(),
    };
    Op::MigrationRequest {
        vm: VmId(rand::random()),
        request: RequestId(rand::random()),
        descriptor,
    }
}

/// Sends all of them, [`AT_ONCE`] at a time, and says how long that took. What comes back is in
/// their order.
pub(crate) async fn send(
    kind: Kind,
    asks: Vec<Ask>,
    lines: &Arc<[Line]>,
) -> Result<(Duration, Vec<Sealed>), Failure> {
    let count = asks.len();
    let mut shares: Vec<Vec<(usize, Ask)>> = (0..AT_ONCE).map(|_| Vec::new()).collect();
    for (at, ask) in asks.into_iter().enumerate() {
        shares[at % AT_ONCE].push((at, ask));
    }
    let begun = Instant::now();
    let askers: Vec<_> = shares
        .into_iter()
        .map(|share| {
            let lines = lines.clone();
            tokio::spawn(async move {
                let mut answers = Vec::with_capacity(share.len());
                for (at, ask) in share {
                    let mut line = lines[ask.line].clone();
                    let answer = match kind {
                        Kind::Shown => line.control(ask.sealed).await,
                        Kind::Refused | Kind::Offered => line.migration_request(ask.sealed).await,
                    };
                    answers.push((at, answer?.into_inner()));
                }
                Ok::<_, tonic::Status>(answers)
            })
        })
        .collect();
    let mut all = vec![Sealed::default(); count];
    for asker in askers {
        for (at, answer) in asker.await?? {
            all[at] = answer;
        }
    }
    Ok((begun.elapsed(), all))
}

/// Whether each answer is the site's, to that request, and what it should be.
pub(crate) fn check(
    kind: Kind,
    asks: &[Ask],
    answers: &[Sealed],
    peers: &Peers,
    site: SiteKey,
) -> Result<(), Failure> {
    for (ask, answer) in asks.iter().zip(answers) {
        let me = peers.all[ask.peer].identity.site_key();
        let answer = envelope::open_answer(answer, site, me, ask.digest)?.content.into_inner();
        if !kind.is_answered_by(&answer) {
            return Err(format!("{}: the node says {answer:?}", kind.name()).into());
        }
    }
    Ok(())
}

/// Processor time of the signatures of the plainest request alone: hop and origin verified, the
/// answer signed.
pub(crate) fn signatures() -> Duration {
    use model::key::Verify;
    const TIMES: u32 = 5000;
    let used = || Usage::of(std::process::id()).cpu;
    let (key, body) = (SecretKey::from_seed(&[7; 32]), [7; 400]);
    let signature = key.sign("request", &body);
    let before = used();
    for _ in 0..TIMES {
        for _ in 0..2 {
            let holds = model::key::Strict.verify(&key.public(), "request", &body, &signature);
            assert!(std::hint::black_box(holds));
        }
        std::hint::black_box(key.sign("answer", &body));
    }
    used().saturating_sub(before) / TIMES
}
