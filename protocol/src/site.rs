//! The machine: one event in, rows and effects out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use model::decision::Policy;
use model::key::Verify;
use model::{
    Digest, EdgeHandle, Epoch, HostName, MigrationId, OperationId, PeerName, Peering, Proposal,
    PublicKey, RequestId, RunProfile, Signature, Signed, SiteKey, Terms, Time, Token, TransferEnd,
    VmId,
};

use crate::effect::{Ask, CallError, CallId, Caller, Command, Duty, Effect, Event, Output, Reply};
use crate::kept::{Keepsake, Kept};
use crate::message::{Answer, Hop, Op, Origin, Request};
use crate::row::{Down, Edge, Party, Row};
use crate::state::State;
use crate::timer::{Timer, Timers};

/// Everything outside the machine that it may use while it handles an event.
pub trait World: Verify {
    /// The time.
    fn now(&self) -> Time;
    /// 32 random bytes.
    fn random(&mut self) -> [u8; 32];
    /// A new key pair; the private half is kept with the rows of this event.
    fn create_key(&mut self) -> PublicKey;
    /// A signature by a key that [`World::create_key`] made.
    fn sign(&self, key: &PublicKey, payload_type: &str, body: &[u8]) -> Signature;
    /// A signature by this site's own identity.
    fn sign_as_site(&self, payload_type: &str, body: &[u8]) -> Signature;
    /// The token that this site's Source gives out for a migration: always the same one, derived
    /// from a secret of the site, so that it need not be stored.
    fn source_token(&self, migration: MigrationId) -> Token;
    /// A token that this site's proxy gives out as a relay, to the Source's side or to the
    /// Destination's: always the same one, derived from a secret of the site.
    fn relay_token(&self, of: EdgeHandle, for_source: bool) -> Token;
    /// The key that this site's proxy shows as a relay, derived in the same way.
    fn relay_key(&mut self, of: EdgeHandle) -> PublicKey;
    /// The URI of the transfer proxy for files on a host.
    fn proxy_uri(&self, host: &HostName) -> model::ProxyUri;
    /// The same for this site's own proxies, whether or not anybody else can dial it.
    fn inner_uri(&self, host: &HostName) -> model::ProxyUri;
    /// The identity key of this site, or of a peer of that name.
    fn identity(&self, party: &Party) -> Option<SiteKey>;
    /// The site's rules.
    fn policy(&self) -> &dyn Policy;
}

/// What an operator sets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// The country that the site tells (ISO 3166-1); empty for none.
    pub country: String,
    /// Price per hour that it asks, in thousandths.
    pub price_milli: u64,
    /// What it owes for each time that a limit of service is broken, in thousandths.
    pub penalty_milli: u64,
    /// How long a peer may take to answer a Migration request.
    pub request_limit: Duration,
    /// How long an offer stands.
    pub offer_life: Duration,
    /// How long an admitted migration may stay without READY.
    pub admit_life: Duration,
    /// How much longer what is READY is kept while the Source says nothing.
    pub ready_life: Duration,
    /// How long a Source waits, from the token to READY, before it aborts by itself.
    pub source_patience: Duration,
    /// How long a frozen copy is kept after the receipt.
    pub purge_after: Duration,
    /// How many offers a journey tries.
    pub max_tries: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            country: String::new(),
            price_milli: 0,
            penalty_milli: 0,
            request_limit: Duration::from_secs(10),
            offer_life: Duration::from_secs(120),
            admit_life: Duration::from_secs(24 * 3600),
            ready_life: Duration::from_secs(7 * 24 * 3600),
            source_patience: Duration::from_secs(24 * 3600),
            purge_after: Duration::from_secs(24 * 3600),
            max_tries: 3,
        }
    }
}

/// An offer that this site made, or passed on, in memory only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct OfferMade {
    pub vm: VmId,
    pub request: RequestId,
    pub asker: Party,
    pub descriptor: model::Descriptor,
    pub terms: Terms,
    /// The contract that its asker may take.
    pub proposal: Option<Proposal>,
    pub at: OfferAt,
    /// When it is forgotten: its end, or sooner where whoever made it has it stand for very long.
    pub forget: Time,
}

