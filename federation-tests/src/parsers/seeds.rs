//! Real inputs of every parser: what fuzzing starts from.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use certs::{Identity, Ticket, TicketSecret};
use model::vm::Disk;
use model::{
    Bytes, Chain, Descriptor, Digest, FileId, MigrationId, Monitoring, SiteKey, Time, VmId,
};
use policies::samples;
use protocol::{Action, Answer, Ask, Config, Op, Outcome, Told};
use rustls::SignatureScheme;
use serde::Serialize;

use super::peer::{Said, set_up};
use super::policy::Question;
use super::{envelope, kpi, monitoring, package, statement, tls};
use crate::world::{Crypto, Fate, Flight, Load, World};

/// Why there is no seed of some kind.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Inputs, each with the name of its [`super::TARGETS`]. Images are made by `qemu-img`, which must
/// be installed.
pub fn seeds() -> Result<Vec<(&'static str, Vec<u8>)>, Failure> {
    let mut seeds = vec![];
    let mut add = |target, inputs: Vec<Vec<u8>>| {
        seeds.extend(inputs.into_iter().map(|input| (target, input)));
    };
    let (ops, answers) = spoken();
    add("sealed", ops.iter().map(envelope::honest_request).collect());
    add("sealed", answers.iter().map(envelope::honest_answer).collect());
    add("hop", vec![envelope::honest_hop()]);
    add("operation", ops.iter().map(bytes).collect());
    add("answer", answers.iter().map(|answer| [&bytes(answer)[..], &[7]].concat()).collect());
    add("told", told(&ops, &answers).iter().map(bytes).collect());
    add("chain", chains(&ops));
    add("peer", a_peers_words());
    add("session", sessions());
    add("channel", channels());
    add("qmp", qmp());
    add("certificates", certificates()?);
    add("ticket", tickets()?);
    add("text", texts());
    add("config", configs());
    add("journal", journals()?);
    add("decision", questions().iter().map(bytes).collect());
    add("policy", policies());
    add("ovf", descriptors());
    add("ova", archives()?);
    add("manifest", manifests());
    add("image", images()?);
    let [values, histories, statements] = monitoring::made();
    add("values", values);
    add("history", histories);
    add("usage", statements);
    add("guest", monitoring::told());
    add("opened", monitoring::sealed());
    add("frames", frames());
    add("sheet", kpi::FILES.iter().map(|file| file.as_bytes().to_vec()).collect());
    add("words", kpi::SAID.iter().map(|said| said.as_bytes().to_vec()).collect());
    Ok(seeds)
}

fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data")
}

/// Notes every message that arrives from here on.
fn overhear(world: &mut World) -> Rc<RefCell<Vec<Load>>> {
    let heard = Rc::new(RefCell::new(vec![]));
    let hears = heard.clone();
    world.network(move |flight: &mut Flight| {
        hears.borrow_mut().push(flight.load.clone());
        Fate::Arrives
    });
    heard
}

