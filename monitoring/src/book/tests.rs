use model::SecretKey;

use super::*;
use crate::block::{Reading, Value};

const VM: VmId = VmId([7; 16]);

fn key() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

/// A block with the numbers `first` to `last`.
fn block(vm: VmId, epoch: u64, first: u64, last: u64) -> (SignedBlock, Block) {
    let value = Value { specifier: 0, after_ms: 0, of: 1, reading: Reading::Integer(1) };
    let open = (first..=last).map(|_| value.clone()).collect();
    let section = SectionId([0; 8]);
    let at = Time(0);
    let block = Block { vm, epoch: Epoch(epoch), first, section, at, open, sealed: None };
    (SignedBlock::seal(&block, |kind, body| key().sign(kind, body)), block)
}

fn peer(name: &str) -> PeerName {
    name.parse().unwrap()
}

struct Fixture {
    book: Book,
    folder: tempfile::TempDir,
}

fn fixture(limits: Limits) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let book = Book::open(&folder.path().join("monitoring.db"), limits).unwrap();
    Fixture { book, folder }
}

impl Fixture {
    fn take(&mut self, vm: VmId, epoch: u64, first: u64, last: u64, owed: Option<&str>) -> bool {
        let (signed, block) = block(vm, epoch, first, last);
        let owed = owed.map(peer);
        self.book.commit(|book| book.take(&signed, &block, &[], Time(9), owed.as_ref())).unwrap()
    }

    fn standing(&self) -> Standing {
        self.book.standing(VM, true).unwrap()
    }
}

#[test]
fn a_block_that_comes_again_changes_nothing() {
    let mut fixture = fixture(Limits::default());
    assert!(fixture.take(VM, 0, 1, 10, Some("up")));
    assert!(!fixture.take(VM, 0, 1, 10, Some("up")));
    let standing = fixture.standing();
    assert_eq!((standing.values, standing.missing, standing.owed), (10, 0, 10));
    assert_eq!(fixture.book.owed(&peer("up"), 0, 1 << 20).unwrap().len(), 1);
}

#[test]
fn missing_numbers_are_counted_until_they_come_within_and_between_epochs() {
    let mut fixture = fixture(Limits::default());
    let missing = |fixture: &Fixture| fixture.standing().missing;
    fixture.take(VM, 0, 3, 4, None);
    assert_eq!(missing(&fixture), 2, "1 and 2");
    fixture.take(VM, 0, 7, 7, None);
    assert_eq!(missing(&fixture), 4);
    fixture.take(VM, 1, 10, 12, None);
    assert_eq!(missing(&fixture), 6);
    fixture.take(VM, 0, 5, 6, None);
    fixture.take(VM, 0, 1, 2, None);
    fixture.take(VM, 0, 8, 9, None);
    assert_eq!(missing(&fixture), 0);
    fixture.take(VM, 2, 5, 6, None);
    assert_eq!(missing(&fixture), 0, "taken over from an older copy: it counts from there");
    let late = fixture.book.standing(VM, false).unwrap();
    assert_eq!(late.missing, 0);
}

#[test]
fn a_site_that_came_to_the_path_later_misses_nothing_of_before() {
    let mut fixture = fixture(Limits::default());
    fixture.take(VM, 3, 100, 110, None);
    assert_eq!(fixture.book.standing(VM, false).unwrap().missing, 0);
    assert_eq!(fixture.book.standing(VM, true).unwrap().missing, 99);
}