/// Who stands behind an offer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum OfferAt {
    /// A host of this site.
    Local { host: HostName, end: TransferEnd },
    /// A peer, by its own edge, the contract with it that may be taken, and whether this site's
    /// proxy stands in the Destination's place.
    Peer(Edge, Proposal, bool),
}

/// A Migration request on its way: this site's own journey, or one that it passes on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Gathering {
    pub vm: VmId,
    pub asker: Asker,
    pub descriptor: model::Descriptor,
    pub awaiting: BTreeSet<CallId>,
    /// Offer as the asker sees it, and the peer that it came by.
    pub offers: Vec<(Option<PeerName>, model::Offer)>,
    pub reasons: Vec<String>,
    pub asked: BTreeSet<PeerName>,
    /// When a repeat need not be recognised any more.
    pub forget: Time,
}

/// Who a gathering is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    /// A journey of this site.
    Journey(OperationId),
    /// A peer's request.
    Peer { peer: PeerName, callers: Vec<Caller> },
    /// A peer's request that was answered; kept so that a repeat gets the same answer.
    Answered { peer: PeerName, answer: Box<Answer> },
}

/// A migration that its Controller gave up before this site, which has the VM, had heard of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct GivenUp {
    /// Who said so.
    pub from: Party,
    /// Of which VM.
    pub vm: VmId,
    /// When what was said before it cannot be on its way any more.
    pub forget: Time,
}

impl Keepsake for GivenUp {
    fn asker(&self) -> Party {
        self.from.clone()
    }

    fn until(&self) -> Time {
        self.forget
    }
}

impl Keepsake for OfferMade {
    fn asker(&self) -> Party {
        self.asker.clone()
    }

    fn until(&self) -> Time {
        self.forget
    }
}

impl Keepsake for Gathering {
    fn asker(&self) -> Party {
        match &self.asker {
            Asker::Journey(_) => Party::Here,
            Asker::Peer { peer, .. } | Asker::Answered { peer, .. } => Party::Peer(peer.clone()),
        }
    }

    fn until(&self) -> Time {
        self.forget
    }

    /// One that is answered: a repeat of it would be taken for a new one.
    fn may_go(&self) -> bool {
        matches!(self.asker, Asker::Answered { .. })
    }
}

/// What to do when a call that this site made ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Waiting {
    /// It belongs to a gathering.
    Gather(RequestId, PeerName),
    /// It is the step of a journey; the text names it.
    Journey(OperationId, &'static str),
    /// It was passed on for somebody; of a forced migration, whether this site stands in the
    /// Destination's place.
    Relay(Caller, Option<Edge>, Box<Op>, bool),
    /// A user waits for it; if the VM named here is gone then, this site is to know so.
    User(u64, Option<VmId>),
    /// A report up the path.
    Report(VmId),
    /// Whether this peer knows of a newer certificate of a VM that is held.
    Confirm(VmId, PeerName),
    /// The same, for a site below; or for one above, at the end of a path that may come.
    ConfirmFor { caller: Caller, vm: VmId, of: Option<(MigrationId, Option<EdgeHandle>)> },
    /// A user wants a VM back past an Intermediary that is gone.
    Reclaim(u64, VmId, Edge),
    /// Nobody waits.
    Nobody,
}

/// What a step of a journey knows besides its rows. Lost at a restart, and found again by asking.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct JourneyMemory {
    pub phase: Phase,
    pub request: Option<RequestId>,
    pub asked: BTreeSet<PeerName>,
    /// Offers not tried yet, best first.
    pub left: Vec<(Party, model::Offer)>,
    pub tries: usize,
    /// How many offers of each party were tried, until all were: an eviction that asks again goes
    /// on with the others.
    pub tried: BTreeMap<Party, usize>,
    /// Rounds of offers that all came to nothing, one after the other.
    pub rounds: u32,
    pub failures: u32,
    pub source: Option<TransferEnd>,
    /// This site stands in the Destination's place, towards the Source.
    pub stands: bool,
    pub chain: Option<model::Chain>,
    pub active: bool,
    pub profile: Option<RunProfile>,
    pub monitoring: model::Monitoring,
    pub ready: Option<Signed<model::Statement>>,
    pub certificate: Option<Signed<model::Certificate>>,
    pub back: Option<Signed<model::Certificate>>,
    pub last_failure: Option<String>,
    /// How the journey ends as soon as the Source says that the VM stays.
    pub ending: Option<crate::row::Result>,
    /// The Destination may have been asked to fetch what was chosen.
    pub sent: bool,
    /// A call of this journey is on its way.
    pub busy: bool,
    /// Digest of the descriptor that offers were asked for with.
    pub asked_for: Option<Digest>,
}