/// What the sites of a federation say to each other in a VM's life, with real signatures.
pub fn spoken() -> (Vec<Op>, Vec<Answer>) {
    let mut world = World::with(&["alpha", "beta", "gamma"], Crypto::Real, &Config::default());
    world.peer("alpha", "beta");
    world.peer("beta", "gamma");
    world.host("gamma", "g1", 2);
    let heard = overhear(&mut world);
    let vm = world.import("alpha");
    let placed = world.place("alpha", vm);
    world.result("alpha", placed);
    world.run(Duration::from_secs(60));
    for action in [Action::Pause, Action::Show, Action::Resume] {
        world.control("alpha", vm, action);
    }
    world.ask("alpha", Ask::Monitor(vm, Monitoring::default()));
    let evicted = world.evict("gamma", vm, Duration::from_secs(60));
    world.result("gamma", evicted);
    world.run(Duration::from_secs(600));
    world.host("alpha", "a1", 2);
    let home = world.bring_home("alpha", vm);
    world.result("alpha", home);
    world.host("beta", "b1", 1);
    world.dry_run("alpha", vm);
    world.run(Duration::from_secs(600));
    let again = world.place("alpha", vm);
    world.result("alpha", again);
    world.run(Duration::from_secs(600));
    let (mut ops, mut answers) = (vec![], vec![]);
    for load in heard.borrow().iter() {
        match load {
            Load::Request { request, .. } => push_new(&mut ops, request.origin.op.clone()),
            Load::Answer { answer: Ok(answer), .. } => push_new(&mut answers, (**answer).clone()),
            Load::Answer { .. } => {}
        }
    }
    let ready = ops.iter().find_map(|op| match op {
        Op::TransferVerification { ready, .. } => ready.clone(),
        _ => None,
    });
    let chain = ops.iter().find_map(chain_of).expect("a chain was passed on");
    let (host, by) = (SiteKey([1; 32]), SiteKey([2; 32]));
    ops.extend([
        Op::Confirm { vm },
        Op::Superseded { vm, chain: chain.clone() },
        Op::Reclaim { vm, handle: model::EdgeHandle([9; 16]), by, host },
    ]);
    answers.extend([
        Answer::Known { chain },
        Answer::Unknown,
        Answer::Conflict { reason: "busy".into(), retry_after: Duration::from_secs(5) },
        Answer::Failed { reason: "no".into() },
        Answer::Refused { reasons: vec!["too dear".into(), "too far".into()] },
        Answer::Gone { reason: "expired".into() },
        Answer::Verified(Outcome::Open { reason: "not yet".into() }),
        Answer::Verified(Outcome::Differs { sent: Digest([5; 32]) }),
    ]);
    answers.extend(ready.map(|ready| Answer::Verified(Outcome::Aborted(ready))));
    (ops, answers)
}

/// One of each kind and shape is enough.
fn push_new<T: PartialEq>(list: &mut Vec<T>, value: T) {
    const MOST: usize = 64;
    if list.len() < MOST && !list.contains(&value) {
        list.push(value);
    }
}

fn chain_of(op: &Op) -> Option<Chain> {
    match op {
        Op::InitiateTransfer { chain, .. } | Op::Report { chain, .. } => Some(chain.clone()),
        _ => None,
    }
}

fn told(ops: &[Op], answers: &[Answer]) -> Vec<Told> {
    let by_op = ops.iter().filter_map(|op| match op {
        Op::Deliver { certificate, .. } => Some(Told::Released(certificate.clone())),
        Op::Handback { certificate, .. } => Some(Told::HandedBack(certificate.clone())),
        Op::Retire { owned, .. } => Some(Told::Owned(owned.clone())),
        _ => None,
    });
    let by_answer = answers.iter().filter_map(|answer| match answer {
        Answer::Verified(Outcome::Aborted(statement)) => Some(Told::Aborted(statement.clone())),
        _ => None,
    });
    by_op.chain(by_answer).collect()
}

/// Chains that were seen, and one of every cause, signed with the keys that the target knows.
fn chains(ops: &[Op]) -> Vec<Vec<u8>> {
    use model::statement::Cause;
    use model::{Certificate, Epoch, Signed};
    let key = statement::key;
    let vm = VmId::of(&key(0).public());
    let migration = MigrationId([9; 16]);
    let causes = [
        (0, Cause::Import, 1),
        (1, Cause::Release { migration, digest: Digest([8; 32]) }, 2),
        (2, Cause::Handback { migration }, 1),
        (0, Cause::Adopt { statement: Digest([7; 32]) }, 3),
    ];
    let sign = |(at, (by, cause, owner)): (u64, (u8, Cause, u8))| {
        let owner = key(owner).public();
        let certificate = Certificate { vm, epoch: Epoch(at), owner, cause };
        let mut signed =
            Signed::seal(&certificate, key(by).public(), |kind, body| key(by).sign(kind, body));
        // Who signs it anew.
        signed.signature.0[0] = by;
        signed
    };
    let certificates = (0..).zip(causes).map(sign).collect();
    let mut k0 = key(0).public();
    k0.0[0] = 0;
    let mut chains: Vec<Vec<u8>> = ops.iter().filter_map(chain_of).map(|c| bytes(&c)).collect();
    chains.push(bytes(&Chain { k0, certificates }));
    chains
}

