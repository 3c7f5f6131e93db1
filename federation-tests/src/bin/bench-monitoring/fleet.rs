//! The values of many VMs, as the site that runs them makes them: each VM's application writes five
//! rows of two figures a second, and its producer makes signed blocks of them.

use std::time::Duration;

use federation_tests::bench::Failure;
use model::monitoring::{Delivery, Format, Specifier};
use model::statement::{Cause, Fact};
use model::{
    Bytes, Certificate, Chain, Descriptor, Digest, EdgeHandle, Epoch, MigrationId, Monitoring,
    PeerName, Resources, SecretKey, Signed, Statement, Time, VmId,
};
use monitoring::block::SignedBlock;
use monitoring::producer::{Producer, State};
use protocol::{Edge, Row};

/// Rows of each VM in a second, and figures in each.
const ROWS: u64 = 5;
const FIGURES: [&str; 2] = ["users", "load"];
/// Values of each VM in a second.
pub(crate) const VALUES: u64 = ROWS * FIGURES.len() as u64;
/// The epoch in which the VMs run where they are: they were imported and moved once.
const EPOCH: Epoch = Epoch(1);

/// VMs, and how far their values are made.
pub(crate) struct Fleet {
    vms: Vec<Vm>,
    begun: Time,
    /// Blocks, or series of them, that were made: one of each VM in turn.
    made: u64,
}

struct Vm {
    id: VmId,
    key: SecretKey,
    producer: Producer,
    row: i64,
}

impl Fleet {
    /// So many VMs, whose values are delivered every second, or each at once.
    pub(crate) fn new(size: usize, delivery: Delivery, now: Time) -> Self {
        let section = section(&delivery);
        let vms = (0..size).map(|at| {
            let producer = Producer::new(&section, State::default(), offset(now, at, size));
            Vm { id: VmId::of(&key(at, 0).public()), key: key(at, 2), producer, row: 0 }
        });
        Self { vms: vms.collect(), begun: now, made: 0 }
    }

    /// When the next blocks are due, from the beginning on: the VMs' seconds end one after another.
    pub(crate) fn due(&self) -> Duration {
        let (at, round) = self.place();
        offset(Time((round + 1) * 1000), at, self.vms.len()).since(Time::default())
    }

    fn place(&self) -> (usize, u64) {
        let size = self.vms.len() as u64;
        (usize::try_from(self.made % size).expect("below its size"), self.made / size)
    }

    /// The next blocks, so many of them at least.
    pub(crate) fn make(&mut self, blocks: usize) -> Vec<SignedBlock> {
        let mut made = Vec::with_capacity(blocks);
        while made.len() < blocks {
            made.extend(self.next());
        }
        made
    }

    /// What one VM's site makes of its next second.
    pub(crate) fn next(&mut self) -> Vec<SignedBlock> {
        let (at, round) = self.place();
        let begun = offset(Time(self.begun.0 + round * 1000), at, self.vms.len());
        self.made += 1;
        let vm = &mut self.vms[at];
        let mut blocks = Vec::new();
        for n in 0..ROWS {
            vm.row += 1;
            let now = Time(begun.0 + n * 1000 / ROWS);
            let fields = [(vm.row * 7 % 10_000).to_string(), format!("0.{:02}", vm.row % 100)];
            let fields = FIGURES.iter().map(|name| (*name).to_owned()).zip(fields);
            vm.producer.row(now, (vm.row, now), "web", &fields.collect::<Vec<_>>());
            blocks.extend(vm.producer.blocks(vm.id, EPOCH, now));
        }
        blocks.extend(vm.producer.blocks(vm.id, EPOCH, begun.after(Duration::from_secs(1))));
        let sign = |block| SignedBlock::seal(&block, |kind, body| vm.key.sign(kind, body));
        blocks.into_iter().map(sign).collect()
    }
}

/// Values in a block: all of a second, or those of a row.
pub(crate) fn values_in_block(delivery: &Delivery) -> u64 {
    match delivery {
        Delivery::Every(0) => FIGURES.len() as u64,
        _ => VALUES,
    }
}

/// What is measured of each.
fn section(delivery: &Delivery) -> Monitoring {
    let specifiers = FIGURES.map(|name| Specifier {
        measure: format!("web.{name}").parse().expect("a measure"),
        interval_ms: 0,
        delivery: delivery.clone(),
        format: Format::Raw,
        sealed: false,
        limit: false,
    });
    Monitoring { specifiers: specifiers.to_vec(), ..Monitoring::default() }
}

fn offset(time: Time, at: usize, size: usize) -> Time {
    time.after(Duration::from_secs(1) * u32::try_from(at).expect("few VMs") / size as u32)
}

/// A VM's own key, and those of its owners.
fn key(at: usize, which: u8) -> SecretKey {
    let mut seed = [which; 32];
    seed[..8].copy_from_slice(&(at as u64).to_be_bytes());
    SecretKey::from_seed(&seed)
}

/// The rows by which an Intermediary knows that it stands on the path of these VMs, between `up`
/// and `down`: what a placement through it leaves in its journal.
pub(crate) fn rows(
    size: usize,
    delivery: &Delivery,
    up: &PeerName,
    down: &PeerName,
) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::with_capacity(2 * size);
    for at in 0..size {
        let keys = [0, 1, 2].map(|which| key(at, which));
        let vm = VmId::of(&keys[0].public());
        let (migration, digest) = (MigrationId(vm.0), Digest([1; 32]));
        let certificate = |epoch: u8, cause| {
            let owner = keys[usize::from(epoch) + 1].public();
            let certificate = Certificate { vm, epoch: Epoch(epoch.into()), owner, cause };
            let by = &keys[usize::from(epoch)];
            Signed::seal(&certificate, by.public(), |kind, body| by.sign(kind, body))
        };
        let mut monitoring = section(delivery);
        monitoring.revision = 1;
        monitoring.vouch(|kind, body| keys[0].sign(kind, body));
        let descriptor = Descriptor {
            name: format!("vm{at}").parse()?,
            resources: Resources { cpus: 1, memory: Bytes::mib(128) },
            disks: vec![],
            nics: vec![],
            restrictions: model::vm::Restrictions::default(),
            monitoring,
        };
        let chain =
            Chain { k0: keys[0].public(), certificates: vec![certificate(0, Cause::Import)] };
        let edge = |peer: &PeerName, n: u8| {
            let mut handle = vm.0;
            handle[0] ^= n;
            Edge { peer: peer.clone(), handle: EdgeHandle(handle) }
        };
        let (up, down) = (edge(up, 1), edge(down, 2));
        let (promised, taken) = (None, None);
        rows.push(Row::Pending { migration, vm, descriptor, chain, up, down, promised, taken });
        let owned = Statement { vm, migration, fact: Fact::Owned { epoch: EPOCH } };
        let owned = Signed::seal(&owned, keys[2].public(), |kind, body| keys[2].sign(kind, body));
        let certificate = certificate(1, Cause::Release { migration, digest });
        rows.push(Row::Flipped { migration, certificate, owned });
    }
    Ok(rows)
}