/// The steps of the main migration algorithm (papers/003, III-C-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) enum Phase {
    /// Step 1–3: offers.
    #[default]
    Collect,
    /// Step 4: forced migration.
    Force,
    /// Step 5: initiate transfer.
    Initiate,
    /// Step 6: transfer verification.
    Verify,
    /// Step 8: hand over.
    Deliver,
    /// Step 8: tell the Source that it came back.
    Handback,
    /// Close the old path.
    Retire,
    /// Have the Source abort, before the next offer.
    Abort,
    /// Nobody below or here has room: the site above is asked.
    PassUp,
}

/// A site's behaviour towards its peers. See the crate's documentation for the calling order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Site {
    /// What is durable.
    pub state: State,
    pub(crate) config: Config,
    pub(crate) peers: BTreeMap<PeerName, Peering>,
    pub(crate) profiles: BTreeMap<HostName, RunProfile>,
    pub(crate) offers: Kept<EdgeHandle, OfferMade>,
    pub(crate) gatherings: Kept<RequestId, Gathering>,
    pub(crate) given_up: Kept<MigrationId, GivenUp>,
    pub(crate) waiting: BTreeMap<CallId, Waiting>,
    pub(crate) journeys: BTreeMap<OperationId, JourneyMemory>,
    /// Callers that wait for a transfer to end, and for a delivery to be accepted.
    pub(crate) arriving: BTreeMap<MigrationId, Vec<Caller>>,
    pub(crate) delivering: BTreeMap<MigrationId, Vec<Caller>>,
    /// The certificate that an accepting Destination holds while its guest is launched.
    pub(crate) accepting: BTreeMap<MigrationId, Signed<model::Certificate>>,
    /// Guests whose process is being made, and where.
    pub(crate) launching: BTreeMap<(VmId, Epoch), HostName>,
    /// Guests that are being saved, or stopped to be moved, until their next event.
    pub(crate) quieting: BTreeSet<(VmId, Epoch)>,
    /// Guests that were found executing before their host told its profile.
    pub(crate) unprofiled: BTreeSet<VmId>,
    /// Callers that wait for a guest to change its state, and what they want.
    pub(crate) controls: BTreeMap<VmId, Vec<(Caller, crate::message::Action)>>,
    pub(crate) reports: BTreeMap<VmId, Duty>,
    /// Of VMs that are held, the peers that know of nothing newer.
    pub(crate) confirmed: BTreeMap<VmId, BTreeSet<PeerName>>,
    /// VMs that are held and came here by what was forgotten: the operator lets them go, or a chain
    /// that shows that they have left.
    pub(crate) came: BTreeSet<VmId>,
    pub(crate) timers: Timers,
    pub(crate) next_call: u64,
}

impl Site {
    /// A site with what its journal says, and nothing else.
    pub fn new(config: Config, state: State) -> Self {
        Self {
            state,
            config,
            peers: BTreeMap::new(),
            profiles: BTreeMap::new(),
            offers: Kept::default(),
            gatherings: Kept::default(),
            given_up: Kept::default(),
            waiting: BTreeMap::new(),
            journeys: BTreeMap::new(),
            arriving: BTreeMap::new(),
            delivering: BTreeMap::new(),
            accepting: BTreeMap::new(),
            launching: BTreeMap::new(),
            quieting: BTreeSet::new(),
            unprofiled: BTreeSet::new(),
            controls: BTreeMap::new(),
            reports: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            came: BTreeSet::new(),
            timers: Timers::default(),
            next_call: 0,
        }
    }