/// What an honest peer asks and answers, and what the user of the other site wants meanwhile.
fn a_peers_words() -> Vec<Vec<u8>> {
    let mut heard = None;
    set_up(|world| heard = Some(overhear(world)));
    let heard = heard.expect("the stage was set up");
    let mut said = vec![];
    for load in heard.borrow().iter() {
        match load {
            Load::Request { to, request, .. } if to.as_str() == "alpha" => said.push(Said::Asks {
                edge: request.hop.edge,
                hops_left: request.hop.hops_left,
                time_left_ms: request.hop.time_left.as_millis().try_into().unwrap_or(u64::MAX),
                source: request.hop.source.clone(),
                target: request.hop.target.clone(),
                taken: request.hop.taken,
                key: request.origin.key,
                op: request.origin.op.clone(),
            }),
            Load::Answer { from, answer: Ok(answer), .. } if from.as_str() == "mallory" => {
                said.push(Said::Answers((**answer).clone()));
            }
            _ => {}
        }
    }
    let together = |said: &[Said]| said.iter().flat_map(bytes).collect::<Vec<u8>>();
    let mut inputs: Vec<Vec<u8>> = said.iter().map(bytes).collect();
    inputs.extend(said.chunks(3).map(together));
    for what in 0..9 {
        let wish = Said::Wishes { what };
        inputs.push(together(&[wish.clone(), Said::Waits { seconds: 40 }]));
        for answer in said.iter().filter(|said| matches!(said, Said::Answers(_))).take(4) {
            inputs.push(together(&[wish.clone(), answer.clone()]));
        }
    }
    inputs
}

/// Frames as they are on the wire behind their length.
fn sessions() -> Vec<Vec<u8>> {
    let hint = data_encoding::HEXLOWER.encode(&[0x5a; 16]).into_bytes();
    let mut seeds = transfer_proxy::fuzzing::frames();
    seeds.push([&[18][..], b"sojourn-transfer/2", &[32], &hint].concat());
    seeds
}

/// Both directions of the channel to a proxy.
fn channels() -> Vec<Vec<u8>> {
    let frame = |body: &[u8]| {
        let length = u32::try_from(body.len()).expect("a short message").to_be_bytes();
        [&length[..], body].concat()
    };
    let (vm, migration) = ([2; 16], [3; 16]);
    let serve =
        [&[0][..], &migration, &vm, &[4; 32], &[5; 16], &[6; 32], &[7; 32], &[64, 1, 0, 0, 0, 0]]
            .concat();
    let path = |path: &str| [&[path.len() as u8], path.as_bytes()].concat();
    let provide =
        [&[1][..], &migration, &[2, 0, 0], &path("/vms/disk0.raw"), &[1, 0], &path("/vms/state")]
            .concat();
    let pull = [
        &[2][..],
        &migration,
        &vm,
        &path("quic://192.0.2.1:7420"),
        &[8; 32],
        &[6; 32],
        &[7; 32],
        &path("/vms/a"),
        &[64, 2, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0],
    ]
    .concat();
    let tell = [&[3][..], &migration, &[1, 2, 8, 9]].concat();
    let close = [&[4][..], &migration, &[0]].concat();
    let keep = [&[5, 1][..], &migration, &[1]].concat();
    let orders = [&[1, 1][..], &serve, &provide, &pull, &tell, &close, &keep, &[6]];
    let welcome = [&[0, 1][..], &path("quic://192.0.2.1:7420")].concat();
    let event = |kind: u8, rest: &[u8]| [&[0, kind][..], &migration, rest].concat();
    let received = event(2, &[&[9; 32][..], &[64, 65, 1]].concat());
    let failed = event(5, &[&[1][..], &path("no room"), &[1]].concat());
    let progress = [&[1][..], &migration, &[0, 64, 32, 33, 0, 1, 5, 0]].concat();
    let reports = [
        welcome,
        event(0, &[]),
        event(3, &[0, 2, 1, 2]),
        received,
        failed,
        progress,
        vec![2],
        vec![3],
    ];
    let mut streams: Vec<Vec<u8>> =
        orders[1..].iter().map(|order| [frame(orders[0]), frame(order)].concat()).collect();
    streams.push(orders.iter().flat_map(|order| frame(order)).collect());
    streams.push(reports.iter().flat_map(|report| frame(report)).collect());
    streams.push(frame(&[1, 2, 3]));
    streams
}

