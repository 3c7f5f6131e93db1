//! What comes of monitoring from other sites: values, what was used, and the file that moves with a
//! VM.

use std::collections::HashMap;
use std::path::Path;

use kpi_fs::outbox::{self, Values};
use model::monitoring::{
    Comparison, Condition, Delivery, Format, Measure, Specifier, Thousandths, VmMeasure,
};
use model::{Bytes, Epoch, Monitoring, SecretKey, Signature, Signed, Time, VmId};
use monitoring::block::{Block, MAX_BLOCK_BYTES, MAX_VALUES, Reading, SignedBlock, Value};
use monitoring::book::{Asked, Book, Entry, Limits};
use monitoring::history::History;
use monitoring::port::{self, Load};
use monitoring::producer::Producer;
use monitoring::query;
use monitoring::sample::{Counted, Disk, Network, Sample};
use monitoring::seal;
use monitoring::usage::{Statement, Used, sum_by};

use super::{exactly, reads_back};

/// When every input arrives.
const NOW: Time = Time(1_800_000_000_000);
const UNSIGNED: Signature = Signature([7; 64]);

fn book(folder: &Path) -> Book {
    Book::open(&folder.join("monitoring.db"), Limits::default()).expect("a new database")
}

/// A block of values, in bytes that its owner did sign. It is refused, or kept once, counted, and
/// read by its section.
///
/// # Panics
///
/// If a promise is broken.
pub fn values(data: &[u8]) {
    let signed = SignedBlock { body: data.to_vec(), signature: UNSIGNED };
    let Ok(block) = signed.peek() else { return };
    assert_eq!(exactly::<Block>(data).map(|again| again.count()), Some(block.count()));
    assert!((1..=MAX_VALUES as u64).contains(&block.count()) && signed.size() <= MAX_BLOCK_BYTES);
    assert_eq!(block.last() - block.first + 1, block.count());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut book = book(folder.path());
    let mut take = || book.commit(|book| book.take(&signed, &block, &[], NOW, None));
    assert!(take().expect("a database that works"), "it is new");
    assert!(!take().expect("a database that works"), "it was there");
    let standing = book.standing(block.vm, true).expect("a database that works");
    assert_eq!((standing.values, standing.missing), (block.count(), block.first - 1));
    let kept = book.newest(block.vm, 8).expect("a database that works");
    assert_eq!(kept.len(), 1);
    let sections = HashMap::from([(block.section, section())]);
    let (seen, hidden) = query::values(&kept, &sections, None);
    assert!(seen.len() <= block.open.len());
    assert_eq!(hidden, block.sealed.as_ref().map_or(0, |sealed| u64::from(sealed.count)));
    for value in &seen {
        assert!((block.first..=block.last()).contains(&value.number));
        assert!(value.reading.number().is_none_or(|number| !number.is_nan()));
    }
    let table = query::run(&seen, "SELECT * FROM measures").expect("a query that is sound");
    assert!(table.is_cut || table.rows.len() == seen.len());
}

/// A section with a specifier of each kind: of the hypervisor's measures and the application's, told
/// at once, in windows and on a condition.
pub(super) fn section() -> Monitoring {
    let kpi = || Measure::Kpi { table: "web".to_owned(), column: "users".to_owned() };
    let above = Condition {
        comparison: Comparison::Above,
        threshold: Thousandths(1_000_000),
        hysteresis: Thousandths(100_000),
        lasting_ms: 2000,
    };
    let measures = [
        (Measure::Vm(VmMeasure::CpuShare), Delivery::Every(5000), Format::Mean),
        (Measure::Vm(VmMeasure::DiskReadLatency), Delivery::Every(5000), Format::Median),
        (Measure::Vm(VmMeasure::NetworkSent), Delivery::Every(0), Format::Max),
        (kpi(), Delivery::Every(5000), Format::Raw),
        (kpi(), Delivery::Every(0), Format::Raw),
        (kpi(), Delivery::When(above), Format::Mean),
        (Measure::Encrypted { file: "keys".to_owned() }, Delivery::Every(0), Format::Raw),
    ];
    let specifiers = measures.map(|(measure, delivery, format)| Specifier {
        measure,
        interval_ms: 1000,
        delivery,
        format,
        sealed: false,
        limit: false,
    });
    Monitoring { specifiers: specifiers.to_vec(), ..Monitoring::default() }
}

/// What the hypervisor tells after so many seconds.
fn sample(seconds: u64) -> Sample {
    let each = seconds * 1000;
    Sample {
        process: 1 + seconds / 8,
        counted: Counted {
            cpu_ns: each,
            disk: Disk { reads: seconds, read_ns: each, read_bytes: each, ..Disk::default() },
            network: Some(Network { sent_bytes: each, ..Network::default() }),
        },
        memory_resident: each,
        memory_balloon: None,
    }
}

