//! The stage of the attacks: a site v, and its peers m and n, which the test plays.
//!
//! m has placed `guest` at v by hand, so that the test has all of its keys; v has `away` at m, and
//! `home` runs at v itself; n has `other` at v.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::handing::Handing;
use crate::through::Through;
use federation_tests::process::hostile::{Hostile, site_key};
use federation_tests::process::{Federation, Guest, SOON, Site};
use model::key::{Payload, Strict};
use model::statement::{Cause, Fact};
use model::vm::{Disk, Restrictions};
use model::{
    Bytes, Certificate, Chain, Contract, Descriptor, Digest, EdgeHandle, Epoch, FileId,
    MigrationId, Monitoring, Offer, PowerState, Proposal, PublicKey, RequestId, Resources,
    SecretKey, Signature, Signed, SiteKey, Statement, Token, TransferEnd, VmId,
};
use proto::envelope::RequestDigest;
use proto::federation::Sealed;
use protocol::{
    Action, Answer, Down, Hop, Mode, Op, Origin, Outcome, Request, State, TargetRole, TargetStep,
};
use tonic::{Code, Status};
use transfer_proxy::{Serve, Share, TransferProxy};

/// A VM of m's that is not at v yet.
pub(crate) struct Bid {
    pub(crate) k0: SecretKey,
    /// m's key of epoch 0.
    pub(crate) owner: SecretKey,
    pub(crate) vm: VmId,
    pub(crate) chain: Chain,
    pub(crate) descriptor: Descriptor,
    pub(crate) request: RequestId,
    /// v's offer.
    pub(crate) offer: Offer,
    pub(crate) migration: MigrationId,
    pub(crate) controller: SecretKey,
    /// What m's proxy shows for the transfer.
    pub(crate) transfer: SecretKey,
    pub(crate) token: Token,
}

/// A VM of m's that v has everything of, and does not own yet.
pub(crate) struct Coming {
    pub(crate) bid: Bid,
    pub(crate) digest: Digest,
}

/// A request that was answered as it should be: what was sent, and the answer.
pub(crate) struct Kept {
    op: Op,
    sealed: Sealed,
    digest: RequestDigest,
    pub(crate) answer: Answer,
}

/// A migration of `guest` away from v, that m controls and is the Destination of.
pub(crate) struct Leave {
    pub(crate) migration: MigrationId,
    pub(crate) controller: SecretKey,
    pub(crate) vm_key: SecretKey,
    pub(crate) transfer: SecretKey,
}

pub(crate) struct Stage {
    pub(crate) m: Hostile,
    pub(crate) n: Hostile,
    pub(crate) federation: Federation,
    /// Everything that was asked as it should be, by name.
    kept: Mutex<BTreeMap<&'static str, Kept>>,
    pub(crate) guest: Bid,
    pub(crate) away: (VmId, EdgeHandle),
    pub(crate) home: VmId,
    pub(crate) other: (VmId, EdgeHandle),
    pub(crate) coming: Coming,
    pub(crate) leave: Leave,
    /// v's end of that migration, when it was asked for.
    pub(crate) prepared: Option<TransferEnd>,
    /// What of the guest has arrived at m.
    pub(crate) sent: Digest,
    /// v's own user wants something: that it was tried may be taken down.
    pub(crate) is_tried: bool,
    /// The secret of a ticket that was used.
    pub(crate) ticket: Vec<u8>,
    /// A VM of m's on its way through v.
    pub(crate) through: Option<Through>,
    /// A VM of v's that m has fetched.
    pub(crate) handing: Option<Handing>,
}

/// How v took an attack.
pub(crate) enum Heard {
    /// The call ended with a status, or did not come about.
    Ended(Status),
    /// v answered.
    Says(Answer),
    /// A program or a proxy said this.
    Words(String),
    /// The answer is that of before, or it is not.
    Again(Box<Answer>, Box<Answer>),
}

