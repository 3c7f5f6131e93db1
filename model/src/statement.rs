//! What sites sign about a VM: certificates of ownership and the statements of a migration.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::key::{OpenError, Payload, Signed, Verify};
use crate::{Digest, Epoch, MigrationId, PublicKey, VmId, limit};

/// Names the owner of a VM for one epoch. Signed with the key of the epoch before; the first one
/// with the VM's own key K0.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Certificate {
    /// The VM.
    pub vm: VmId,
    /// The epoch that begins.
    pub epoch: Epoch,
    /// The per-VM key of the site that owns the VM from here on.
    pub owner: PublicKey,
    /// What made it change hands.
    pub cause: Cause,
}

/// Why a VM changed hands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// It was imported at its primary site.
    Import,
    /// The Source released it to the Destination of a migration.
    Release {
        /// The migration.
        migration: MigrationId,
        /// Root digest of what was handed over.
        digest: Digest,
    },
    /// The Destination of a migration could not start it and gave it back, untouched.
    Handback {
        /// The migration that is undone.
        migration: MigrationId,
    },
    /// The primary took it over from a site that is lost for good; signed with K0.
    Adopt {
        /// Digest of the operator's written statement that the other side is fenced.
        statement: Digest,
    },
}

impl Payload for Certificate {
    const TYPE: &'static str = "application/vnd.sojourn.certificate.v1";
}

impl Certificate {
    /// The migration that it belongs to, if any.
    pub fn migration(&self) -> Option<MigrationId> {
        match self.cause {
            Cause::Release { migration, .. } | Cause::Handback { migration } => Some(migration),
            Cause::Import | Cause::Adopt { .. } => None,
        }
    }
}

/// The certificates of a VM from its import on, in order. Anyone can check it and carry it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Chain {
    /// The VM's own key.
    pub k0: PublicKey,
    /// Certificate `n` names the owner of epoch `n`.
    pub certificates: Vec<Signed<Certificate>>,
}

/// Who owns the VM at the end of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The newest epoch.
    pub epoch: Epoch,
    /// The per-VM key of its owner.
    pub key: PublicKey,
}

/// Why a chain proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It has no certificate, or too many.
    #[error("a chain has 1 to {max} certificates, got {0}", max = limit::MAX_EPOCHS)]
    Length(usize),
    /// Its key does not belong to the VM.
    #[error("the chain's key is not the key of VM {0}")]
    OtherVm(VmId),
    /// A certificate's signature does not hold.
    #[error("certificate {0} of the chain: {1}")]
    Signature(usize, OpenError),
    /// A certificate's content does not continue the chain.
    #[error("certificate {0} does not continue the chain")]
    Broken(usize),
}

impl Chain {
    /// Checks every link, and tells who owns `vm`.
    pub fn verify(&self, vm: VmId, verify: &dyn Verify) -> Result<Owner, ChainError> {
        if !(1..=limit::MAX_EPOCHS).contains(&self.certificates.len()) {
            return Err(ChainError::Length(self.certificates.len()));
        }
        if VmId::of(&self.k0) != vm {
            return Err(ChainError::OtherVm(vm));
        }
        let mut signer = self.k0;
        for (at, signed) in self.certificates.iter().enumerate() {
            let certificate = signed.peek().map_err(|e| ChainError::Signature(at, e))?;
            let adopted = matches!(certificate.cause, Cause::Adopt { .. });
            let signer_of_this = if adopted { self.k0 } else { signer };
            signed.open(&signer_of_this, verify).map_err(|e| ChainError::Signature(at, e))?;
            let first = certificate.cause == Cause::Import;
            // Nobody could ever pass it on from an owner that can sign nothing.
            let lasts = verify.is_sound(&certificate.owner);
            let fits = certificate.vm == vm && certificate.epoch.0 == at as u64;
            if !fits || !lasts || first != (at == 0) {
                return Err(ChainError::Broken(at));
            }
            signer = certificate.owner;
        }
        Ok(Owner { epoch: Epoch(self.certificates.len() as u64 - 1), key: signer })
    }

    /// The newest epoch, of a chain that was verified before.
    pub fn epoch(&self) -> Epoch {
        Epoch((self.certificates.len() as u64).saturating_sub(1))
    }

    /// The newest certificate, of a chain that was verified before.
    pub fn newest(&self) -> Certificate {
        let signed = self.certificates.last().expect("a verified chain is not empty");
        signed.peek().expect("a verified chain is well formed")
    }

    /// The certificate by which a migration has released the VM, if the chain has it.
    pub fn released_by(&self, migration: MigrationId) -> Option<&Signed<Certificate>> {
        self.certificates.iter().find(|signed| {
            let cause = signed.peek().map(|certificate| certificate.cause);
            matches!(cause, Ok(Cause::Release { migration: of, .. }) if of == migration)
        })
    }

    /// The owner's key at `epoch`, of a chain that was verified before.
    pub fn owner_at(&self, epoch: Epoch) -> Option<PublicKey> {
        let signed = self.certificates.get(usize::try_from(epoch.0).ok()?)?;
        signed.peek().ok().map(|certificate| certificate.owner)
    }

    /// Whether this chain, which was verified, says something newer than `known`: it goes on from
    /// it, or the VM's own key has adopted the VM since the two part. An owner that has signed two
    /// certificates of one epoch changes nothing by the other one.
    pub fn supersedes(&self, known: &Self) -> bool {
        let same = self.common(known);
        let adopts = |signed: &Signed<Certificate>| {
            signed.peek().is_ok_and(|it| matches!(it.cause, Cause::Adopt { .. }))
        };
        same == known.certificates.len() || self.certificates[same..].iter().any(adopts)
    }