/// A monitoring section, and behind it the file that came with the VM from another site. It is
/// refused; or measuring goes on from it, into blocks that everybody takes, and it can be moved on.
///
/// # Panics
///
/// If a promise is broken.
pub fn history(data: &[u8]) {
    let Ok((section, file)) = postcard::take_from_bytes::<Monitoring>(data) else { return };
    let Ok(history) = History::from_bytes(file) else { return };
    for max in [1 << 10, 1 << 20] {
        let shorter =
            History::from_bytes(&history.to_bytes(max)).expect("what was written is read");
        assert!(shorter.backlog.len() <= history.backlog.len());
    }
    for block in history.backlog.iter().filter_map(|block| block.peek().ok()) {
        assert!(block.last() >= block.first);
    }
    let state = history.state.unwrap_or_default();
    if section.check().is_err() || !state.is_sound() {
        return;
    }
    let (vm, epoch) = (VmId([7; 16]), Epoch(3));
    let mut producer = Producer::new(&section, state, NOW);
    let mut last: Option<u64> = None;
    for second in 0..20 {
        let now = Time(NOW.0 + second * 1000);
        if producer.wants_sample(now) {
            producer.sample(now, sample(second));
        }
        let row = (producer.state().row.saturating_add(1), now);
        let users = (second * 150).to_string();
        producer.row(now, row, "web", &[("users".to_owned(), users)]);
        let row = (producer.state().row.saturating_add(1), now);
        producer.content(now, row, "keys", vec![7; 100]);
        for block in producer.blocks(vm, epoch, now) {
            assert!(last.is_none_or(|last| block.first == last + 1));
            last = Some(block.last());
            let signed = SignedBlock::seal(&block, |_, _| UNSIGNED);
            assert!(signed.peek().is_ok() || block.last() >= 1 << 62, "everybody takes it");
        }
        assert!(producer.state().is_sound() || producer.state().next >= 1 << 62);
        assert!(producer.next().is_none_or(|next| next > now), "nothing is due twice");
    }
    let moved =
        History { state: Some(producer.state().clone()), backlog: vec![] }.to_bytes(1 << 25);
    assert!(History::from_bytes(&moved).is_ok());
}

/// What a guest's end of the KPI port says, line by line. A line says nothing; or it is what the KPI
/// file system writes, and measuring goes on with it, into blocks that everybody takes.
///
/// # Panics
///
/// If a promise is broken.
pub fn guest(data: &[u8]) {
    let mut producer = Producer::new(&section(), Default::default(), NOW);
    let mut last = 0;
    for (second, line) in (0..).zip(data.split(|byte| *byte == b'\n')) {
        let now = Time(NOW.0 + second * 700);
        let row = match port::said(line) {
            Ok(port::Said::Row(row)) => row,
            Ok(port::Said::After(row)) => {
                producer.begin_rows(row);
                continue;
            }
            Err(error) => {
                assert!(error.to_string().len() < 1000, "a refusal is told in few words");
                continue;
            }
        };
        let port::Row { number, saved, load } = row.clone();
        let (table, values) = match load.clone() {
            Load::Fields(file, fields) => (file, Values::Columns(fields)),
            Load::Content(file, content) => (format!("encrypted/{file}"), Values::Content(content)),
        };
        let written = outbox::Row { seq: number, table, saved_ms: saved.0 as i64, values };
        let written = serde_json::to_vec(&written).expect("plain data");
        assert_eq!(port::said(&written), Ok(port::Said::Row(row)));
        match load {
            Load::Fields(file, fields) => producer.row(now, (number, saved), &file, &fields),
            Load::Content(file, content) => {
                producer.content(now, (number, saved), &file, content);
            }
        }
        for block in producer.blocks(VmId([7; 16]), Epoch(3), now) {
            assert_eq!(block.first, last + 1);
            last = block.last();
            let signed = SignedBlock::seal(&block, |_, _| UNSIGNED);
            assert!(signed.peek().is_ok() && signed.size() <= MAX_BLOCK_BYTES);
        }
        assert!(producer.state().is_sound());
    }
}

/// Values that were sealed to a VM's key, as they are once opened: the first byte says how many.
/// They are refused, or sound, and written as they were.
///
/// # Panics
///
/// If a promise is broken.
pub fn opened(data: &[u8]) {
    let Some((count, text)) = data.split_first() else { return };
    let Ok(values) = seal::opened(text, u32::from(*count)) else { return };
    assert_eq!(values.len(), usize::from(*count));
    assert!(values.iter().all(|value| value.reading.is_sound()));
    reads_back(&values);
}

