//! VMs that must not share a host (`Restrictions::apart`): how many of them are where.
//!
//! A group are the VMs that bear the word and that the same party asked this site for. A peer that
//! asks thus hears of its own VMs only, which this site was told of by that very peer.

use std::collections::{BTreeMap, BTreeSet};

use model::decision::Group;
use model::{Descriptor, HostName, PeerName, VmId};

use crate::row::{Down, Party};
use crate::site::Step;

impl Step<'_> {
    /// What is of the VM's group on a host and on all of this site's, or on its way there.
    pub(crate) fn group_here(
        &self,
        vm: VmId,
        descriptor: &Descriptor,
        asker: &Party,
        host: &HostName,
    ) -> Group {
        let places = self.places_of_group(vm, descriptor, asker);
        let count = |places: BTreeSet<VmId>| u32::try_from(places.len()).unwrap_or(u32::MAX);
        let on_host = places.iter().filter(|(_, at)| at == host).map(|(vm, _)| *vm);
        Group {
            host: count(on_host.collect()),
            site: count(places.iter().map(|(vm, _)| *vm).collect()),
        }
    }

    /// How many of the VM's group went to each peer, or, under no name, to this site's hosts.
    pub(crate) fn group_by_way(
        &self,
        vm: VmId,
        descriptor: &Descriptor,
        asker: &Party,
    ) -> BTreeMap<Option<PeerName>, u32> {
        if descriptor.restrictions.apart.is_none() {
            return BTreeMap::new();
        }
        let mut ways: BTreeSet<(VmId, Option<PeerName>)> = BTreeSet::new();
        let here = self.places_of_group(vm, descriptor, asker);
        ways.extend(here.into_iter().map(|(other, _)| (other, None)));
        let state = &self.site.state;
        let is_kin = |other: &VmId, theirs: &Descriptor| {
            self.is_of_group((*other, theirs, &Party::Here), (vm, descriptor, asker))
        };
        for (other, known) in &state.vms {
            if let Down::Edge(edge) = &known.down
                && !known.destroyed
                && is_kin(other, &known.descriptor)
            {
                ways.insert((*other, Some(edge.peer.clone())));
            }
        }
        // One that is just being moved there counts as being there.
        for journey in state.journeys.values().filter(|journey| journey.result.is_none()) {
            let chosen = journey.chosen.as_ref().map(|chosen| &chosen.at);
            if let Some(Party::Peer(peer)) = chosen
                && let Some(known) = state.vms.get(&journey.vm)
                && is_kin(&journey.vm, &known.descriptor)
            {
                ways.insert((journey.vm, Some(peer.clone())));
            }
        }
        ways.into_iter().fold(BTreeMap::new(), |mut counts, (_, way)| {
            *counts.entry(way).or_default() += 1;
            counts
        })
    }

    /// Every VM of the group with each host that it is on, or on its way to.
    fn places_of_group(
        &self,
        vm: VmId,
        descriptor: &Descriptor,
        asker: &Party,
    ) -> BTreeSet<(VmId, HostName)> {
        if descriptor.restrictions.apart.is_none() {
            return BTreeSet::new();
        }
        let state = &self.site.state;
        let one = (vm, descriptor, asker);
        let here = state.vms.iter().filter_map(|(other, known)| {
            let stay = known.stay.as_ref()?;
            let kin = self.is_of_group((*other, &known.descriptor, &Party::Here), one);
            kin.then(|| (*other, stay.host.clone()))
        });
        let coming = state.migrations.values().filter_map(|migration| {
            let target = migration.target.as_ref().filter(|t| t.step.arrives())?;
            let kin = self.is_of_group((migration.vm, &target.descriptor, &target.asker), one);
            kin.then(|| (migration.vm, target.host.clone()))
        });
        // In the library nothing runs.
        here.chain(coming).filter(|(_, host)| Self::runs_guests(host)).collect()
    }

    /// Whether two VMs must not share a host. Each comes with whoever asks for it.
    fn is_of_group(&self, a: (VmId, &Descriptor, &Party), b: (VmId, &Descriptor, &Party)) -> bool {
        let word = a.1.restrictions.apart.as_ref();
        a.0 != b.0
            && word.is_some()
            && word == b.1.restrictions.apart.as_ref()
            && self.on_behalf_of(a.0, a.2) == self.on_behalf_of(b.0, b.2)
    }

    /// The peer that a VM is here for; none for this site's own. A VM that is on its way through
    /// this site stays its delegator's, also where this site's own journey moves it.
    fn on_behalf_of(&self, vm: VmId, asker: &Party) -> Option<PeerName> {
        match (self.site.state.vms.get(&vm), asker) {
            (Some(known), _) => known.up.as_ref().map(|edge| edge.peer.clone()),
            (None, Party::Peer(peer)) => Some(peer.clone()),
            (None, Party::Here) => None,
        }
    }
}