#[test]
fn what_is_kept_and_owed_is_there_after_a_restart() {
    let mut fixture = fixture(Limits::default());
    fixture.take(VM, 0, 1, 10, Some("up"));
    let state = KeptState { epoch: Epoch(4), packed: true, state: vec![1, 2, 3] };
    fixture.book.commit(|book| book.keep_state(VM, &state)).unwrap();
    let owners = [(Epoch(4), key().public())];
    fixture
        .book
        .commit(|book| book.remember(VM, &owners, &Monitoring::default(), Some(&peer("up"))))
        .unwrap();
    let path = fixture.folder.path().join("monitoring.db");
    drop(std::mem::replace(&mut fixture.book, Book::open(&path, Limits::default()).unwrap()));
    let book = Book::open(&path, Limits::default()).unwrap();
    assert_eq!(book.creditors().unwrap(), [peer("up")]);
    assert_eq!(book.state(VM).unwrap(), Some(state));
    assert_eq!(book.owner(VM, Epoch(4)).unwrap(), Some(key().public()));
    assert_eq!(book.up(VM).unwrap(), Some(Some(peer("up"))));
    assert_eq!(book.up(VmId([9; 16])).unwrap(), None);
    assert!(book.sections(VM).unwrap().contains_key(&Monitoring::default().id()));
    assert_eq!(book.newest(VM, 5).unwrap()[0].block().unwrap().last(), 10);
}

#[test]
fn what_does_not_fit_goes_oldest_first_delivered_before_owed_and_owed_is_counted() {
    let (small, _) = block(VM, 0, 1, 10);
    let one = small.body.len() as u64 + ROW_BYTES;
    let mut fixture = fixture(Limits { vm: 3 * one + one / 2, all: 1 << 30 });
    fixture.take(VM, 0, 1, 10, Some("up"));
    fixture.take(VM, 0, 11, 20, None);
    fixture.take(VM, 0, 21, 30, Some("up"));
    fixture.take(VM, 0, 31, 40, Some("up"));
    let firsts = |fixture: &Fixture| -> Vec<u64> {
        let blocks = fixture.book.newest(VM, 10).unwrap();
        blocks.iter().map(|kept| kept.block().unwrap().first).collect()
    };
    assert_eq!(firsts(&fixture), [1, 21, 31], "the delivered one went");
    assert_eq!(fixture.standing().dropped, 0);
    fixture.take(VM, 0, 41, 50, Some("up"));
    assert_eq!(firsts(&fixture), [21, 31, 41]);
    assert_eq!(fixture.standing().dropped, 10);
    assert!(!fixture.take(VM, 0, 1, 10, None), "it counts once, also if it comes again");
    assert_eq!(fixture.standing().values, 50);
}

#[test]
fn one_vm_cannot_push_out_what_another_owes_while_there_is_delivered_history() {
    let (small, _) = block(VM, 0, 1, 10);
    let one = small.body.len() as u64 + ROW_BYTES;
    let mut fixture = fixture(Limits { vm: 1 << 30, all: 3 * one + one / 2 });
    let other = VmId([8; 16]);
    fixture.take(other, 0, 1, 10, Some("up"));
    for number in 0..10 {
        fixture.take(VM, 0, number * 10 + 1, number * 10 + 10, None);
    }
    assert_eq!(fixture.book.standing(other, true).unwrap().owed, 10);
    assert_eq!(fixture.book.newest(VM, 10).unwrap().len(), 2);
}

#[test]
fn what_is_owed_goes_in_order_in_pieces_and_follows_the_path_when_it_changes() {
    let mut fixture = fixture(Limits::default());
    for number in 0..5 {
        fixture.take(VM, 0, number * 10 + 1, number * 10 + 10, Some("old"));
    }
    let first = fixture.book.owed(&peer("old"), 0, 1).unwrap();
    assert_eq!(first.len(), 1, "at least one");
    fixture.book.commit(|book| book.settle(first[0].id)).unwrap();
    let rest = fixture.book.owed(&peer("old"), first[0].id, 1 << 20).unwrap();
    let firsts: Vec<u64> = rest.iter().map(|kept| kept.block().unwrap().first).collect();
    assert_eq!(firsts, [11, 21, 31, 41]);
    fixture.book.commit(|book| book.give_up(rest[0].id)).unwrap();
    assert_eq!(fixture.standing().dropped, 10);
    fixture.book.commit(|book| book.redirect(VM, &peer("new"))).unwrap();
    assert_eq!(fixture.book.owed(&peer("old"), 0, 1 << 20).unwrap(), []);
    assert_eq!(fixture.book.owed(&peer("new"), 0, 1 << 20).unwrap().len(), 3);
    assert_eq!(fixture.book.backlog(VM).unwrap().len(), 3);
    fixture.book.commit(|book| book.forget(VM)).unwrap();
    assert_eq!(fixture.book.newest(VM, 10).unwrap().len(), 3, "what is owed stays");
}