    /// Handles one event.
    pub(crate) fn handle(&mut self, world: &mut dyn World, event: Event) -> Output {
        let mut step = Step { site: self, world, out: Output::default(), inbox: VecDeque::new() };
        step.inbox.push_back(event);
        step.run();
        step.out
    }

    /// Tells which peers there are now, and on what terms. The machine only knows peers that it
    /// was told of.
    pub fn set_peers(&mut self, peers: BTreeMap<PeerName, Peering>) {
        self.peers = peers;
    }

    /// When the next [`Site::turn`] is due at the latest.
    pub fn next_deadline(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }
}

/// One event being handled.
pub(crate) struct Step<'a> {
    pub site: &'a mut Site,
    pub world: &'a mut dyn World,
    pub out: Output,
    pub inbox: VecDeque<Event>,
}

impl Step<'_> {
    pub(crate) fn run(&mut self) {
        while let Some(event) = self.inbox.pop_front() {
            self.dispatch(event);
        }
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Request { caller, from, request } => {
                self.on_request(caller, Party::Peer(from), *request);
            }
            Event::Answered { call, answer } => self.on_answer(call, answer.map(|a| *a)),
            Event::Ask { ask, wish } => self.on_ask(ask, *wish),
            Event::Guest { vm, epoch, event } => self.on_guest(vm, epoch, event),
            Event::Transfer { migration, event } => self.on_transfer(migration, event),
            Event::Profile(host, profile) => {
                self.site.profiles.insert(host.clone(), profile);
                self.profile_is_known(&host);
            }
            Event::Fence { journal } => self.fence(journal),
            Event::Tick => self.on_tick(),
        }
    }

    fn on_tick(&mut self) {
        let now = self.world.now();
        while let Some((at, timer)) = self.site.timers.first().cloned()
            && at <= now
        {
            self.site.timers.disarm(&timer);
            match timer {
                Timer::Journey(operation) => self.drive(operation),
                Timer::Collect(request) => self.close_gathering(request),
                Timer::SourceDeadline(migration) => self.source_deadline(migration),
                Timer::AdmitExpiry(migration) => self.admit_expired(migration),
                Timer::Pull(migration) => self.dial_again(migration),
                Timer::Lapse(migration) => self.lapse(migration),
                Timer::Relay(migration) => self.end_relay(migration),
                Timer::Purge(migration) => self.purge(migration),
                Timer::Guest(vm) => self.see_to_guest(vm),
                Timer::Report(vm) => self.send_report(vm),
                Timer::Confirm(vm) => self.confirm(vm),
                Timer::Leave(peer) => drop(self.leave(&peer)),
                Timer::Offers => self.forget_what_is_old(),
            }
        }
    }

    /// Sends one request up, down or here, and remembers what its answer is for.
    fn on_request(&mut self, caller: Caller, from: Party, request: Request) {
        let (vm, migration) = (request.origin.op.vm(), request.origin.op.migration());
        let known = migration.and_then(|id| self.site.state.migrations.get(&id));
        if known.is_some_and(|known| known.vm != vm) {
            // A migration is of one VM. Who says otherwise would act on the files of another.
            return self.answer(caller, Answer::Unknown);
        }
        match &request.origin.op {
            Op::MigrationRequest { .. } => self.migration_request(caller, from, request),
            Op::Withdraw { vm, request: id } => {
                let (vm, id) = (*vm, *id);
                self.withdraw(vm, id, &from);
                self.answer(caller, Answer::Done);
            }
            Op::Evict { vm, reason } => {
                let (vm, reason) = (*vm, reason.clone());
                self.evict_from_below(caller, from, vm, reason, request.hop);
            }
            Op::Report { .. } => self.report_from_below(caller, &from, request),
            Op::Confirm { vm } => {
                let vm = *vm;
                self.confirm_asked(caller, &from, vm, &request.hop);
            }
            Op::Reclaim { .. } => self.reclaim(caller, &from, &request),
            Op::InitiateTransfer { .. } | Op::Deliver { .. } => {
                self.along_new_path(caller, from, request);
            }
            Op::ForcedMigration { .. }
            | Op::TransferVerification { .. }
            | Op::Handback { .. }
            | Op::Retire { .. }
            | Op::Superseded { .. }
            | Op::Monitor { .. }
            | Op::Control { .. } => self.along_old_path(caller, from, request),
        }
    }

    fn on_answer(&mut self, call: CallId, answer: Result<Answer, CallError>) {
        let Some(waiting) = self.site.waiting.remove(&call) else { return };
        match waiting {
            Waiting::Gather(request, peer) => self.gathered(request, peer, call, answer),
            Waiting::Journey(operation, _) => self.journey_answer(operation, answer),
            Waiting::Relay(caller, came, op, stands) => {
                self.relayed(caller, came, (*op, stands), answer);
            }
            Waiting::User(ask, destroys) => {
                if let (Some(vm), Ok(Answer::Done)) = (destroys, &answer) {
                    self.destroyed_below(vm);
                }
                self.reply(ask, user_reply(answer));
            }
            Waiting::Report(vm) => self.report_ended(vm, answer),
            Waiting::Confirm(vm, peer) => self.confirmed(vm, peer, answer),
            Waiting::ConfirmFor { caller, vm, of: None } => {
                self.confirmed_above(caller, vm, answer);
            }
            Waiting::ConfirmFor { caller, vm, of: Some(asked) } => {
                self.confirmed_below(caller, vm, asked, answer);
            }
            Waiting::Reclaim(ask, vm, edge) => self.reclaimed(ask, vm, edge, answer),
            Waiting::Nobody => {}
        }
    }

    fn on_ask(&mut self, ask: u64, wish: Ask) {
        match wish {
            Ask::Import { descriptor, k0 } => self.import(ask, descriptor, k0),
            Ask::AddHost(host, capacity) => {
                self.persist(Row::HostAdded { host, capacity });
                self.reply(ask, Reply::Done);
            }
            Ask::RemoveHost(host) => self.remove_host(ask, host),
            Ask::DrainHost(host, draining) => self.drain_host(ask, host, draining),
            Ask::Move { operation, vm, peers, local_only, boot, mode, dry_run } => {
                let now = self.world.now();
                let goal = crate::row::Goal {
                    boot,
                    mode,
                    peers,
                    local_only,
                    leave: None,
                    evict: None,
                    dry_run,
                    deadline: now.after(self.site.config.source_patience),
                };
                self.ask_move(ask, operation, vm, goal);
            }
            Ask::Evict { operation, vm, reason, within } => {
                self.ask_evict(ask, operation, vm, reason, within);
            }
            Ask::Adopt { vm, statement } => self.ask_adopt(ask, vm, statement),
            Ask::Reclaim { vm, at } => self.ask_reclaim(ask, vm, at),
            Ask::Unfence { vm } => self.ask_unfence(ask, vm),
            Ask::Cancel(operation) => self.cancel(ask, operation),
            Ask::Leave(peer) => self.ask_leave(ask, peer),
            Ask::Control(vm, action) => self.ask_control(ask, vm, action),
            Ask::Monitor(vm, section) => self.ask_monitor(ask, vm, section),
        }
    }

    // What the other files use.

    /// Writes a row, and lets it count at once.
    pub(crate) fn persist(&mut self, row: Row) {
        self.site.state.apply(&row).expect("the machine only writes rows that follow");
        self.out.rows.push(row);
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.out.effects.push(effect);
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.effect(Effect::Do(command));
    }

    pub(crate) fn note(&mut self, vm: VmId, text: impl Into<String>) {
        self.effect(Effect::Note { vm, text: text.into() });
    }

    pub(crate) fn reply(&mut self, ask: u64, reply: Reply) {
        self.effect(Effect::Reply { ask, reply });
    }

    pub(crate) fn answer(&mut self, caller: Caller, answer: Answer) {
        match caller {
            Caller::Own(call) => {
                self.inbox.push_back(Event::Answered { call, answer: Ok(Box::new(answer)) })
            }
            Caller::Peer(_) => self.effect(Effect::Answer { caller, answer: Box::new(answer) }),
        }
    }

    /// Answers that something failed: to this site in its own words, to others without its inside.
    pub(crate) fn answer_failed(&mut self, caller: Caller, reason: &str, outward: &str) {
        let reason = match caller {
            Caller::Own(_) => reason,
            Caller::Peer(_) => outward,
        };
        self.answer(caller, Answer::Failed { reason: reason.to_owned() });
    }

    pub(crate) fn arm(&mut self, timer: Timer, at: Time) {
        self.site.timers.arm(timer, at);
    }

    pub(crate) fn arm_after(&mut self, timer: Timer, span: Duration) {
        let at = self.world.now().after(span);
        self.arm(timer, at);
    }

    pub(crate) fn disarm(&mut self, timer: &Timer) {
        self.site.timers.disarm(timer);
    }

    pub(crate) fn random16(&mut self) -> [u8; 16] {
        self.world.random()[..16].try_into().expect("16 of 32 bytes")
    }

    pub(crate) fn seal<T: model::key::Payload>(&self, key: PublicKey, value: &T) -> Signed<T> {
        Signed::seal(value, key, |kind, body| self.world.sign(&key, kind, body))
    }

    fn new_call(&mut self, waiting: Waiting) -> CallId {
        let call = CallId(self.site.next_call);
        self.site.next_call += 1;
        self.site.waiting.insert(call, waiting);
        call
    }

    /// Sends a request to a peer, or to this very site, and remembers what its answer is for.
    pub(crate) fn send(&mut self, to: &Party, request: Request, waiting: Waiting) -> CallId {
        let call = self.new_call(waiting);
        match to {
            Party::Peer(peer) => {
                let request = Box::new(request);
                self.effect(Effect::Send { call, to: peer.clone(), request });
            }
            Party::Here => self.on_request(Caller::Own(call), Party::Here, request),
        }
        call
    }

    /// Sends a request of this site's own down the VM's path, from its row on.
    pub(crate) fn send_down(
        &mut self,
        down: &Down,
        origin: Origin,
        limit: Duration,
        waiting: Waiting,
    ) {
        let hop = Hop { hops_left: model::limit::MAX_HOPS, time_left: limit, ..Hop::default() };
        self.send_hop_down(down, origin, hop, waiting);
    }

    /// The same, with what this hop says for itself; the edge is set here.
    pub(crate) fn send_hop_down(
        &mut self,
        down: &Down,
        origin: Origin,
        hop: Hop,
        waiting: Waiting,
    ) {
        match down {
            Down::Here => {
                let request = Request { origin, hop };
                self.send(&Party::Here, request, waiting);
            }
            Down::Edge(edge) => {
                let hop = Hop { edge: Some(edge.handle), ..hop };
                let to = Party::Peer(edge.peer.clone());
                self.send(&to, Request { origin, hop }, waiting);
            }
        }
    }

    /// What was just taken to mind is forgotten in time.
    pub(crate) fn arm_forgetting(&mut self) {
        if self.site.timers.at(&Timer::Offers).is_none() {
            self.arm_after(Timer::Offers, self.site.config.offer_life);
        }
    }

    fn forget_what_is_old(&mut self) {
        let now = self.world.now();
        self.site.offers.retain(|offer| offer.forget > now);
        // One that is still waited for ends by its own timer, also if the clock has jumped.
        self.site
            .gatherings
            .retain(|gathering| gathering.forget > now || !gathering.awaiting.is_empty());
        if !self.site.offers.is_empty() || !self.site.gatherings.is_empty() {
            self.arm_after(Timer::Offers, self.site.config.offer_life);
        }
    }
}

/// An answer that came for a user.
fn user_reply(answer: Result<Answer, CallError>) -> Reply {
    match answer {
        Ok(answer) => Reply::Answer(Box::new(answer)),
        Err(CallError::Unreachable(why) | CallError::Garbled(why)) => Reply::Unavailable(why),
    }
}
