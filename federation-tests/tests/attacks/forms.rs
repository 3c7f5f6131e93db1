//! Forms that attacks take: requests, chains and keys that are wrong in one respect.

use model::key::Payload;
use model::statement::Cause;
use model::{
    Certificate, Chain, Descriptor, Digest, Epoch, MigrationId, PublicKey, RequestId, SecretKey,
    Signature, Signed, VmId,
};
use protocol::Op;
use serde::Serialize;

use crate::stage::{Bid, a_key, signed};

/// The eight points of small order of Ed25519's curve, in every form in which some program reads
/// them: also with a y beyond the field's prime, and with the sign of an x that is zero
/// (Chalkias, Garillot, Nikolaenko: Taming the Many EdDSAs).
pub(crate) const SMALL_ORDER: [&str; 14] = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
];

/// A key that is none, for there is no secret to it.
pub(crate) fn small_order() -> impl Iterator<Item = PublicKey> {
    SMALL_ORDER.iter().map(|text| text.parse().unwrap())
}

/// A signature whose R is the curve's neutral element and whose S is zero: by the equation alone it
/// holds for every message under a neutral key, and for some under each key of small order.
pub(crate) const NEUTRAL: Signature = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    Signature(bytes)
};

/// A statement that a key of small order seems to have signed.
pub(crate) fn zeros<T: Payload>(signed: Signed<T>, key: PublicKey) -> Signed<T> {
    Signed::from_parts(signed.body, key, NEUTRAL)
}

pub(crate) fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap()
}

pub(crate) fn a_vm() -> VmId {
    VmId::of(&a_key().public())
}

pub(crate) fn migration_request(vm: VmId, descriptor: Descriptor) -> Op {
    Op::MigrationRequest { vm, request: RequestId(rand::random()), descriptor }
}

/// A certificate by which a VM goes on to another owner.
pub(crate) fn certificate(vm: VmId, epoch: u64, owner: &SecretKey) -> Certificate {
    let cause =
        Cause::Release { migration: MigrationId(rand::random()), digest: Digest(rand::random()) };
    Certificate { vm, epoch: Epoch(epoch), owner: owner.public(), cause }
}

/// A chain that the VM's own keys have signed, and that says more than there is.
pub(crate) fn longer(chain: &Chain, vm: VmId, owner: &SecretKey) -> Chain {
    let next = a_key();
    let epoch = chain.certificates.len() as u64;
    let one = chain.extended(signed(&certificate(vm, epoch, &next), owner));
    one.extended(signed(&certificate(vm, epoch + 1, &a_key()), &next))
}

/// Chains that prove nothing, made of one that does and whose newest owner's key is known.
pub(crate) struct Broken<'a> {
    pub(crate) chain: &'a Chain,
    pub(crate) vm: VmId,
    pub(crate) owner: &'a SecretKey,
}

impl<'a> Broken<'a> {
    pub(crate) fn of(bid: &'a Bid) -> Self {
        Self { chain: &bid.chain, vm: bid.vm, owner: &bid.owner }
    }

    fn longer(&self) -> Chain {
        longer(self.chain, self.vm, self.owner)
    }

    fn and(&self, certificate: Signed<Certificate>) -> Chain {
        self.chain.extended(certificate)
    }

    fn epoch(&self) -> u64 {
        self.chain.certificates.len() as u64
    }

    pub(crate) fn empty(&self) -> Chain {
        Chain { k0: self.chain.k0, certificates: vec![] }
    }

    /// Without its first certificate.
    pub(crate) fn beheaded(&self) -> Chain {
        let mut chain = self.longer();
        chain.certificates.remove(0);
        chain
    }

    /// Without one in the middle.
    pub(crate) fn gapped(&self) -> Chain {
        let mut chain = self.longer();
        chain.certificates.remove(chain.certificates.len() - 2);
        chain
    }

    /// The last two in the other order.
    pub(crate) fn swapped(&self) -> Chain {
        let mut chain = self.longer();
        let last = chain.certificates.len() - 1;
        chain.certificates.swap(last - 1, last);
        chain
    }

    /// The last one twice.
    pub(crate) fn repeated(&self) -> Chain {
        let mut chain = self.longer();
        chain.certificates.extend(chain.certificates.last().cloned());
        chain
    }

    /// With a certificate of another VM.
    pub(crate) fn of_another_vm(&self) -> Chain {
        self.and(signed(&certificate(a_vm(), self.epoch(), &a_key()), self.owner))
    }

    /// With one that somebody else has signed.
    pub(crate) fn by_another(&self) -> Chain {
        self.and(signed(&certificate(self.vm, self.epoch(), &a_key()), &a_key()))
    }

    /// With one that somebody else has signed in the owner's name.
    pub(crate) fn forged(&self) -> Chain {
        let mut forged = signed(&certificate(self.vm, self.epoch(), &a_key()), &a_key());
        forged.key = self.owner.public();
        self.and(forged)
    }

    /// With one that adopts the VM, which only its own key may sign.
    pub(crate) fn adopted_by_its_owner(&self) -> Chain {
        let cause = Cause::Adopt { statement: Digest([7; 32]) };
        let adopts = Certificate { cause, ..certificate(self.vm, self.epoch(), &a_key()) };
        self.and(signed(&adopts, self.owner))
    }

    /// With a second beginning.
    pub(crate) fn imported_twice(&self) -> Chain {
        let again = certificate(self.vm, self.epoch(), &a_key());
        self.and(signed(&Certificate { cause: Cause::Import, ..again }, self.owner))
    }

    /// Under a key that is another VM's.
    pub(crate) fn under_another_key(&self) -> Chain {
        Chain { k0: a_key().public(), certificates: self.longer().certificates }
    }

    /// With more certificates than there may be.
    pub(crate) fn endless(&self) -> Chain {
        let mut chain = self.longer();
        let last = chain.certificates.last().cloned();
        chain.certificates.resize(model::limit::MAX_EPOCHS + 1, last.unwrap());
        chain
    }
}
