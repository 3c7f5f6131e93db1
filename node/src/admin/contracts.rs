//! `contract`: what was agreed with neighbours, and the limits of service that were broken.

use model::{Epoch, VmId};
use monitoring::book::Violation;
use proto::admin as api;
use protocol::{ContractView, Site};
use tonic::Status;

use super::Admin;

impl Admin {
    /// Every contract, the newest last.
    pub(super) async fn contracts(&self) -> Result<Vec<api::Contract>, Status> {
        self.site(|site| {
            let mut all: Vec<_> = site.contracts().collect();
            all.sort_by_key(|one| (one.since, one.agreed.contract.vm, one.provides));
            all.into_iter().map(|one| contract(site, one)).collect()
        })
        .await
    }

    /// Limits of service that were broken, each with the contracts that it is held against.
    pub(super) async fn violations(&self, vm: Option<VmId>) -> Result<Vec<api::Violation>, Status> {
        let broken = self.monitor.violations(vm).await;
        let broken = broken.map_err(|error| Status::unavailable(error.to_string()))?;
        self.site(move |site| {
            let contracts: Vec<_> = site.contracts().collect();
            broken.into_iter().map(|one| violation(site, &contracts, one)).collect()
        })
        .await
    }
}

fn name_of(site: &Site, vm: VmId) -> String {
    site.state.vms.get(&vm).map(|vm| vm.descriptor.name.to_string()).unwrap_or_default()
}

fn contract(site: &Site, one: ContractView) -> api::Contract {
    let body = one.agreed.contract.bytes();
    let model::Contract { vm, descriptor, edge, provider, customer, terms } = one.agreed.contract;
    api::Contract {
        id: edge.to_string(),
        vm: vm.to_string(),
        name: name_of(site, vm),
        peer: one.peer.to_string(),
        provides: one.provides,
        price_milli: terms.price_milli,
        penalty_milli: terms.penalty_milli,
        class: terms.class,
        country: terms.country,
        runs: terms.runs,
        since_epoch: one.since.0,
        ended_epoch: one.ended.map(|epoch| epoch.0),
        descriptor: descriptor.to_string(),
        provider_key: provider.to_string(),
        customer_key: customer.to_string(),
        body,
        provider_signature: one.agreed.provider.0.to_vec(),
        customer_signature: one.agreed.customer.0.to_vec(),
    }
}

fn violation(site: &Site, contracts: &[ContractView], one: Violation) -> api::Violation {
    let Violation { vm, epoch, number, at, received, measure, condition, value, evidence } = one;
    // The owner of that epoch had the VM from the one below, and this site from the one above.
    let of = |provides: bool| {
        let counted = |one: &&ContractView| {
            one.agreed.contract.vm == vm && one.provides == provides && counts(one, epoch)
        };
        contracts.iter().filter(counted).max_by_key(|one| one.since)
    };
    let id = |one: Option<&ContractView>| {
        one.map(|one| one.agreed.contract.edge.to_string()).unwrap_or_default()
    };
    let owner = site.state.vms.get(&vm).and_then(|vm| vm.chain.owner_at(epoch));
    api::Violation {
        vm: vm.to_string(),
        name: name_of(site, vm),
        epoch: epoch.0,
        number,
        at_unix_ms: at.0,
        received_unix_ms: received.0,
        measure,
        condition,
        value,
        owed_by: id(of(false)),
        owes_by: id(of(true)),
        body: evidence.body,
        signature: evidence.signature.0.to_vec(),
        owner_key: owner.map(|key| key.to_string()).unwrap_or_default(),
    }
}

fn counts(contract: &ContractView, epoch: Epoch) -> bool {
    contract.since <= epoch && contract.ended.is_none_or(|ended| epoch < ended)
}
