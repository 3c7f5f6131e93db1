//! The path of a VM: passing requests on along it, and what every site on it knows.
//!
//! A site stands on a VM's path at most once. Requests to the Source go down the path's edges;
//! requests to a Destination go down the edges of the offers that led there, which become the
//! path when the Destination owns the VM; its reports go up along them before.

use model::statement::{Cause, Fact};
use model::{
    Certificate, Chain, Descriptor, Epoch, HostName, MigrationId, PublicKey, Signed, Statement,
    VmId,
};

use crate::effect::{CallError, Caller, Duty, Reply};
use crate::message::{Action, Answer, Hop, Op, Origin, Request};
use crate::row::{Down, Edge, LIBRARY, Party, Row};
use crate::site::{OfferAt, Step, Waiting};
use crate::timer::Timer;

impl Step<'_> {
    /// A request that goes to the Source, by the path as it is or as a migration left it.
    pub(crate) fn along_old_path(&mut self, caller: Caller, from: Party, request: Request) {
        let (vm, migration) = (request.origin.op.vm(), request.origin.op.migration());
        let came = match (&from, request.hop.edge) {
            (Party::Peer(peer), Some(handle)) => Some(Edge { peer: peer.clone(), handle }),
            _ => None,
        };
        let down = match (&from, &came) {
            (Party::Here, _) => Some(Down::Here),
            (_, came) => came.as_ref().and_then(|came| self.down_of(vm, migration, came)),
        };
        match down {
            Some(Down::Here) => self.at_source(caller, came, request),
            Some(Down::Edge(edge)) => {
                if let Op::Monitor { vm, section } = &request.origin.op {
                    self.renew(*vm, section);
                }
                let (mut request, mut stands) = (request, false);
                if let Op::ForcedMigration { vm, migration, .. } = &request.origin.op {
                    let (vm, migration) = (*vm, *migration);
                    if let Some(target) = request.hop.target.take() {
                        let below = self.target_below(migration, vm, &edge, target);
                        (request.hop.target, stands) = (Some(below.0), below.1);
                    }
                }
                self.pass_on(caller, came, edge, request, stands);
            }
            // The path is closed, but the Controller that closed it may not have heard so.
            None if self.spoke_before(&request.origin) => self.at_source(caller, came, request),
            None => self.answer(caller, Answer::Unknown),
        }
    }

    /// Where a request goes on that came along `up`: by the path that its own migration is leaving
    /// behind, else by the path as it is, else by any that is still to be closed.
    fn down_of(&self, vm: VmId, id: Option<MigrationId>, up: &Edge) -> Option<Down> {
        let own = id.and_then(|id| self.site.state.migrations.get(&id));
        let left = own.and_then(|migration| migration.old.as_ref());
        if let Some((_, down)) = left.filter(|(old_up, _)| old_up.as_ref() == Some(up)) {
            return Some(down.clone());
        }
        // Its own path is closed; any other leads to who owns the VM since, who would take a late
        // request for a new one.
        if own.is_some_and(|migration| migration.retired) {
            return None;
        }
        let current = self.site.state.vms.get(&vm).filter(|vm| vm.up.as_ref() == Some(up));
        if let Some(vm) = current {
            return Some(vm.down.clone());
        }
        let left = self.site.state.migrations_of(vm);
        let left =
            left.filter_map(|(_, migration)| Some((migration.left_at(), migration.old.as_ref()?)));
        // An edge may have led along several paths, one after the other: the last counts.
        left.filter(|(_, (old_up, _))| old_up.as_ref() == Some(up))
            .max_by_key(|(epoch, _)| *epoch)
            .map(|(_, (_, down))| down.clone())
    }

    fn spoke_before(&self, origin: &Origin) -> bool {
        let migration = origin.op.migration().and_then(|id| self.site.state.migrations.get(&id));
        let source = migration.and_then(|migration| migration.source.as_ref());
        source.is_some_and(|source| source.controller == origin.key)
    }

    /// A request that goes to a Destination, by the edges of the offers.
    pub(crate) fn along_new_path(&mut self, caller: Caller, from: Party, request: Request) {
        let op = &request.origin.op;
        let (vm, migration) = (op.vm(), op.migration().expect("these operations have one"));
        let Some(handle) = request.hop.edge else {
            return self.answer(caller, Answer::Unknown);
        };
        if let Some(known) = self.site.state.migrations.get(&migration) {
            let mine = known.target.as_ref().is_some_and(|t| t.handle == handle && t.asker == from);
            if mine {
                return self.at_target(caller, request);
            }
            if let (Some((up, down)), Party::Peer(peer)) = (&known.pending, &from)
                && up.peer == *peer
                && up.handle == handle
            {
                let down = down.clone();
                let request = self.with_source(request, &down, None);
                return self.pass_on(caller, None, down, request, false);
            }
            // One migration has one way through a site.
            if known.target.is_some() || known.pending.is_some() {
                return self.answer(caller, Answer::Unknown);
            }
        }
        let now = self.world.now();
        let Op::InitiateTransfer { chain, monitoring, .. } = op else {
            return self.answer(caller, Answer::Unknown);
        };
        let offer = self.site.offers.get(&handle);
        let offer = offer.filter(|offer| offer.asker == from && offer.vm == vm).cloned();
        let offer = match offer {
            Some(offer) if offer.terms.expires > now => offer,
            gone => {
                let terms = gone.map(|offer| format!(" ({})", offer.terms)).unwrap_or_default();
                let reason = format!("the offer{terms} has expired or was withdrawn");
                return self.answer(caller, Answer::Gone { reason });
            }
        };
        let promised = match self.taken_up(&from, &offer, request.hop.taken) {
            Ok(promised) => promised,
            Err(reason) => return self.answer(caller, Answer::Gone { reason }),
        };
        match (offer.at.clone(), from) {
            (OfferAt::Local { host, end }, from) => {
                self.admit(caller, &from, &offer, (host, end), request, promised);
            }
            (OfferAt::Peer(down, proposal, stands), Party::Peer(peer)) => {
                if let Err(error) = chain.verify(vm, &Verifier(self.world)) {
                    return self.answer(caller, Answer::Gone { reason: error.to_string() });
                }
                self.persist(Row::Pending {
                    migration,
                    vm,
                    descriptor: self.renewed(offer.descriptor, chain, monitoring),
                    chain: chain.clone(),
                    up: Edge { peer, handle },
                    down: down.clone(),
                    promised,
                    taken: Some(self.take(proposal)),
                });
                let request = self.with_source(request, &down, stands.then_some(handle));
                self.pass_on(caller, None, down, request, false);
            }
            // This site's own journeys go to the peer directly.
            (OfferAt::Peer(..), Party::Here) => self.answer(caller, Answer::Unknown),
        }
    }

    /// An Initiate transfer as it goes down, with this site in the Source's place if it relays.
    fn with_source(
        &mut self,
        mut request: Request,
        down: &Edge,
        given: Option<model::EdgeHandle>,
    ) -> Request {
        if let Op::InitiateTransfer { vm, migration, .. } = &request.origin.op {
            let (vm, migration) = (*vm, *migration);
            request.hop.source = request
                .hop
                .source
                .map(|source| self.source_for(migration, vm, &down.peer, source, (given, false)));
        }
        request
    }

    /// Hands a request to the next site, in this site's own name, and its answer back.
    ///
    /// `came` is the edge of the path that it came along, if it came along one; `stands` says that
    /// this site stands in the Destination's place in it.
    fn pass_on(
        &mut self,
        caller: Caller,
        came: Option<Edge>,
        edge: Edge,
        request: Request,
        stands: bool,
    ) {
        if request.hop.hops_left == 0 {
            let reason = "the request has passed as many sites as it may".to_owned();
            return self.answer(caller, Answer::Failed { reason });
        }
        let taken = match request.origin.op {
            Op::InitiateTransfer { migration, .. } => self.taken_of(migration),
            _ => None,
        };
        let hops_left = request.hop.hops_left - 1;
        let hop = Hop { edge: Some(edge.handle), hops_left, taken, ..request.hop };
        let op = Box::new(request.origin.op.clone());
        let waiting = Waiting::Relay(caller, came, op, stands);
        let request = Request { origin: request.origin, hop };
        self.send(&Party::Peer(edge.peer), request, waiting);
    }

    /// The answer to a request that was passed on.
    pub(crate) fn relayed(
        &mut self,
        caller: Caller,
        came: Option<Edge>,
        (op, stands): (Op, bool),
        answer: Result<Answer, CallError>,
    ) {
        let mut answer = match answer {
            Ok(answer) => answer,
            // Nothing about the site beyond is told.
            Err(_) => {
                let reason = "a site on the way does not answer now; ask again".to_owned();
                return self.answer(caller, Answer::Failed { reason });
            }
        };
        if let (Op::ForcedMigration { vm, migration, .. }, Answer::Prepared { source, .. }) =
            (&op, &mut answer)
            && let Some(up) = &came
        {
            let given = stands.then_some(model::EdgeHandle(migration.0));
            let way = (given, true);
            *source = self.source_for(*migration, *vm, &up.peer, source.clone(), way);
        }
        match (&op, &answer) {
            (
                Op::TransferVerification { migration, .. },
                Answer::Verified(crate::message::Outcome::Aborted(_)),
            ) => self.relay_is_over(*migration),
            (
                Op::InitiateTransfer { migration, .. } | Op::Deliver { migration, .. },
                Answer::Gone { .. } | Answer::HandedBack { .. },
            ) => self.relay_is_over(*migration),
            (Op::Deliver { migration, certificate, .. }, Answer::Owned { statement }) => {
                if self.proves_ownership(certificate, statement).is_none() {
                    let reason = "the Destination's statement does not hold".to_owned();
                    return self.answer(caller, Answer::Failed { reason });
                }
                let relayed = self.site.state.migrations.get(migration);
                let relayed = relayed.and_then(|migration| migration.relayed.as_ref());
                let continues = relayed.is_none_or(|(_, chain)| {
                    let chain = chain.extended(certificate.clone());
                    chain.verify(op.vm(), &Verifier(self.world)).is_ok()
                });
                if !continues {
                    let reason = "the certificate does not continue the chain".to_owned();
                    return self.answer(caller, Answer::Failed { reason });
                }
                let entry = self.site.state.vms.get(&op.vm());
                let newest = entry.map_or(Epoch(0), |vm| vm.chain.epoch());
                let pending = self.site.state.migrations.get(migration).is_some_and(|migration| {
                    // A Source on the new path may have its receipt already, and must turn all
                    // the same; a late answer must not turn back what has moved on since.
                    let turned = migration.old.is_some() || migration.retired;
                    migration.pending.is_some() && !turned
                });
                let epoch = certificate.peek().map_or(Epoch(0), |certificate| certificate.epoch);
                if pending && epoch >= newest {
                    self.persist(Row::Flipped {
                        migration: *migration,
                        certificate: certificate.clone(),
                        owned: statement.clone(),
                    });
                    self.relay_is_over(*migration);
                    self.wake_journeys(op.vm());
                }
            }
            (Op::Retire { migration, vm, .. }, Answer::Done | Answer::Unknown) => {
                self.retired(*migration, *vm, came);
                return self.answer(caller, Answer::Done);
            }
            (Op::Control { vm, action: Action::Destroy }, Answer::Done)
            | (Op::ForcedMigration { vm, .. }, Answer::Gone { .. }) => self.destroyed_below(*vm),
            _ => {}
        }
        self.answer(caller, answer);
    }

    /// The site that had the VM says that it is gone for good.
    pub(crate) fn destroyed_below(&mut self, vm: VmId) {
        if self.site.state.vms.get(&vm).is_some_and(|vm| !vm.destroyed) {
            self.persist(Row::Destroyed { vm });
        }
    }

    /// The epoch that `statement` proves owned under `certificate`, if it does.
    pub(crate) fn proves_ownership(
        &self,
        certificate: &Signed<Certificate>,
        statement: &Signed<Statement>,
    ) -> Option<Epoch> {
        let certificate = certificate.peek().ok()?;
        let verify = |key: &PublicKey| statement.open(key, &Verifier(self.world)).ok();
        let statement = verify(&certificate.owner)?;
        let owned = Fact::Owned { epoch: certificate.epoch };
        let fits = statement.vm == certificate.vm
            && Some(statement.migration) == certificate.migration()
            && statement.fact == owned;
        fits.then_some(certificate.epoch)
    }

    /// The old path of a migration is closed below this site.
    pub(crate) fn retired(&mut self, migration: MigrationId, vm: VmId, came: Option<Edge>) {
        let known = self.site.state.migrations.get(&migration);
        if known.is_none_or(|migration| !migration.retired) {
            self.persist(Row::Retired { migration, vm, came });
            self.relay_is_over(migration);
            self.wake_journeys(vm);
        }
    }

    // Reports: what sites above know.

    /// Tells the site above what this one knows now, until it has it.
    pub(crate) fn report_up(&mut self, vm: VmId) {
        let Some(entry) = self.site.state.vms.get(&vm) else { return };
        if entry.up.is_none() {
            return;
        }
        let duty = Duty { chain: entry.chain.clone(), parked: entry.parked.clone(), attempts: 0 };
        self.site.reports.insert(vm, duty);
        self.send_report(vm);
    }

    pub(crate) fn send_report(&mut self, vm: VmId) {
        let Some(duty) = self.site.reports.get(&vm).cloned() else { return };
        let up = self.site.state.vms.get(&vm).and_then(|entry| entry.up.clone());
        let Some(up) = up else {
            self.site.reports.remove(&vm);
            return;
        };
        let key = duty.chain.newest().owner;
        let origin = Origin {
            op: Op::Report { vm, chain: duty.chain, parked: duty.parked },
            key: self.speaking_key(vm, key),
            sealed: None,
        };
        let hop = Hop {
            edge: Some(up.handle),
            hops_left: model::limit::MAX_HOPS,
            time_left: self.site.config.request_limit,
            ..Hop::default()
        };
        self.send(&Party::Peer(up.peer), Request { origin, hop }, Waiting::Report(vm));
    }

    /// A key of this site's own to speak with: the VM's if it owns it, else a new one.
    fn speaking_key(&mut self, vm: VmId, owner: PublicKey) -> PublicKey {
        let own = self.site.state.vms.get(&vm).and_then(|vm| vm.stay.as_ref());
        match own {
            Some(stay) if stay.key == owner => owner,
            _ => self.world.create_key(),
        }
    }

    pub(crate) fn report_ended(&mut self, vm: VmId, answer: Result<Answer, CallError>) {
        let Some(duty) = self.site.reports.get_mut(&vm) else { return };
        if let Ok(Answer::Known { chain }) = &answer {
            self.site.reports.remove(&vm);
            self.superseded(vm, chain);
            return;
        }
        if matches!(answer, Ok(Answer::Done | Answer::Unknown)) {
            self.site.reports.remove(&vm);
            return;
        }
        duty.attempts += 1;
        let wait = back_off(duty.attempts);
        self.arm_after(Timer::Report(vm), wait);
    }

    pub(crate) fn report_from_below(&mut self, caller: Caller, from: &Party, request: Request) {
        let (Op::Report { vm, chain, parked }, Party::Peer(peer)) = (&request.origin.op, from)
        else {
            return self.answer(caller, Answer::Done);
        };
        let (vm, parked) = (*vm, parked.clone());
        let edge = Edge { peer: peer.clone(), handle: request.hop.edge.unwrap_or(NO_EDGE) };
        let known = self.site.state.vms.get(&vm);
        let Some(entry) = known.filter(|vm| vm.down == Down::Edge(edge.clone())) else {
            if self.take_release(vm, &edge, chain) {
                let reason = "the path is being turned; ask again".to_owned();
                return self.answer(caller, Answer::Failed { reason });
            }
            // The Controller's Source may be gone, and nobody else tell it of the release.
            let along = self.released_along(vm, chain);
            if let Some((up, _)) = along.filter(|(_, down)| *down == edge) {
                return self.pass_on(caller, None, up, request, false);
            }
            let reclaims = |waiting: &Waiting| matches!(waiting, Waiting::Reclaim(_, of, by) if *of == vm && *by == edge);
            if self.site.waiting.values().any(reclaims) {
                let reason = "the VM is being reclaimed; ask again".to_owned();
                return self.answer(caller, Answer::Failed { reason });
            }
            // It may come back from the dead, and must hear that the VM was adopted meanwhile.
            self.adopt_above(vm, chain);
            let known = self.site.state.vms.get(&vm);
            // Who never had to do with the VM does not know how its chain begins.
            let newer =
                known.filter(|vm| vm.chain.epoch() >= chain.epoch() && vm.chain.begins_like(chain));
            let answer =
                newer.map_or(Answer::Unknown, |vm| Answer::Known { chain: vm.chain.clone() });
            return self.answer(caller, answer);
        };
        if chain.verify(vm, &Verifier(self.world)).is_err() {
            let reason = "the chain of certificates does not hold".to_owned();
            return self.answer(caller, Answer::Failed { reason });
        }
        let news = chain.epoch() > entry.chain.epoch() || parked != entry.parked;
        if *chain == entry.chain && !news {
            // It had to ask again: whoever is above may still wait for a Source that is gone.
            self.report_up(vm);
        } else if news && chain.epoch() >= entry.chain.epoch() {
            let chain = chain.clone();
            if let Some(reason) = &parked {
                self.note(vm, format!("parked at the site that has it: {reason}"));
            } else {
                self.note(vm, format!("moved below; epoch {}", chain.epoch()));
            }
            self.persist(Row::Learned { vm, chain, parked });
            self.report_up(vm);
        }
        self.answer(caller, Answer::Done);
    }

    /// The edges, up and down, of a path that may come and to whose end this chain shows that the VM
    /// was released.
    pub(crate) fn released_along(&self, vm: VmId, chain: &Chain) -> Option<(Edge, Edge)> {
        let open = self.site.state.migrations_of(vm).filter(|(_, one)| one.owned.is_none());
        let mut pending = open.filter_map(|(id, one)| Some((id, one.pending.as_ref()?)));
        let (_, edges) = pending.find(|(id, _)| chain.released_by(**id).is_some())?;
        chain.verify(vm, &Verifier(self.world)).is_ok().then(|| edges.clone())
    }

    /// The Source shows its chain, which may be ahead of what was reported. It counts here before the
    /// VM goes on: the certificate that releases it continues this chain and none before it.
    pub(crate) fn learn(&mut self, vm: VmId, chain: &Chain) {
        // Whoever has the VM itself knows best, but for what it has forgotten of its own.
        let Some(entry) = self.site.state.vms.get(&vm) else { return };
        let owner = chain.newest().owner;
        if entry.stay.as_ref().is_some_and(|stay| stay.key != owner) {
            return;
        }
        let (known, parked) = (entry.chain.epoch(), entry.parked.clone());
        if chain.epoch() > known && self.is_news(vm, chain) {
            self.persist(Row::Learned { vm, chain: chain.clone(), parked });
        }
    }

    // What users ask of the site as a whole.

    pub(crate) fn import(&mut self, ask: u64, descriptor: Descriptor, k0: PublicKey) {
        let vm = VmId::of(&k0);
        if self.site.state.vms.contains_key(&vm) {
            return self.reply(ask, Reply::Conflict(format!("VM {vm} was imported before")));
        }
        let owner = self.world.create_key();
        let certificate = Certificate { vm, epoch: Epoch(0), owner, cause: Cause::Import };
        let signed = self.seal(k0, &certificate);
        let chain = Chain { k0, certificates: vec![signed] };
        self.persist(Row::Imported { vm, descriptor, chain });
        self.note(vm, "imported into the library");
        self.reply(ask, Reply::Imported(vm));
    }

    pub(crate) fn remove_host(&mut self, ask: u64, host: HostName) {
        if !self.site.state.hosts.contains_key(&host) {
            return self.reply(ask, Reply::NotFound(format!("there is no host {host}")));
        }
        let guests = self.site.state.vms.values().filter_map(|vm| vm.stay.as_ref());
        let frozen = self.site.state.migrations.values().filter_map(|migration| {
            let source = migration.source.as_ref()?;
            (source.step == crate::state::SourceStep::Released).then_some(&source.copy)
        });
        let admitted = self.site.state.migrations.values().filter(|migration| {
            let target = migration.target.as_ref();
            target.is_some_and(|t| t.step.arrives() && t.host == host)
        });
        let count = guests.chain(frozen).filter(|stay| stay.host == host).count();
        let count = count + admitted.count();
        if count > 0 {
            let text = format!("host {host} still has {count} VMs; drain it first");
            return self.reply(ask, Reply::Conflict(text));
        }
        self.site.profiles.remove(&host);
        self.persist(Row::HostRemoved { host });
        self.reply(ask, Reply::Done);
    }

    pub(crate) fn ask_control(&mut self, ask: u64, vm: VmId, action: Action) {
        let Some(entry) = self.site.state.vms.get(&vm) else {
            return self.reply(ask, Reply::NotFound(format!("there is no VM {vm}")));
        };
        if entry.destroyed {
            return self.reply(ask, Reply::NotFound(format!("VM {vm} was destroyed")));
        }
        let down = entry.down.clone();
        let key = self.world.create_key();
        let origin = Origin { op: Op::Control { vm, action }, key, sealed: None };
        let destroys = (action == Action::Destroy).then_some(vm);
        self.send_down(&down, origin, CONTROL_LIMIT, Waiting::User(ask, destroys));
    }

    /// Whether `host` can run guests.
    pub(crate) fn runs_guests(host: &HostName) -> bool {
        host.as_str() != LIBRARY
    }
}

/// How long a Control may take: an ACPI stop with its grace, or saving the run state.
const CONTROL_LIMIT: std::time::Duration = std::time::Duration::from_secs(300);

const NO_EDGE: model::EdgeHandle = model::EdgeHandle([0; 16]);

/// How long to wait before a repeat: doubling from a quarter of a second, to half a minute.
pub(crate) fn back_off(attempts: u32) -> std::time::Duration {
    let millis = 250_u64 << attempts.saturating_sub(1).min(7);
    std::time::Duration::from_millis(millis.min(30_000))
}

/// The world's verification, as the model's trait object.
pub(crate) struct Verifier<'a>(pub &'a dyn crate::site::World);

impl model::key::Verify for Verifier<'_> {
    fn verify(
        &self,
        key: &PublicKey,
        payload_type: &str,
        body: &[u8],
        signature: &model::Signature,
    ) -> bool {
        self.0.verify(key, payload_type, body, signature)
    }

    fn is_sound(&self, key: &PublicKey) -> bool {
        self.0.is_sound(key)
    }
}
