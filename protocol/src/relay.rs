//! Passing a transfer on: what a site puts in the place of an end that it does not show to others,
//! or that they could not dial.
//!
//! An end of the Source goes up the old path and down the new one; an end of the Destination goes
//! up with its offer and down with the forced migration. Each site that passes one on between two
//! others may put itself in its place, with a URI, a token and a key of its own:
//!
//! ```text
//!                 its own token for the Source's side       its own for the Destination's
//!                                 │                                   │
//!   Source ── dials, or is dialled ──▶ this site's proxy ◀── dials ── Destination
//! ```
//!
//! In the place of a Destination that nobody can dial this is done before it is known whether the
//! Source can be; it comes to nothing where that is so.

use std::time::Duration;

use model::decision::{Route, Transfer};
use model::{Descriptor, EdgeHandle, MigrationId, PeerName, PublicKey, Time, TransferEnd, VmId};

use crate::effect::Command;
use crate::path::Verifier;
use crate::row::{Edge, Row};
use crate::site::Step;
use crate::state::library;
use crate::timer::Timer;

/// How long a transfer is passed on after the VM's path has changed: for the last words over it.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// What this site is to a transfer that it passes on.
///
/// What it gives out, and what it shows, is derived anew each time: until the Source has answered,
/// a request costs this site nothing that lasts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RelayRole {
    /// What the Source's side was given a token of, if this site stands in the Destination's place.
    pub given: Option<EdgeHandle>,
    /// The way to the Source.
    pub source: TransferEnd,
    /// When it is passed on no more.
    pub until: Time,
}