/// The preface of HTTP/2, a SETTINGS, and a PING.
fn frames() -> Vec<Vec<u8>> {
    let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let said = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings, &ping, &ping].concat();
    [0, 1, 255].map(|part| [&[part], &said[..]].concat()).to_vec()
}

fn qmp() -> Vec<Vec<u8>> {
    let greeting = "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7}}, \"capabilities\": []}}\n\
                    {\"return\": {}, \"id\": 1}\n";
    let answers = [
        "{\"return\": {\"status\": \"running\", \"running\": true}, \"id\": 2}\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"what?\"}}\n",
        "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1}}\n{\"return\": [1], \"id\": 2}\n",
        "{\"return\": {}, \"id\": 9}\n[1]\n17\n{\"id\": 2}\n",
    ];
    let measured = "{\"return\": {}, \"id\": 2}\n\
        {\"return\": [{\"thread-id\": 7}], \"id\": 3}\n\
        {\"return\": {\"actual\": 134217728}, \"id\": 4}\n\
        {\"return\": [{\"stats\": {\"rd_bytes\": 1, \"rd_operations\": 2, \"rd_total_time_ns\": 3, \
        \"wr_bytes\": 4, \"wr_operations\": 5, \"wr_total_time_ns\": 6}}], \"id\": 5}\n";
    let answers = answers.iter().chain([&measured]);
    answers.map(|answer| format!("{greeting}{answer}").into_bytes()).collect()
}

/// What the called site and another one show, at the time of the making.
fn certificates() -> Result<Vec<Vec<u8>>, Failure> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let mut inputs = vec![];
    for identity in [tls::called_site(), Identity::from_seed(&[2; 32])] {
        let config = certs::client_config(&identity, identity.site_key())?;
        let shown = config.client_auth_cert_resolver.resolve(&[], &[SignatureScheme::ED25519]);
        let shown = shown.ok_or("a site shows certificates")?;
        let [leaf, root] = &shown.cert[..] else { return Err("a leaf and a root".into()) };
        let length = u16::try_from(leaf.len())?.to_be_bytes();
        inputs.push([&now.to_be_bytes()[..], &length, leaf, root].concat());
    }
    Ok(inputs)
}

fn tickets() -> Result<Vec<Vec<u8>>, Failure> {
    let ticket = |addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        let secret = TicketSecret::from_bytes([0x5c; 32]);
        let until = Time(1_800_000_000_000);
        Ticket::new("alpha".parse()?, addresses, SiteKey([0xa7; 32]), secret, until)
            .map_err(Failure::from)
    };
    let mut inputs = vec![];
    for ticket in [
        ticket(&["node.example.org:7100", "192.0.2.1:7100", "[2001:db8::1]:7100"])?,
        ticket(&["localhost:1"])?,
    ] {
        inputs.extend([ticket.to_string().into_bytes(), bytes(&ticket)]);
    }
    Ok(inputs)
}

fn texts() -> Vec<Vec<u8>> {
    let hex = |bytes| "a5".repeat(bytes);
    let texts = ["alpha", "web-1", "quic://192.0.2.1:7420", "quic://[2001:db8::1]:1", "512M", "4T"];
    let texts = texts.into_iter().map(str::to_owned);
    texts.chain([hex(16), hex(32)]).map(String::into_bytes).collect()
}

