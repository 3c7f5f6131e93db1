//! What a site's journal has of VMs that its peers have placed there: half of them are at the site,
//! half were passed on to another peer.

use certs::Identity;
use federation_tests::bench::Failure;
use model::statement::{Cause, Fact};
use model::vm::{Disk, Restrictions};
use model::{
    Agreed, Bytes, Certificate, Chain, Contract, Descriptor, Digest, EdgeHandle, Epoch, FileId,
    MigrationId, PeerName, ProxyUri, Resources, SecretKey, Signed, Statement, Terms, Time, Token,
    TransferEnd, VmId,
};
use protocol::{Edge, Party, Row};

use crate::peers::Peer;

/// The host of those that are at the site.
pub(crate) const HOST: &str = "one";
/// What each of them has, as small VMs do.
pub(crate) const SIZE: Resources = Resources { cpus: 1, memory: Bytes(128 << 20) };
/// The epoch in which they are where they are: they were imported and moved once.
const EPOCH: Epoch = Epoch(1);

/// One of them.
pub(crate) struct Vm {
    pub(crate) id: VmId,
    /// The peer that it came from, among all.
    pub(crate) above: usize,
    /// What that peer calls it by.
    pub(crate) handle: EdgeHandle,
    /// Whether it is at the site.
    pub(crate) is_here: bool,
    /// Of the VM, of its owner before, of its owner now, of its transfer, of who moved it.
    keys: [SecretKey; 5],
}

impl Vm {
    /// The one of this number, which peers have placed there in turn.
    pub(crate) fn new(at: usize, peers: usize) -> Self {
        let keys = [0, 1, 2, 3, 4].map(|which| {
            let mut seed = [which; 32];
            seed[..8].copy_from_slice(&(at as u64).to_be_bytes());
            SecretKey::from_seed(&seed)
        });
        let id = VmId::of(&keys[0].public());
        // Each peer has some of either kind.
        let is_here = (at + at / peers).is_multiple_of(2);
        Self { id, above: at % peers, handle: handle(id, 1), is_here, keys }
    }

    /// What a placement leaves in the site's journal.
    pub(crate) fn rows(&self, site: &Identity, peers: &[Peer]) -> Result<Vec<Row>, Failure> {
        let (vm, migration) = (self.id, MigrationId(self.id.0));
        let above = &peers[self.above];
        let below = &peers[(self.above + 1) % peers.len()];
        let (descriptor, digest) = (self.descriptor()?, Digest([1; 32]));
        let asked_for = descriptor.digest();
        let certificate = self.certificate(EPOCH, Cause::Release { migration, digest });
        let chain = Chain {
            k0: self.keys[0].public(),
            certificates: vec![self.certificate(Epoch(0), Cause::Import)],
        };
        let owned = self.statement(Fact::Owned { epoch: EPOCH });
        let up = self.handle;
        let promised = Some(agreed(vm, asked_for, up, site, &above.identity));
        let edge = |peer: &PeerName, handle| Edge { peer: peer.clone(), handle };
        if !self.is_here {
            let down = handle(vm, 2);
            let taken = Some(agreed(vm, asked_for, down, &below.identity, site));
            let (up, down) = (edge(&above.name, up), edge(&below.name, down));
            let pending =
                Row::Pending { migration, vm, descriptor, chain, up, down, promised, taken };
            return Ok(vec![pending, Row::Flipped { migration, certificate, owned }]);
        }
        let admitted = Row::Admitted {
            migration,
            vm,
            descriptor,
            asker: Party::Peer(above.name.clone()),
            handle: up,
            host: HOST.parse()?,
            vm_key: self.keys[2].public(),
            transfer_key: self.keys[3].public(),
            controller: self.keys[4].public(),
            source: self.source(),
            chain,
            profile: None,
            boot: false,
            expires: Time(u64::MAX / 2),
            promised,
        };
        let ready = Row::Ready {
            migration,
            statement: self.statement(Fact::Ready { digest }),
            digest,
            has_state: false,
            size: Bytes::mib(1),
            wire: Bytes::mib(1),
        };
        Ok(vec![admitted, ready, Row::Owned { migration, certificate, statement: owned }])
    }

    /// The keys of it that the site has.
    pub(crate) fn keys(&self) -> Vec<SecretKey> {
        if self.is_here { self.keys[2..4].to_vec() } else { vec![] }
    }

    fn descriptor(&self) -> Result<Descriptor, Failure> {
        Ok(Descriptor {
            name: format!("vm{}", self.id).chars().take(20).collect::<String>().parse()?,
            resources: SIZE,
            disks: vec![Disk { file: FileId::disk(0), capacity: Bytes::mib(1024) }],
            nics: vec![],
            restrictions: Restrictions::default(),
            monitoring: Default::default(),
        })
    }

    fn certificate(&self, epoch: Epoch, cause: Cause) -> Signed<Certificate> {
        let by = usize::try_from(epoch.0).expect("there are two");
        let owner = self.keys[by + 1].public();
        let certificate = Certificate { vm: self.id, epoch, owner, cause };
        let by = &self.keys[by];
        Signed::seal(&certificate, by.public(), |kind, body| by.sign(kind, body))
    }

    fn statement(&self, fact: Fact) -> Signed<Statement> {
        let by = &self.keys[2];
        let statement = Statement { vm: self.id, migration: MigrationId(self.id.0), fact };
        Signed::seal(&statement, by.public(), |kind, body| by.sign(kind, body))
    }

    /// Where its files came from.
    fn source(&self) -> TransferEnd {
        let [_, vm_key, _, transfer_key, _] = &self.keys;
        let transfer_key = transfer_key.public();
        TransferEnd {
            uri: ProxyUri::at(([127, 0, 0, 1], 1).into()),
            token: Token([3; 32]),
            relay: None,
            transfer_key,
            vm_key: vm_key.public(),
            proof: vm_key.sign(TransferEnd::TYPE, &transfer_key.0),
        }
    }
}

fn handle(vm: VmId, which: u8) -> EdgeHandle {
    let mut handle = vm.0;
    handle[0] ^= which;
    EdgeHandle(handle)
}

/// The contract of one edge.
fn agreed(
    vm: VmId,
    descriptor: Digest,
    edge: EdgeHandle,
    provider: &Identity,
    customer: &Identity,
) -> Agreed {
    let terms = Terms {
        price_milli: 0,
        penalty_milli: 0,
        class: "standard".to_owned(),
        country: String::new(),
        expires: Time(0),
        runs: true,
    };
    let (provider_key, customer_key) = (provider.site_key(), customer.site_key());
    let contract =
        Contract { vm, descriptor, edge, provider: provider_key, customer: customer_key, terms };
    let proposal = contract.propose(|kind, body| provider.sign(kind, body));
    proposal.take(|kind, body| customer.sign(kind, body))
}