#[test]
fn work_that_fails_leaves_nothing() {
    let mut fixture = fixture(Limits::default());
    let (signed, made) = block(VM, 0, 1, 10);
    let failed = fixture.book.commit(|book| {
        book.take(&signed, &made, &[], Time(0), None)?;
        Err::<(), _>(BookError::Sqlite(rusqlite::Error::QueryReturnedNoRows))
    });
    assert!(failed.is_err());
    assert_eq!(fixture.standing(), Standing::default());
    assert_eq!(fixture.book.weights.all(), 0);
}

#[test]
fn the_state_of_an_earlier_stay_does_not_replace_that_of_a_later_one() {
    let mut fixture = fixture(Limits::default());
    let kept = |epoch| KeptState { epoch: Epoch(epoch), packed: false, state: vec![7] };
    for epoch in [4, 5, 4] {
        fixture.book.commit(|book| book.keep_state(VM, &kept(epoch))).unwrap();
    }
    assert_eq!(fixture.book.state(VM).unwrap(), Some(kept(5)));
}

#[test]
fn the_census_is_the_sum_of_what_stands_of_each_vm() {
    let limits = Limits { vm: 3 * (2 * 5 + 200), all: 1 << 20 };
    let mut fixture = fixture(limits);
    let [here, above, unheard] = [1, 2, 3].map(|byte| VmId([byte; 16]));
    for (vm, up) in [(here, None), (above, Some(peer("up")))] {
        let section = Monitoring::default();
        fixture.book.commit(|book| book.remember(vm, &[], &section, up.as_ref())).unwrap();
    }
    // Gaps before the first, within an epoch, and between two.
    for (vm, owed) in [(here, None), (above, Some("up")), (unheard, Some("other"))] {
        for (epoch, first, last) in [(0, 3, 4), (0, 7, 7), (2, 11, 12), (3, 2, 3)] {
            fixture.take(vm, epoch, first, last, owed);
        }
    }
    let (book, census) = (&fixture.book, fixture.book.census().unwrap());
    let standings = [(here, true), (above, false), (unheard, false)]
        .map(|(vm, is_primary)| book.standing(vm, is_primary).unwrap());
    assert_eq!(standings.map(|standing| standing.missing), [7, 5, 5]);
    assert_eq!(census.missing, 17);
    let dropped = standings.map(|standing| standing.dropped);
    assert!(dropped[0] == 0 && dropped[1] > 0, "the limit was met: {dropped:?}");
    assert_eq!(census.dropped, dropped.iter().sum::<u64>());
    let owed = [("other", standings[2].owed), ("up", standings[1].owed)];
    assert_eq!(census.owed, owed.map(|(name, count)| (peer(name), count)).into());
    assert_eq!(
        Book::open(&fixture.folder.path().join("new"), limits).unwrap().census().unwrap(),
        Census::default()
    );
}

#[test]
fn settling_tells_once_how_many_values_somebody_waited_for() {
    let mut fixture = fixture(Limits::default());
    fixture.take(VM, 0, 1, 10, Some("up"));
    fixture.take(VM, 0, 11, 12, None);
    let settled =
        fixture.book.commit(|book| Ok([book.settle(1)?, book.settle(1)?, book.settle(2)?]));
    assert_eq!(settled.unwrap(), [10, 0, 0]);
    assert_eq!(fixture.standing().owed, 0);
}
