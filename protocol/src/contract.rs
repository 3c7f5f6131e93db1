//! Contracts with the neighbours: proposed with an offer, taken with Initiate transfer, and kept
//! by both sides in the row that takes the offer (federation.md, "Contracts").

use model::{
    Agreed, Contract, Digest, EdgeHandle, MigrationId, Offer, PeerName, Proposal, Signature, Terms,
    VmId,
};

use crate::path::Verifier;
use crate::row::Party;
use crate::site::{OfferMade, Step, World};

/// The contract that a peer's offer makes with this site, if the peer has signed it.
pub(crate) fn proposal(
    world: &dyn World,
    peer: &PeerName,
    vm: VmId,
    asked_for: Digest,
    offer: &Offer,
) -> Option<Proposal> {
    let contract = Contract {
        vm,
        descriptor: asked_for,
        edge: offer.edge,
        provider: world.identity(&Party::Peer(peer.clone()))?,
        customer: world.identity(&Party::Here)?,
        terms: offer.terms.clone(),
    };
    let proposal = Proposal { contract, provider: offer.proposal? };
    proposal.holds(&Verifier(world)).then_some(proposal)
}

impl Step<'_> {
    /// What this site signs when it makes an offer. It makes no contract with itself.
    pub(crate) fn propose(
        &self,
        asker: &Party,
        vm: VmId,
        asked_for: Digest,
        edge: EdgeHandle,
        terms: &Terms,
    ) -> Option<Proposal> {
        let Party::Peer(_) = asker else { return None };
        let contract = Contract {
            vm,
            descriptor: asked_for,
            edge,
            provider: self.world.identity(&Party::Here)?,
            customer: self.world.identity(asker)?,
            terms: terms.clone(),
        };
        Some(contract.propose(|kind, body| self.world.sign_as_site(kind, body)))
    }

    /// Signs what a peer has proposed.
    pub(crate) fn take(&self, proposal: Proposal) -> Agreed {
        proposal.take(|kind, body| self.world.sign_as_site(kind, body))
    }

    /// This site's signature of the contract whose offer a migration takes, for who made it.
    pub(crate) fn taken_of(&self, migration: MigrationId) -> Option<Signature> {
        let taken = self.site.state.migrations.get(&migration)?.taken.as_ref()?;
        Some(taken.customer)
    }

    /// The contract that comes of taking an offer of this site's.
    pub(crate) fn taken_up(
        &self,
        from: &Party,
        offer: &OfferMade,
        taken: Option<Signature>,
    ) -> Result<Option<Agreed>, String> {
        if *from == Party::Here {
            return Ok(None);
        }
        let proposal = offer.proposal.clone();
        let agreed = proposal.and_then(|p| p.taken(taken?, &Verifier(self.world)));
        agreed.map(Some).ok_or_else(|| {
            let terms = &offer.terms;
            format!("the contract is not signed by the site that takes the offer ({terms})")
        })
    }
}
