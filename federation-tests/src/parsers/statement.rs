//! What is signed beyond one hop: certificates and their chains, and what a transfer's ends tell.

use model::key::{Payload, Strict, Verify};
use model::statement::Cause;
use model::{Certificate, Chain, PublicKey, SecretKey, Signed, VmId};
use protocol::Told;

use super::{exactly, reads_back};

/// Keys whose private halves the one who made the chain may have: any of them signs anything.
pub(super) fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number % 4; 32])
}

/// A chain of certificates, first as it is, then with every certificate really signed, by the key
/// that the first byte of its signature names. It holds exactly if each certificate follows from
/// the one before.
///
/// # Panics
///
/// If a promise is broken.
pub fn chain(data: &[u8]) {
    let Some(given) = exactly::<Chain>(data) else { return };
    reads_back(&given);
    judge(&given);
    let sign = |given: &Signed<Certificate>| {
        let key = key(given.signature.0[0]);
        let signature = key.sign(Certificate::TYPE, &given.body);
        Signed::from_parts(given.body.clone(), key.public(), signature)
    };
    judge(&Chain {
        k0: key(given.k0.0[0]).public(),
        certificates: given.certificates.iter().take(64).map(sign).collect(),
    });
}

fn judge(chain: &Chain) {
    assert!(!format!("{chain:?} {:?}", chain.certificates).is_empty());
    let vm = VmId::of(&chain.k0);
    let verified = chain.verify(vm, &Strict);
    assert_eq!(verified.is_ok(), follows(chain, vm), "{verified:?}");
    let Ok(owner) = verified else { return };
    assert_eq!(owner.epoch, chain.epoch());
    assert_eq!(chain.newest().owner, owner.key);
    assert_eq!(chain.owner_at(owner.epoch), Some(owner.key));
    assert!(chain.verify(VmId([0x77; 16]), &Strict).is_err(), "it is the chain of one VM only");
}

/// The rule itself: import first and once, epochs without a gap, each signed by the owner before,
/// adoptions by the VM's own key; and no owner that can sign nothing.
fn follows(chain: &Chain, vm: VmId) -> bool {
    let link = |at: usize, certificate: &Certificate, by: &PublicKey, signer: PublicKey| {
        let signer = match certificate.cause {
            Cause::Adopt { .. } => chain.k0,
            _ => signer,
        };
        let imports = matches!(certificate.cause, Cause::Import);
        certificate.vm == vm
            && certificate.epoch.0 == at as u64
            && imports == (at == 0)
            && *by == signer
            && Strict.is_sound(&certificate.owner)
    };
    let mut signer = chain.k0;
    for (at, signed) in chain.certificates.iter().enumerate() {
        let Ok(certificate) = signed.open(&signed.key, &Strict) else { return false };
        if !link(at, &certificate, &signed.key, signer) {
            return false;
        }
        signer = certificate.owner;
    }
    !chain.certificates.is_empty()
}

/// What the node at the other end of a transfer tells.
///
/// # Panics
///
/// If a promise is broken.
pub fn told(data: &[u8]) {
    let Some(told) = exactly::<Told>(data) else { return };
    reads_back(&told);
    assert!(!format!("{told:?}").is_empty());
}