impl Step<'_> {
    /// Whether this site puts itself in the place of an end that goes to `peer`. `must_meet` says
    /// that neither side may be able to dial the other.
    fn relays(&self, peer: &PeerName, descriptor: &Descriptor, must_meet: bool) -> bool {
        if self.world.proxy_uri(&library()).is_dial_out() {
            return false;
        }
        let input = Transfer {
            peer: peer.clone(),
            peering: self.peering(peer),
            descriptor: descriptor.clone(),
            size: descriptor.disk_capacity(),
            must_meet,
        };
        self.world.policy().transfer(&input) == Route::Relayed
    }

    /// The Destination's end as `peer` is to see it, and whether this site stands in its place.
    /// `given` is what that is known by: the offer's edge as `peer` sees it, or the migration.
    pub(crate) fn target_for(
        &mut self,
        peer: &PeerName,
        descriptor: &Descriptor,
        given: EdgeHandle,
        target: TransferEnd,
    ) -> (TransferEnd, bool) {
        if !self.relays(peer, descriptor, target.uri.is_dial_out()) {
            return (target, false);
        }
        let uri = self.world.proxy_uri(&library());
        let token = self.world.relay_token(given, true);
        let relay = Some(self.world.relay_key(given));
        (TransferEnd { uri, token, relay, ..target }, true)
    }

    /// The Destination's end as it goes down with the forced migration.
    pub(crate) fn target_below(
        &mut self,
        migration: MigrationId,
        vm: VmId,
        down: &Edge,
        target: TransferEnd,
    ) -> (TransferEnd, bool) {
        match self.descriptor_of(migration, vm) {
            Some(descriptor) => {
                self.target_for(&down.peer, &descriptor, EdgeHandle(migration.0), target)
            }
            None => (target, false),
        }
    }

    /// The Source's end as it goes to `peer`. `given` is what this site stands in the Destination's
    /// place by, if it does. `is_from_source` says that the end comes by the way to the Source, and
    /// not down the way to the Destination.
    pub(crate) fn source_for(
        &mut self,
        migration: MigrationId,
        vm: VmId,
        peer: &PeerName,
        source: TransferEnd,
        (given, is_from_source): (Option<EdgeHandle>, bool),
    ) -> TransferEnd {
        let role = self.relay_role(migration).cloned();
        let given = role.as_ref().and_then(|role| role.given).or(given);
        let key = self.world.relay_key(given.unwrap_or(EdgeHandle(migration.0)));
        // What went out from here has come round, perhaps behind another relay: the way to the
        // Source is known, and through that relay it would lead back here.
        if let (Some(role), false) = (&role, is_from_source) {
            return self.in_place_of_source(migration, key, role.source.clone());
        }
        if !source.is_proven(&Verifier(self.world)) {
            return source;
        }
        let must_meet = source.uri.is_dial_out() && given.is_some();
        let Some(descriptor) = self.descriptor_of(migration, vm) else { return source };
        if !self.relays(peer, &descriptor, must_meet) || source.uri.is_dial_out() && !must_meet {
            return source;
        }
        if role.is_none_or(|role| (role.given, &role.source) != (given, &source)) {
            let until = self.world.now().after(self.site.config.source_patience).after(LAST_WORDS);
            let source = source.clone();
            self.persist(Row::Relaying { migration, vm, given, source, until });
            self.note(vm, "its transfer goes through this site");
        }
        let known = &self.site.state.migrations[&migration];
        if !known.retired && known.owned.is_none() {
            self.pass_transfer_on(migration);
        }
        self.in_place_of_source(migration, key, source)
    }

    fn in_place_of_source(
        &self,
        migration: MigrationId,
        key: PublicKey,
        source: TransferEnd,
    ) -> TransferEnd {
        let token = self.world.relay_token(EdgeHandle(migration.0), false);
        TransferEnd { uri: self.world.proxy_uri(&library()), token, relay: Some(key), ..source }
    }

    fn relay_role(&self, migration: MigrationId) -> Option<&RelayRole> {
        self.site.state.migrations.get(&migration)?.relay.as_ref()
    }

    fn descriptor_of(&self, migration: MigrationId, vm: VmId) -> Option<Descriptor> {
        let pending = self.site.state.migrations.get(&migration).and_then(|m| m.relayed.as_ref());
        let known = self.site.state.vms.get(&vm).map(|vm| &vm.descriptor);
        pending.map(|(descriptor, _)| descriptor).or(known).cloned()
    }

    /// Lets this site's proxy pass the transfer on.
    fn pass_transfer_on(&mut self, migration: MigrationId) {
        let Some(RelayRole { given, source, until }) = self.relay_role(migration).cloned() else {
            return;
        };
        let mut next = source;
        if let (true, Some(given)) = (next.uri.is_dial_out(), given) {
            // The Source's side comes by itself, and shows what it was given.
            next.token = self.world.relay_token(given, true);
        }
        let key = self.world.relay_key(given.unwrap_or(EdgeHandle(migration.0)));
        let token = self.world.relay_token(EdgeHandle(migration.0), false);
        let (token, hint) = (token.hash(), token.hint());
        self.arm(Timer::Relay(migration), until);
        self.command(Command::Relay { migration, token, hint, key, next: Box::new(next) });
    }

    /// The VM's path has changed, or the transfer is over: nothing but last words is passed on.
    pub(crate) fn relay_is_over(&mut self, migration: MigrationId) {
        if self.relay_role(migration).is_some() {
            self.arm_after(Timer::Relay(migration), LAST_WORDS);
        }
    }

    pub(crate) fn end_relay(&mut self, migration: MigrationId) {
        self.command(Command::EndRelay { migration });
    }

    /// Goes on with the transfers that were passed on before a restart.
    pub(crate) fn resume_relays(&mut self) {
        let now = self.world.now();
        let known = self.site.state.migrations.iter();
        let open = known.filter(|(_, migration)| {
            let is_over = migration.retired || migration.owned.is_some();
            migration.relay.as_ref().is_some_and(|role| role.until > now) && !is_over
        });
        for migration in open.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.pass_transfer_on(migration);
        }
    }

    /// The Source's end as the Destination's own proxy is to use it, or why it cannot.
    pub(crate) fn usable_source(
        &self,
        migration: MigrationId,
        source: TransferEnd,
        own: &TransferEnd,
    ) -> Result<TransferEnd, &'static str> {
        let here = self.site.state.migrations.get(&migration);
        let here = here.and_then(|migration| migration.source.as_ref());
        match (source.uri.is_dial_out(), own.uri.is_dial_out()) {
            (false, _) => Ok(source),
            // It moves within this site.
            (true, true) if let Some(here) = here => {
                Ok(TransferEnd { uri: self.world.inner_uri(&here.copy.host), ..source })
            }
            // It dials this site, and shows what this site has given out.
            (true, false) => Ok(TransferEnd { token: own.token.clone(), ..source }),
            (true, true) => Err(NO_WAY),
        }
    }
}

/// Why a transfer between two ends that nobody can dial does not come about.
const NO_WAY: &str = "neither proxy takes connections from outside, and no site on the way relays; \
                      open the data port of one, or have a policy for transfer that relays";