/// Two statements of what a VM has used, in bytes that its owner did sign, one after the other: the
/// first byte says how long the first is. Each is refused, or kept; sums are not less than either.
///
/// # Panics
///
/// If a promise is broken.
pub fn usage(data: &[u8]) {
    let Some((length, rest)) = data.split_first() else { return };
    let (one, other) = rest.split_at(usize::from(*length).min(rest.len()));
    let key = SecretKey::from_seed(&[1; 32]).public();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut book = book(folder.path());
    let mut kept: Vec<Statement> = Vec::new();
    for body in [one, other, one] {
        let Ok(statement) = Statement::read(body) else { continue };
        reads_back(&statement);
        assert!(statement.since <= statement.until);
        let made = Signed::from_parts(body.to_vec(), key, UNSIGNED);
        let taken = book.commit(|book| book.take_statement(&made, &statement, NOW, None, None));
        match taken.expect("a database that works") {
            Entry::New => kept.push(statement),
            Entry::Known => assert!(!kept.is_empty()),
            Entry::Contradiction => {
                assert!(kept.iter().any(|kept| {
                    let (first, then) = if kept.place() <= statement.place() {
                        (kept, &statement)
                    } else {
                        (&statement, kept)
                    };
                    (kept.vm, kept.epoch) == (statement.vm, statement.epoch)
                        && !then.continues(first)
                }));
            }
        }
    }
    let stays = book.stays(&Asked::default(), |_, _| false).expect("a database that works");
    let sums = sum_by(&stays, |_| ());
    let used = sums.get(&()).map_or_else(Used::default, |sum| sum.used);
    for stay in &stays {
        assert!(used.cpu_ns >= stay.used.cpu_ns);
        assert!(used.memory_byte_ms >= stay.used.memory_byte_ms);
        assert!(stay.used.memory_gib_hours() >= 0.0);
    }
}

/// Inputs of [`guest`], as the KPI file system writes them.
pub(super) fn told() -> Vec<Vec<u8>> {
    let row = |seq, table: &str, values| {
        let row = outbox::Row { seq, table: table.to_owned(), saved_ms: NOW.0 as i64, values };
        serde_json::to_string(&row).expect("plain data")
    };
    let users = |number: &str| Values::Columns(vec![("users".to_owned(), number.to_owned())]);
    let keys = || Values::Content(vec![1, 2, 255]);
    [
        vec!["{\"after\":0}".to_owned(), row(1, "web", users("5")), row(2, "web", users("many"))],
        vec![row(7, "encrypted/keys", keys()), row(8, "web", users("1200.5"))],
        vec![row(3, "web", users("1")), "{\"after\":-1}".to_owned(), row(-5, "other", users(""))],
        vec!["{\"seq\":1,\"table\":\"web\"}".to_owned(), "[]".to_owned()],
    ]
    .map(|lines| lines.join("\n").into_bytes())
    .to_vec()
}

/// Inputs of [`opened`].
pub(super) fn sealed() -> Vec<Vec<u8>> {
    let readings = [
        Reading::Integer(42),
        Reading::Number(0.5),
        Reading::Text("many".to_owned()),
        Reading::Content(vec![1, 2, 255]),
    ];
    let value = |reading| Value { specifier: 3, after_ms: -20, of: 2, reading };
    let all: Vec<Value> = readings.into_iter().map(value).collect();
    let parts = (1..=all.len()).map(|count| (count, &all[..count]));
    let bytes = |part: &[Value]| postcard::to_stdvec(part).expect("plain data");
    parts.map(|(count, part)| [&[count as u8], &bytes(part)[..]].concat()).collect()
}

/// Inputs of [`values`], [`history`] and [`usage`], made as a site makes them.
pub(super) fn made() -> [Vec<Vec<u8>>; 3] {
    let (vm, epoch) = (VmId([7; 16]), Epoch(3));
    let section = section();
    let head = postcard::to_stdvec(&section).expect("plain data");
    let mut producer = Producer::new(&section, Default::default(), NOW);
    let (mut blocks, mut histories, mut statements) = (vec![], vec![], vec![]);
    let mut tally = monitoring::usage::Tally::default();
    for second in 0..12 {
        let now = Time(NOW.0 + second * 1000);
        producer.sample(now, sample(second));
        let users = if second % 3 == 0 { "many".to_owned() } else { (second * 200).to_string() };
        let columns = [("users".to_owned(), users)];
        producer.row(now, (producer.state().row + 1, now), "web", &columns);
        producer.content(now, (producer.state().row + 1, now), "keys", vec![5; 40]);
        let history = History { state: Some(producer.state().clone()), backlog: vec![] };
        histories.push([&head[..], &history.to_bytes(1 << 20)].concat());
        let made = producer.blocks(vm, epoch, now);
        blocks.extend(made.iter().map(|block| postcard::to_stdvec(block).expect("plain data")));
        tally.take(now, &sample(second), Bytes::mib(512));
        let stated = tally.state(vm, epoch, second == 11).expect("time has passed");
        statements.push(postcard::to_stdvec(&stated).expect("plain data"));
    }
    let pairs = statements.windows(2).map(|pair| {
        let length = u8::try_from(pair[0].len()).expect("a statement is short");
        [&[length], &pair[0][..], &pair[1][..]].concat()
    });
    let backlog =
        blocks.iter().take(3).map(|body| SignedBlock { body: body.clone(), signature: UNSIGNED });
    let history = History { state: None, backlog: backlog.collect() };
    histories.push([&head[..], &history.to_bytes(1 << 20)].concat());
    let pairs = pairs.collect();
    [blocks, histories, pairs]
}