fn configs() -> Vec<Vec<u8>> {
    let key = "ab".repeat(32);
    let full = format!(
        "name = \"alpha\"\n[control]\nlisten = \"0.0.0.0:7420\"\nadvertise = \"alpha.example:7420\"\n\
         [proxy]\nlisten = \"[::]:7420\"\nadvertise = \"192.0.2.1:7420\"\n\
         [hypervisor]\ndriver = \"qemu\"\nbinary = \"qemu\"\naccelerator = \"tcg\"\nuser = \"vm\"\n\
         [offer]\ncountry = \"SE\"\nprice_milli = 12\n\
         [time]\nrequest_s = 1\noffer_s = 2\nmigration_s = 3\nready_s = 6\npurge_s = 4\nstop_grace_s = 5\n\
         [[proxies]]\nname = \"rack-1\"\ncontrol = \"192.0.2.1:7421\"\ndata = \"192.0.2.1:7420\"\n\
         key = \"{key}\"\nhosts = [\"one\", \"library\"]\n"
    );
    let proxy = format!(
        "listen = \"127.0.0.1:7420\"\nadvertise = \"192.0.2.1:7420\"\ncontrol = \"127.0.0.1:0\"\n\
         node = \"{key}\"\n"
    );
    let unknown = "name = \"a\"\n[offer]\ncontry = \"SE\"\n".to_owned();
    ["name = \"alpha\"\n".to_owned(), full, proxy, unknown].map(String::into_bytes).into()
}

/// The journals of the two sites that were stopped in mid-migration: whole, and row by row.
fn journals() -> Result<Vec<Vec<u8>>, Failure> {
    let mut inputs = vec![];
    for site in ["a", "b"] {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mid-migration").join(site);
        // SQLite leaves files beside a database that it opens.
        let folder = tempfile::tempdir()?;
        let copy = folder.path().join("journal.db");
        std::fs::copy(kept.join("journal.db"), &copy)?;
        let db = rusqlite::Connection::open(&copy)?;
        let mut rows = db.prepare("SELECT body FROM journal ORDER BY seq")?;
        let rows = rows.query_map([], |row| row.get::<_, String>(0))?;
        let rows = rows.collect::<Result<Vec<String>, _>>()?;
        inputs.extend(rows.iter().map(|row| row.clone().into_bytes()));
        inputs.push(rows.join("\n").into_bytes());
    }
    Ok(inputs)
}

/// With everything that there can be, and a disk of a sector.
fn full_descriptor() -> Descriptor {
    let [full, _] = samples::admit();
    let disks = vec![Disk { file: FileId::disk(0), capacity: Bytes(512) }];
    Descriptor { disks, ..full.descriptor }
}

fn questions() -> Vec<Question> {
    let mut questions = vec![];
    questions.extend(samples::admit().map(Question::Admit));
    questions.extend(samples::delegate().map(Question::Delegate));
    questions.extend(samples::expose().map(Question::Expose));
    questions.extend(samples::rank().map(Question::Rank));
    questions.extend(samples::transfer().map(Question::Transfer));
    questions.extend(samples::share().map(Question::Share));
    questions.extend(samples::trigger().map(Question::Trigger));
    questions
}

