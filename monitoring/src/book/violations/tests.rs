use model::SecretKey;
use model::key::Strict;
use model::monitoring::{Format, Specifier};

use super::*;
use crate::block::Reading;
use crate::book::Limits;

const VM: VmId = VmId([7; 16]);

fn specifier(limit: bool) -> Specifier {
    Specifier {
        measure: "web.users".parse().unwrap(),
        interval_ms: 0,
        delivery: Delivery::When("> 10".parse().unwrap()),
        format: Format::Raw,
        sealed: false,
        limit,
    }
}

/// The first is a limit of service, the second is none.
fn section() -> Monitoring {
    Monitoring { specifiers: vec![specifier(true), specifier(false)], ..Monitoring::default() }
}

fn value(specifier: u16, number: i64) -> Value {
    Value { specifier, after_ms: 5, of: 1, reading: Reading::Integer(number) }
}

fn told(first: u64, open: Vec<Value>) -> (SignedBlock, Block) {
    let key = SecretKey::from_seed(&[1; 32]);
    let (epoch, section, at) = (Epoch(3), section().id(), Time(1_000));
    let block = Block { vm: VM, epoch, first, section, at, open, sealed: None };
    (SignedBlock::seal(&block, |kind, body| key.sign(kind, body)), block)
}

fn take(book: &mut Book, first: u64, open: Vec<Value>, hidden: &[Value]) {
    let (signed, block) = told(first, open);
    book.commit(|book| book.take(&signed, &block, hidden, Time(2_000), None)).unwrap();
}

fn book(folder: &tempfile::TempDir) -> Book {
    Book::open(&folder.path().join("monitoring.db"), Limits::default()).unwrap()
}

#[test]
fn a_limit_that_is_broken_is_kept_once_with_the_signed_word_of_the_owner_and_after_the_vm() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = book(&folder);
    take(&mut book, 1, vec![value(0, 50)], &[]);
    assert_eq!(book.violations(None).unwrap(), [], "its section is not known here");
    book.commit(|book| book.remember(VM, &[], &section(), None)).unwrap();
    for _ in 0..2 {
        take(&mut book, 2, vec![value(1, 20), value(0, 51), value(9, 1)], &[value(0, 52)]);
    }
    let found = book.violations(Some(VM)).unwrap();
    let seen: Vec<_> = found.iter().map(|one| (one.number, one.at, one.value)).collect();
    assert_eq!(seen, [(3, Time(1_005), Some(51.0)), (5, Time(1_005), Some(52.0))]);
    let one = &found[0];
    assert_eq!((one.measure.as_str(), one.condition.as_str()), ("web.users", "> 10"));
    assert_eq!((one.epoch, one.received), (Epoch(3), Time(2_000)));
    assert!(one.evidence.is_of(&SecretKey::from_seed(&[1; 32]).public(), &Strict));
    assert!(one.evidence.peek().unwrap().open.contains(&value(0, 51)));
    book.commit(|book| book.forget(VM)).unwrap();
    drop(book);
    assert_eq!(self::book(&folder).violations(Some(VM)).unwrap(), found);
    assert_eq!(self::book(&folder).violations(Some(VmId([8; 16]))).unwrap(), []);
}

#[test]
fn a_flood_of_violations_is_bounded_and_the_newest_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = book(&folder);
    book.commit(|book| book.remember(VM, &[], &section(), None)).unwrap();
    let many = MAX_OF_VM as u64 + 50;
    for first in 1..=many {
        let (signed, block) = told(first, vec![value(0, 11)]);
        book.note_violations(&signed, &block, &[], Time(0)).unwrap();
    }
    let kept = book.violations(None).unwrap();
    assert_eq!((kept.len(), kept[0].number, kept[kept.len() - 1].number), (MAX_OF_VM, 51, many));
    let bulk = Value { reading: Reading::Text("x".repeat(500_000)), ..value(1, 0) };
    for first in many + 1..many + 30 {
        let (signed, block) = told(first, vec![value(0, 11), bulk.clone()]);
        book.note_violations(&signed, &block, &[], Time(0)).unwrap();
    }
    let kept = book.violations(None).unwrap();
    let bytes: usize = kept.iter().map(|one| one.evidence.body.len()).sum();
    assert!(bytes as u64 <= MAX_BYTES.0 && kept.len() > 1, "{bytes} bytes in {}", kept.len());
    assert_eq!(book.limited.bytes, bytes as u64, "what is counted is what is there");
    assert_eq!(kept[kept.len() - 1].number, many + 29);
}