    /// Whether both begin with the same certificate.
    pub fn begins_like(&self, other: &Self) -> bool {
        self.common(other) > 0
    }

    /// The first epoch that the two chains have different certificates of.
    pub fn parts_from(&self, other: &Self) -> Epoch {
        Epoch(self.common(other) as u64)
    }

    /// How many certificates the two begin with alike.
    fn common(&self, other: &Self) -> usize {
        let both = self.certificates.iter().zip(&other.certificates);
        both.take_while(|(mine, theirs)| mine.body == theirs.body).count()
    }

    /// The chain with one certificate more. The caller verifies the result.
    #[must_use]
    pub fn extended(&self, certificate: Signed<Certificate>) -> Self {
        let mut chain = self.clone();
        chain.certificates.push(certificate);
        chain
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain(epoch {})", self.epoch())
    }
}

/// What one end of a migration states about it, signed with its per-VM key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Statement {
    /// The VM.
    pub vm: VmId,
    /// The migration.
    pub migration: MigrationId,
    /// What is stated.
    pub fact: Fact,
}

/// The facts that can be stated.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fact {
    /// The Destination has everything, verified and on stable storage.
    Ready {
        /// Root digest of what arrived.
        digest: Digest,
    },
    /// The Destination owns the VM.
    Owned {
        /// The epoch that it owns.
        epoch: Epoch,
    },
    /// The Source keeps the VM; this migration will never release it.
    Aborted,
}

impl Payload for Statement {
    const TYPE: &'static str = "application/vnd.sojourn.statement.v1";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecretKey;
    use crate::key::Strict;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn sign(
        by: &SecretKey,
        vm: VmId,
        epoch: u64,
        owner: &SecretKey,
        cause: Cause,
    ) -> Signed<Certificate> {
        let certificate = Certificate { vm, epoch: Epoch(epoch), owner: owner.public(), cause };
        Signed::seal(&certificate, by.public(), |t, b| by.sign(t, b))
    }

    fn release() -> Cause {
        Cause::Release { migration: MigrationId([9; 16]), digest: Digest([8; 32]) }
    }

    fn chain_of_three() -> (VmId, Chain) {
        let vm = VmId::of(&key(0).public());
        let certificates = vec![
            sign(&key(0), vm, 0, &key(1), Cause::Import),
            sign(&key(1), vm, 1, &key(2), release()),
            sign(&key(2), vm, 2, &key(3), release()),
        ];
        (vm, Chain { k0: key(0).public(), certificates })
    }

    #[test]
    fn the_last_certificate_of_a_sound_chain_names_the_owner() {
        let (vm, chain) = chain_of_three();
        let owner = chain.verify(vm, &Strict).unwrap();
        assert_eq!(owner, Owner { epoch: Epoch(2), key: key(3).public() });
    }

    #[test]
    fn a_chain_with_a_link_missing_swapped_or_signed_by_another_is_refused() {
        let (vm, chain) = chain_of_three();
        let mut missing = chain.clone();
        missing.certificates.remove(1);
        let mut swapped = chain.clone();
        swapped.certificates.swap(1, 2);
        let forged = chain.extended(sign(&key(2), vm, 3, &key(9), release()));
        let mut empty = chain.clone();
        empty.certificates.clear();
        for bad in [missing, swapped, forged, empty] {
            assert!(bad.verify(vm, &Strict).is_err());
        }
        assert!(chain.verify(VmId([1; 16]), &Strict).is_err());
    }

    #[test]
    fn a_chain_to_an_owner_that_can_sign_nothing_is_refused() {
        let (vm, chain) = chain_of_three();
        let owner = PublicKey([0; 32]);
        let certificate = Certificate { vm, epoch: Epoch(3), owner, cause: release() };
        let by = key(3);
        let lost = Signed::seal(&certificate, by.public(), |t, b| by.sign(t, b));
        assert_eq!(chain.extended(lost).verify(vm, &Strict), Err(ChainError::Broken(3)));
    }

    #[test]
    fn a_chain_goes_on_from_another_or_adopts_the_vm_and_no_owner_can_sign_twice() {
        let (vm, chain) = chain_of_three();
        let mut before = chain.clone();
        before.certificates.pop();
        assert!(chain.supersedes(&before) && chain.supersedes(&chain));
        assert!(!before.supersedes(&chain));
        let twice = before.extended(sign(&key(2), vm, 2, &key(7), release()));
        let twice = twice.extended(sign(&key(7), vm, 3, &key(8), release()));
        twice.verify(vm, &Strict).unwrap();
        assert!(!twice.supersedes(&chain));
        let adopt = Cause::Adopt { statement: Digest([1; 32]) };
        let adopted = twice.extended(sign(&key(0), vm, 4, &key(4), adopt));
        adopted.verify(vm, &Strict).unwrap();
        assert!(adopted.supersedes(&chain));
    }

    #[test]
    fn only_the_vms_own_key_can_adopt() {
        let (vm, chain) = chain_of_three();
        let adopt = Cause::Adopt { statement: Digest([1; 32]) };
        let by_owner = chain.extended(sign(&key(3), vm, 3, &key(4), adopt.clone()));
        assert!(by_owner.verify(vm, &Strict).is_err());
        let by_k0 = chain.extended(sign(&key(0), vm, 3, &key(4), adopt));
        assert_eq!(by_k0.verify(vm, &Strict).unwrap().key, key(4).public());
    }
}
