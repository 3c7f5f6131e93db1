//! Contracts: what a site that offers to take a VM undertakes towards the neighbour that takes the
//! offer, signed by both (federation.md, "Contracts").
//!
//! Each edge of a VM's path has one, so that every site knows whom it answers to and who answers
//! to it, and no other site. The limits of service are those that the VM's descriptor has.

use serde::{Deserialize, Serialize};

use crate::key::{Payload, Verify};
use crate::{Digest, EdgeHandle, Signature, SiteKey, Terms, VmId};

/// What both sides sign.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Contract {
    /// The VM.
    pub vm: VmId,
    /// Digest of the descriptor that the offer was asked for with.
    pub descriptor: Digest,
    /// The edge that the VM's path gets: the contract's name, too.
    pub edge: EdgeHandle,
    /// Who takes the VM, and answers for it.
    pub provider: SiteKey,
    /// Who has it taken.
    pub customer: SiteKey,
    /// Price, penalty, class, country.
    pub terms: Terms,
}

/// One that the provider has signed; it counts when the customer takes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Proposal {
    /// What is offered.
    pub contract: Contract,
    /// The provider's signature.
    pub provider: Signature,
}

/// One that both have signed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Agreed {
    /// What was agreed.
    pub contract: Contract,
    /// The provider's signature over its canonical bytes.
    pub provider: Signature,
    /// The customer's signature over the same, as a payload of another type.
    pub customer: Signature,
}

impl Payload for Contract {
    const TYPE: &'static str = "application/vnd.sojourn.contract.v1";
}

/// The payload type of the customer's signature.
const TAKEN: &str = "application/vnd.sojourn.contract-taken.v1";

impl Contract {
    /// The bytes that are signed (postcard, which is canonical).
    pub fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("contracts are plain data")
    }

    /// The provider signs it.
    pub fn propose(self, sign: impl FnOnce(&str, &[u8]) -> Signature) -> Proposal {
        let provider = sign(Self::TYPE, &self.bytes());
        Proposal { contract: self, provider }
    }
}

impl Proposal {
    /// Whether the provider has signed it.
    pub fn holds(&self, verify: &dyn Verify) -> bool {
        let key = self.contract.provider.public();
        verify.verify(&key, Contract::TYPE, &self.contract.bytes(), &self.provider)
    }

    /// The customer signs it, too.
    pub fn take(self, sign: impl FnOnce(&str, &[u8]) -> Signature) -> Agreed {
        let customer = sign(TAKEN, &self.contract.bytes());
        Agreed { contract: self.contract, provider: self.provider, customer }
    }

    /// The contract, if this is the customer's signature of it.
    pub fn taken(self, customer: Signature, verify: &dyn Verify) -> Option<Agreed> {
        let Self { contract, provider } = self;
        let agreed = Agreed { contract, provider, customer };
        agreed.is_taken(verify).then_some(agreed)
    }
}

impl Agreed {
    fn is_taken(&self, verify: &dyn Verify) -> bool {
        let key = self.contract.customer.public();
        verify.verify(&key, TAKEN, &self.contract.bytes(), &self.customer)
    }

    /// Whether both have signed it: for anybody who is shown it.
    pub fn holds(&self, verify: &dyn Verify) -> bool {
        let proposal = Proposal { contract: self.contract.clone(), provider: self.provider };
        proposal.holds(verify) && self.is_taken(verify)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Strict;
    use crate::{SecretKey, Time};

    #[test]
    fn a_contract_holds_as_both_have_signed_it_and_not_otherwise() {
        let [provider, customer] = [[1; 32], [2; 32]].map(|seed| SecretKey::from_seed(&seed));
        let contract = Contract {
            vm: VmId([3; 16]),
            descriptor: Digest([4; 32]),
            edge: EdgeHandle([5; 16]),
            provider: SiteKey(provider.public().0),
            customer: SiteKey(customer.public().0),
            terms: Terms {
                price_milli: 1500,
                penalty_milli: 200,
                class: "standard".into(),
                country: "SE".into(),
                expires: Time(9),
                runs: true,
            },
        };
        let proposal = contract.clone().propose(|kind, body| provider.sign(kind, body));
        assert!(proposal.holds(&Strict));
        let agreed = proposal.clone().take(|kind, body| customer.sign(kind, body));
        assert!(agreed.holds(&Strict));
        assert_eq!(proposal.clone().taken(agreed.customer, &Strict), Some(agreed.clone()));
        // The one's signature is not the other's, even where both are the same site.
        assert_eq!(proposal.clone().taken(proposal.provider, &Strict), None);
        let altered: [fn(&mut Contract); 6] = [
            |contract| contract.vm.0[0] ^= 1,
            |contract| contract.descriptor.0[0] ^= 1,
            |contract| contract.edge.0[0] ^= 1,
            |contract| contract.provider = contract.customer,
            |contract| contract.customer = contract.provider,
            |contract| contract.terms.penalty_milli = 0,
        ];
        for alter in altered {
            let mut other = agreed.clone();
            alter(&mut other.contract);
            assert!(!other.holds(&Strict), "{other:?}");
        }
    }
}