/// How v must take it.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The call ends with this status, in words that hold these.
    Code(Code, &'static str),
    /// It hangs up at the handshake. The caller's own library says so, in one way or another.
    HungUp,
    Unknown,
    Failed(&'static str),
    Gone(&'static str),
    Conflict,
    /// Nothing is decided, for this reason.
    Open(&'static str),
    /// The Source has other data.
    Differs,
    /// No offer is made, for this reason.
    NoOffer(&'static str),
    /// Whoever says it is not told that it counts for nothing.
    Ignored,
    /// A repeat gets the answer of the first time.
    AsBefore,
    /// A user of v, or of a proxy, reads these words.
    Words(&'static str),
}

/// One row of the table.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) refused: Refused,
    pub(crate) by: fn(&Stage) -> Heard,
}

pub(crate) const fn attack(
    name: &'static str,
    refused: Refused,
    by: fn(&Stage) -> Heard,
) -> Attack {
    Attack { name, refused, by }
}

/// What may not change: all that is durable at v, and all guests there are.
#[derive(Debug, PartialEq)]
pub(crate) struct Standing {
    rows: usize,
    state: State,
    peers: Vec<(String, Vec<u8>)>,
    guests: Vec<Guest>,
    stays: Vec<PathBuf>,
}

impl Standing {
    /// What is otherwise afterwards, if anything is.
    pub(crate) fn changed(&self, after: &Self) -> Option<String> {
        if self == after {
            return None;
        }
        let what = [
            ("rows", self.rows != after.rows),
            ("state", self.state != after.state),
            ("peers", self.peers != after.peers),
            ("guests", self.guests != after.guests),
            ("stays", self.stays != after.stays),
        ];
        let what: Vec<&str> = what.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
        Some(format!("it has changed {}", what.join(", ")))
    }
}

pub(crate) fn a_key() -> SecretKey {
    SecretKey::from_seed(&rand::random())
}

pub(crate) fn a_hop(edge: Option<EdgeHandle>) -> Hop {
    Hop { edge, hops_left: 4, time_left: Duration::from_secs(5), ..Hop::default() }
}

pub(crate) fn request(op: Op, by: &SecretKey, hop: Hop) -> Request {
    Request { origin: Origin { op, key: by.public(), sealed: None }, hop }
}

/// Signs a statement as the holder of a key does.
pub(crate) fn signed<T: Payload>(value: &T, by: &SecretKey) -> Signed<T> {
    Signed::seal(value, by.public(), |kind, body| by.sign(kind, body))
}

pub(crate) fn descriptor(name: &str) -> Descriptor {
    Descriptor {
        name: name.parse().unwrap(),
        resources: Resources { cpus: 1, memory: Bytes::mib(128) },
        disks: vec![Disk { file: FileId::disk(0), capacity: Bytes(1 << 20) }],
        nics: vec![],
        restrictions: Restrictions::default(),
        monitoring: Monitoring::default(),
    }
}

impl From<Result<Answer, Status>> for Heard {
    fn from(heard: Result<Answer, Status>) -> Self {
        heard.map_or_else(Self::Ended, Self::Says)
    }
}

impl Heard {
    /// What is wrong with it, if it is not what must be heard.
    pub(crate) fn fault(self, refused: &Refused) -> Option<String> {
        let (is_so, said) = match self {
            Self::Ended(status) => {
                let said = format!("{status:?}");
                let is_so = match refused {
                    Refused::Code(code, words) => status.code() == *code && said.contains(words),
                    Refused::HungUp => is_hung_up(&status),
                    _ => false,
                };
                (is_so, said)
            }
            Self::Words(said) => {
                (matches!(refused, Refused::Words(words) if said.contains(words)), said)
            }
            Self::Again(before, now) => {
                (matches!(refused, Refused::AsBefore) && before == now, format!("{now:?}"))
            }
            Self::Says(answer) => {
                let is_so = match (refused, &answer) {
                    (Refused::Unknown, Answer::Unknown)
                    | (Refused::Conflict, Answer::Conflict { .. })
                    | (Refused::Differs, Answer::Verified(Outcome::Differs { .. }))
                    | (Refused::Ignored, Answer::Done) => true,
                    (Refused::Failed(words), Answer::Failed { reason })
                    | (Refused::Gone(words), Answer::Gone { reason })
                    | (Refused::Open(words), Answer::Verified(Outcome::Open { reason })) => {
                        reason.contains(words)
                    }
                    (Refused::NoOffer(words), Answer::Offers { offers, reasons }) => {
                        offers.is_empty() && reasons.iter().any(|reason| reason.contains(words))
                    }
                    _ => false,
                };
                (is_so, format!("{answer:?}"))
            }
        };
        (!is_so).then(|| format!("it should be {refused:?}, and is {said}"))
    }
}

/// Whether the connection ended without an answer: a node gives neither of these codes.
pub(crate) fn is_hung_up(status: &Status) -> bool {
    matches!(status.code(), Code::Unknown | Code::Cancelled)
}

/// v with its peers, as real nodes, and what they have at each other.
fn federation() -> (Federation, [VmId; 3]) {
    let mut federation = Federation::new();
    for name in ["v", "m", "n"] {
        federation.add(name).start();
    }
    federation.join("v", "m");
    federation.join("v", "n");
    federation["v"].host("v1", 6);
    federation["m"].host("m1", 1);
    let vms = [("v", "away"), ("v", "home"), ("n", "other")].map(|(site, name)| {
        let vm = federation.import(site, name);
        match name {
            "away" => federation[site].done(&["vm", "place", name, "--peer", "m"]),
            "home" => federation[site].done(&["vm", "place", name, "--local-only"]),
            _ => federation[site].done(&["vm", "place", name, "--peer", "v"]),
        };
        vm
    });
    federation.settle(&vms[0], "m", true, &["v", "m"]);
    federation.settle(&vms[1], "v", true, &["v"]);
    federation.settle(&vms[2], "v", true, &["v", "n"]);
    federation["m"].stop();
    federation["n"].stop();
    (federation, vms.map(|vm| vm.parse().unwrap()))
}

impl Stage {
    pub(crate) fn set() -> Self {
        let (federation, [away, home, other]) = federation();
        let [m, n] =
            ["m", "n"].map(|name| Hostile::instead_of(&federation[name], &federation["v"]));
        let vms = federation["v"].state().vms;
        let Down::Edge(below) = &vms[&away].down else { panic!("it is at m") };
        let above = vms[&other].up.as_ref().unwrap();
        let (away, other) = ((away, below.handle), (other, above.handle));
        let [guest, coming] =
            ["guest", "coming"].map(|name| Bid::ask(&m, &federation["v"], descriptor(name), 0));
        let coming = Coming { bid: coming, digest: Digest([0; 32]) };
        let kept = Mutex::default();
        let (leave, prepared, sent) = (Leave::new(), None, Digest([0; 32]));
        let mut stage = Self {
            m,
            n,
            federation,
            kept,
            guest,
            away,
            home,
            other,
            coming,
            leave,
            prepared,
            sent,
            is_tried: false,
            ticket: vec![],
            through: None,
            handing: None,
        };
        let digest = stage.fetched("initiate", &stage.guest);
        let deliver = stage.deliver(&stage.guest, digest);
        stage.keep("deliver", &deliver, &stage.guest.controller);
        stage.coming.digest = stage.fetched("initiate the second", &stage.coming.bid);
        stage.guest_runs();
        stage
    }

    pub(crate) fn v(&self) -> &Site {
        &self.federation["v"]
    }

    pub(crate) fn v_key(&self) -> SiteKey {
        site_key(self.v())
    }

    /// Waits until v's journal says that the guest runs.
    pub(crate) fn guest_runs(&self) {
        let vm = self.guest.vm;
        self.federation.wait_for("the guest runs at v", SOON, || {
            let state = self.v().state();
            let stay = state.vms.get(&vm).and_then(|vm| vm.stay.clone()).ok_or("no stay")?;
            let runs = stay.power == PowerState::Active && !stay.starting;
            let at_v = self.federation.runs_at(&vm.to_string(), "v").is_some();
            if runs && at_v { Ok(()) } else { Err(format!("{stay:?}")) }
        });
    }

    pub(crate) fn standing(&self) -> Standing {
        let mut state = self.v().state();
        let mut rows = self.v().rows().len();
        if self.is_tried {
            rows = 0;
            state.journeys.clear();
            state.migrations.retain(|_, migration| {
                let dropped = |target: &TargetRole| target.step == TargetStep::Dropped;
                let has_target = migration.target.as_ref().is_some_and(|target| !dropped(target));
                has_target || migration.source.is_some() || migration.pending.is_some()
            });
            state.reindex();
        }
        let vms = [self.guest.vm, self.coming.bid.vm, self.away.0, self.home, self.other.0];
        let mut guests: Vec<Guest> =
            vms.iter().flat_map(|vm| self.federation.guests(&vm.to_string())).collect();
        guests.sort_by(|one, other| one.folder.cmp(&other.folder));
        let mut stays = self.v().stays();
        stays.sort();
        Standing { rows, state, peers: self.v().peers(), guests, stays }
    }

    /// Waits until v fetches nothing any more, and nothing is left of what it has fetched.
    pub(crate) fn dropped(&self) {
        let away = self.away.0.to_string();
        self.federation.wait_for("v drops what it fetched", SOON, || {
            let state = self.v().state();
            let targets = state.migrations.values().filter_map(|known| known.target.as_ref());
            let coming = self.coming.bid.migration;
            let fetched = targets.filter(|target| target.step.arrives()).count();
            let waits = usize::from(state.migrations.contains_key(&coming));
            let left = self.v().files_of(&away);
            let is_over = fetched == waits && left.is_empty();
            if is_over { Ok(()) } else { Err(format!("{fetched} targets, {left:?}")) }
        });
    }

    // What m asks.

    pub(crate) fn ask(&self, request: &Request, by: &SecretKey) -> Heard {
        self.m.ask(self.v(), request, by).into()
    }

    /// Asks as m, with a key that was never seen.
    pub(crate) fn says(&self, op: Op, edge: Option<EdgeHandle>) -> Heard {
        let key = a_key();
        self.ask(&request(op, &key, a_hop(edge)), &key)
    }

    /// The same, as n.
    pub(crate) fn n_says(&self, op: Op, edge: Option<EdgeHandle>) -> Heard {
        let key = a_key();
        self.n.ask(self.v(), &request(op, &key, a_hop(edge)), &key).into()
    }

    /// Asks for what is m's to ask, and keeps what was sent.
    pub(crate) fn keep(&self, name: &'static str, request: &Request, by: &SecretKey) -> Answer {
        let (sealed, digest) = self.m.seal(self.v_key(), request, by);
        let op = request.origin.op.clone();
        let answer = self.m.send(self.v(), &op, sealed.clone()).unwrap();
        let answer = self.m.open(self.v(), &answer, digest);
        self.kept().insert(name, Kept { op, sealed, digest, answer: answer.clone() });
        answer
    }

    pub(crate) fn kept(&self) -> MutexGuard<'_, BTreeMap<&'static str, Kept>> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Sends the very bytes again.
    pub(crate) fn again(&self, name: &str) -> Heard {
        let kept = self.kept();
        let kept = &kept[name];
        match self.m.send(self.v(), &kept.op, kept.sealed.clone()) {
            Ok(answer) => {
                let answer = self.m.open(self.v(), &answer, kept.digest);
                Heard::Again(Box::new(kept.answer.clone()), Box::new(answer))
            }
            Err(status) => Heard::Ended(status),
        }
    }

    pub(crate) fn destroy(&self) -> Op {
        Op::Control { vm: self.guest.vm, action: Action::Destroy }
    }

    /// The edge of the guest's path.
    pub(crate) fn edge(&self) -> Option<EdgeHandle> {
        Some(self.guest.offer.edge)
    }

    /// m asks for the guest's state, which is its right; what is wrong with the answer, if it is.
    pub(crate) fn guest_answers(&self) -> Option<String> {
        let show = Op::Control { vm: self.guest.vm, action: Action::Show };
        match self.says(show, self.edge()) {
            Heard::Says(Answer::State { power: PowerState::Active, .. }) => None,
            Heard::Says(other) => Some(format!("{other:?}")),
            Heard::Ended(status) => Some(format!("{status:?}")),
            Heard::Words(_) | Heard::Again(..) => unreachable!("it was asked over the network"),
        }
    }

    // Placing a VM at v.

    pub(crate) fn bid(&self) -> Bid {
        Bid::ask(&self.m, self.v(), descriptor("new"), 0)
    }

    /// What m must send to have an offer taken.
    pub(crate) fn initiate(&self, bid: &Bid) -> Request {
        let op = Op::InitiateTransfer {
            vm: bid.vm,
            migration: bid.migration,
            chain: bid.chain.clone(),
            profile: None,
            boot: true,
            monitoring: Monitoring::default(),
        };
        let source = self.source(bid, &bid.transfer.public(), &bid.owner);
        let taken = Some(self.taken(bid, &self.m, &bid.offer));
        let hop = Hop { source: Some(source), taken, ..a_hop(Some(bid.offer.edge)) };
        request(op, &bid.controller, hop)
    }

    /// m's end of the transfer.
    pub(crate) fn source(&self, bid: &Bid, shows: &PublicKey, by: &SecretKey) -> TransferEnd {
        TransferEnd {
            uri: self.m.proxy().uri(),
            token: bid.token.clone(),
            relay: None,
            transfer_key: *shows,
            vm_key: by.public(),
            proof: by.sign(TransferEnd::TYPE, &shows.0),
        }
    }

    /// A customer's signature of the contract that comes with an offer.
    pub(crate) fn taken(&self, bid: &Bid, customer: &Hostile, offer: &Offer) -> Signature {
        let contract = Contract {
            vm: bid.vm,
            descriptor: bid.descriptor.digest(),
            edge: offer.edge,
            provider: self.v_key(),
            customer: self.m.identity().site_key(),
            terms: offer.terms.clone(),
        };
        let proposal = Proposal { contract, provider: offer.proposal.unwrap() };
        assert!(proposal.holds(&Strict), "v has signed it");
        proposal.take(|kind, body| customer.identity().sign(kind, body)).customer
    }

    /// Has v fetch a VM, and returns the digest that it states.
    fn fetched(&self, name: &'static str, bid: &Bid) -> Digest {
        let disk = self.federation.folder().join(format!("{}.raw", bid.vm));
        std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
        let serve = Serve {
            migration: bid.migration,
            vm: bid.vm,
            token_hash: bid.token.hash(),
            hint: bid.token.hint(),
            key: bid.transfer.clone(),
            peer_key: bid.offer.target.transfer_key,
            byte_budget: Bytes::mib(64),
            dial: None,
            share: Share::default(),
        };
        self.m.proxy().serve(serve).unwrap();
        self.m.proxy().provide(bid.migration, vec![(FileId::disk(0), disk)]);
        let answer = self.keep(name, &self.initiate(bid), &bid.controller);
        let Answer::Arrived { ready, .. } = answer else { panic!("{answer:?}") };
        match ready.open(&bid.offer.target.vm_key, &Strict).unwrap() {
            Statement { fact: Fact::Ready { digest }, .. } => digest,
            other => panic!("{other:?}"),
        }
    }

    /// The certificate that gives v what has arrived there.
    pub(crate) fn release(&self, bid: &Bid, digest: Digest) -> Certificate {
        let cause = Cause::Release { migration: bid.migration, digest };
        let owner = bid.offer.target.vm_key;
        Certificate { vm: bid.vm, epoch: Epoch(1), owner, cause }
    }

    pub(crate) fn deliver(&self, bid: &Bid, digest: Digest) -> Request {
        let certificate = signed(&self.release(bid, digest), &bid.owner);
        let op = Op::Deliver { vm: bid.vm, migration: bid.migration, certificate };
        request(op, &bid.controller, a_hop(Some(bid.offer.edge)))
    }

    // Taking the guest away from v.

    pub(crate) fn force(&self, leave: &Leave) -> Request {
        let op = Op::ForcedMigration {
            vm: self.guest.vm,
            migration: leave.migration,
            target_vm_key: leave.vm_key.public(),
            target_transfer_key: leave.transfer.public(),
            mode: Mode::Hibernate,
        };
        request(op, &leave.controller, a_hop(self.edge()))
    }

    pub(crate) fn verification(&self, ready: Option<Signed<Statement>>) -> Request {
        let (vm, migration) = (self.guest.vm, self.leave.migration);
        let op = Op::TransferVerification { vm, migration, ready };
        request(op, &self.leave.controller, a_hop(self.edge()))
    }
}

impl Leave {
    pub(crate) fn new() -> Self {
        let migration = MigrationId(rand::random());
        Self { migration, controller: a_key(), vm_key: a_key(), transfer: a_key() }
    }
}

impl Bid {
    /// A new VM of m's, and an offer for it from a site so many sites beyond v.
    pub(crate) fn ask(m: &Hostile, v: &Site, descriptor: Descriptor, distance: u8) -> Self {
        let k0 = a_key();
        let bid = Self::of(m, v, descriptor, VmId::of(&k0.public()), distance);
        let (vm, epoch, owner) = (bid.vm, Epoch(0), bid.owner.public());
        let import = signed(&Certificate { vm, epoch, owner, cause: Cause::Import }, &k0);
        let chain = Chain { k0: k0.public(), certificates: vec![import] };
        Self { k0, chain, ..bid }
    }

    /// The same for a VM of this id, which has no key and no chain yet.
    pub(crate) fn of(
        m: &Hostile,
        v: &Site,
        descriptor: Descriptor,
        vm: VmId,
        distance: u8,
    ) -> Self {
        let (k0, owner, controller) = (a_key(), a_key(), a_key());
        let chain = Chain { k0: k0.public(), certificates: vec![] };
        let id = RequestId(rand::random());
        let op = Op::MigrationRequest { vm, request: id, descriptor: descriptor.clone() };
        let answer = m.ask(v, &request(op, &controller, a_hop(None)), &controller).unwrap();
        let Answer::Offers { offers, .. } = &answer else { panic!("{answer:?}") };
        let offer = offers.iter().find(|offer| offer.distance == distance);
        let offer = offer.unwrap_or_else(|| panic!("{answer:?}")).clone();
        Self {
            k0,
            owner,
            vm,
            chain,
            descriptor,
            request: id,
            offer,
            migration: MigrationId(rand::random()),
            controller,
            transfer: a_key(),
            token: Token(rand::random()),
        }
    }
}