fn policies() -> Vec<Vec<u8>> {
    [
        include_str!("../../../policies/rego/admit.rego"),
        include_str!("../../../policies/rego/delegate.rego"),
        include_str!("../../../policies/rego/expose.rego"),
        include_str!("../../../policies/rego/rank.rego"),
        include_str!("../../../policies/rego/transfer.rego"),
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// What other programs wrote, with the file that is there in place of theirs.
fn descriptors() -> Vec<Vec<u8>> {
    let written = [
        include_str!("../../../ovf/tests/data/qemu.ovf"),
        include_str!("../../../ovf/tests/data/virtualbox.ovf"),
        include_str!("../../../ovf/tests/data/virtualbox-2.0.ovf"),
        include_str!("../../../ovf/tests/data/vsphere.ovf"),
    ];
    let restricted = package::GOOD.replace(
        "<!--more-->",
        "<sj:RestrictionsSection ovf:required=\"false\" \
         xmlns:sj=\"https://sojourn.example/ovf/1\"><Info>Rules</Info><sj:NoDelegation/>\
         <sj:Country>CH</sj:Country><sj:MaxPricePerHour>1.250</sj:MaxPricePerHour>\
         <sj:Apart>db</sj:Apart>\
         </sj:RestrictionsSection>",
    );
    let mut texts: Vec<String> = vec![package::GOOD.to_owned(), restricted];
    for text in written {
        let text = with_value(text, "href=\"", "disk.raw");
        texts.extend([text.clone(), with_value(&text, "size=\"", "1024")]);
    }
    texts.into_iter().map(String::into_bytes).collect()
}

/// A text with another value in all attributes of a name that ends so.
fn with_value(text: &str, attribute: &str, value: &str) -> String {
    let mut parts = text.split(attribute);
    let mut made = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.split_once('"').map_or("", |(_, rest)| rest);
        made.push_str(&format!("{attribute}{value}\"{rest}"));
    }
    made
}

fn archives() -> Result<Vec<Vec<u8>>, Failure> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    std::fs::write(&disk, [0x5a; 512])?;
    let mut inputs = vec![];
    let mut full = full_descriptor();
    // A package is nobody's yet.
    (full.monitoring.revision, full.monitoring.voucher) = (0, None);
    let bare = Descriptor { disks: vec![], nics: vec![], ..full.clone() };
    for (name, descriptor, disks) in
        [("full.ova", full, vec![disk.clone()]), ("bare.ova", bare, vec![])]
    {
        let path = folder.path().join(name);
        ovf::write_ova(&path, &descriptor, &disks)?;
        inputs.push(std::fs::read(path)?);
    }
    let mut extended = tar::Builder::new(vec![]);
    for (name, bytes) in [("a.ovf", package::GOOD.as_bytes()), ("disk.raw", &package::DISK)] {
        extended.append_pax_extensions([("path", name.as_bytes()), ("comment", b"none")])?;
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        extended.append_data(&mut header, "other", bytes)?;
    }
    inputs.push(extended.into_inner()?);
    Ok(inputs)
}

fn manifests() -> Vec<Vec<u8>> {
    use data_encoding::HEXLOWER;
    use sha2::{Digest as _, Sha256, Sha512};
    let files = [("a.ovf", package::GOOD.as_bytes()), ("disk.raw", &package::DISK[..])];
    let short: String = files
        .iter()
        .map(|(name, b)| format!("SHA256({name})= {}\n", HEXLOWER.encode(&Sha256::digest(b))))
        .collect();
    let long: String = files
        .iter()
        .map(|(name, b)| format!("SHA2-512 ({name}) = {}\r\n", HEXLOWER.encode(&Sha512::digest(b))))
        .collect();
    let old = format!("SHA1(a.ovf)= {}\n", "00".repeat(20));
    vec![short.into_bytes(), long.into_bytes(), old.into_bytes()]
}

/// The first and last bytes of what `qemu-img` makes, which are all that is looked at.
fn images() -> Result<Vec<Vec<u8>>, Failure> {
    const HEAD: usize = 2048;
    const TAIL: usize = 1024;
    let folder = tempfile::tempdir()?;
    let mut inputs = vec![];
    for (format, options) in [
        ("qcow2", "cluster_size=512"),
        ("qcow2", "cluster_size=512,compat=0.10"),
        ("qcow2", "cluster_size=64k,extended_l2=on"),
        ("qcow2", "cluster_size=512,encryption=on,encrypt.key-secret=sec0"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=streamOptimized"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vdi", "static=off"),
        ("vdi", "static=on"),
        ("vpc", "subformat=dynamic"),
        ("vpc", "subformat=fixed"),
        ("vhdx", "subformat=dynamic"),
        ("qed", "cluster_size=64k"),
        ("parallels", "cluster_size=64k"),
    ] {
        let path = folder.path().join("image");
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "--object", "secret,id=sec0,data=sec"]);
        command.args(["-f", format, "-o", options]).arg(&path).arg("64k");
        let made = command.output().map_err(|e| format!("qemu-img (package qemu-utils): {e}"))?;
        if !made.status.success() {
            let why = String::from_utf8_lossy(&made.stderr);
            return Err(format!("qemu-img made no {format} with {options}: {why}").into());
        }
        let whole = std::fs::read(&path)?;
        let head = &whole[..whole.len().min(HEAD)];
        let tail = &whole[whole.len().saturating_sub(TAIL).max(head.len())..];
        inputs.push([head, tail].concat());
        std::fs::remove_file(&path)?;
    }
    inputs.push(vec![0; 600]);
    Ok(inputs)
}
