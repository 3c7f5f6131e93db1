use model::{Monitoring, SecretKey};

use super::*;
use crate::book::Limits;
use crate::usage::{Standing, Used, sum_by};

const VM: VmId = VmId([7; 16]);
const MINUTE: u64 = 60_000;

struct Fixture {
    book: Book,
    folder: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let book = Book::open(&folder.path().join("monitoring.db"), Limits::default()).unwrap();
    Fixture { book, folder }
}

fn peer(name: &str) -> PeerName {
    name.parse().unwrap()
}

fn owner(epoch: u64) -> SecretKey {
    SecretKey::from_seed(&[u8::try_from(epoch).unwrap() + 1; 32])
}

/// A statement of an epoch that began at 0; what was used is told by how long it took.
fn statement(epoch: u64, until: u64) -> Statement {
    let used = Used { cpu_ns: 1_000 * until, memory_byte_ms: u128::from(until), ..Used::default() };
    let (since, until) = (Time(0), Time(until));
    Statement { vm: VM, epoch: Epoch(epoch), since, until, used, is_final: false }
}

fn last(epoch: u64, until: u64) -> Statement {
    Statement { is_final: true, ..statement(epoch, until) }
}

impl Fixture {
    fn take_as(&mut self, key: &SecretKey, statement: &Statement, up: Option<&str>) -> Entry {
        let made = Signed::seal(statement, key.public(), |kind, body| key.sign(kind, body));
        let (up, below) = (up.map(peer), peer("below"));
        self.book
            .commit(|book| {
                book.take_statement(&made, statement, Time(9), Some(&below), up.as_ref())
            })
            .unwrap()
    }

    fn take(&mut self, statement: &Statement) -> Entry {
        self.take_as(&owner(statement.epoch.0), statement, Some("up"))
    }

    fn remember(&mut self, epochs: u64, up: &str) {
        let owners: Vec<_> = (0..epochs).map(|e| (Epoch(e), owner(e).public())).collect();
        let up = peer(up);
        let work = |book: &mut Book| {
            book.remember(VM, &owners, &Monitoring::default(), Some(&up))?;
            book.redirect(VM, &up)
        };
        self.book.commit(work).unwrap();
    }

    /// The ends of all that is kept.
    fn kept(&self) -> Vec<(u64, u64)> {
        let query = "SELECT epoch, until_ms FROM usage ORDER BY epoch, until_ms, final";
        let mut query = self.book.db.prepare(query).unwrap();
        let row = |row: &Row<'_>| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?)));
        query.query_map([], row).unwrap().map(Result::unwrap).collect()
    }

    fn owed(&self, to: &str) -> Vec<(i64, Statement)> {
        let owed = self.book.owed_statements(&peer(to), 0, 1000).unwrap();
        owed.into_iter().map(|kept| (kept.id, kept.signed.peek().unwrap())).collect()
    }

    fn stays(&self, since: Option<u64>, until: Option<u64>) -> Vec<Stay> {
        let asked = Asked { vm: Some(VM), since: since.map(Time), until: until.map(Time) };
        self.book.stays(&asked, |_, epoch| epoch == Epoch(9)).unwrap()
    }

    /// Processor time of a period, in the unit of [`statement`].
    fn used(&self, since: Option<u64>, until: Option<u64>) -> u64 {
        self.stays(since, until).iter().map(|stay| stay.used.cpu_ns / 1_000).sum()
    }
}

#[test]
fn the_newest_statement_says_all_whatever_was_lost_or_came_again() {
    let mut fixture = fixture();
    assert_eq!(fixture.take(&statement(0, MINUTE)), Entry::New);
    assert_eq!(fixture.take(&statement(0, 5 * MINUTE)), Entry::New);
    assert_eq!(fixture.take(&statement(0, 5 * MINUTE)), Entry::Known);
    assert_eq!(fixture.take(&statement(0, 3 * MINUTE)), Entry::Known, "it came late");
    assert_eq!(fixture.take(&last(1, 7 * MINUTE)), Entry::New);
    assert_eq!(fixture.used(None, None), 12 * MINUTE);
    let stays = fixture.stays(None, None);
    assert_eq!(stays[0].standing, Standing::AtLeast, "it is over, and its end is not known");
    assert_eq!(stays[1].standing, Standing::Final);
    assert_eq!((&stays[0].up, &stays[0].via), (&Some(peer("up")), &Some(peer("below"))));
    let sums = sum_by(&stays, |stay| (stay.up.clone(), stay.via.clone()));
    assert_eq!(sums.len(), 1);
}

#[test]
fn a_statement_that_shrinks_contradicts_or_follows_the_last_is_not_taken() {
    let mut fixture = fixture();
    fixture.take(&statement(0, MINUTE));
    fixture.take(&statement(0, 5 * MINUTE));
    let less = |until: u64| Statement {
        used: Used { cpu_ns: 1, ..statement(0, until).used },
        ..statement(0, until)
    };
    let more = |until: u64| Statement {
        used: Used { cpu_ns: u64::MAX, ..statement(0, until).used },
        ..statement(0, until)
    };
    assert_eq!(fixture.take(&less(6 * MINUTE)), Entry::Contradiction, "the newest has more");
    assert_eq!(fixture.take(&more(3 * MINUTE)), Entry::Contradiction, "the newest has less");
    assert_eq!(fixture.take(&more(5 * MINUTE)), Entry::Contradiction, "the same moment");
    let other_beginning = Statement { since: Time(1), ..statement(0, 6 * MINUTE) };
    assert_eq!(fixture.take(&other_beginning), Entry::Contradiction);
    assert_eq!(fixture.take(&last(0, 3 * MINUTE)), Entry::Contradiction, "it went on");
    assert_eq!(fixture.take(&last(0, 5 * MINUTE)), Entry::New);
    assert_eq!(fixture.take(&statement(0, 6 * MINUTE)), Entry::Contradiction, "it is over");
    assert_eq!(fixture.used(None, None), 5 * MINUTE);
}

#[test]
fn the_same_is_kept_in_whatever_order_statements_come() {
    // Some minutes of six hours, from both ends and the middle.
    let times = (0..72_u64).map(|n| 5 * MINUTE * n + 17).collect::<Vec<_>>();
    let mut orders = vec![times.clone(), times.iter().rev().copied().collect()];
    orders.push((0..72).map(|n| times[(n * 29) % 72]).collect());
    let kept: Vec<_> = orders
        .into_iter()
        .map(|order| {
            let mut fixture = fixture();
            for until in order {
                assert_ne!(fixture.take(&statement(0, until)), Entry::Contradiction);
            }
            assert_eq!(fixture.book.statements[&VM], fixture.kept().len() as u64);
            fixture.kept()
        })
        .collect();
    let first_of_hours = (0..6).map(|hour| (0, hour * HOUR_MS + 17));
    let expected: Vec<_> = first_of_hours.chain([(0, *times.last().unwrap())]).collect();
    assert_eq!(kept, vec![expected.clone(), expected.clone(), expected]);
}

#[test]
fn periods_add_up_to_the_whole_and_are_exact_at_full_hours() {
    let mut fixture = fixture();
    // A statement a minute, each 30 ms late; one epoch after the other.
    for minute in 0..=150 {
        fixture.take(&statement(0, minute * MINUTE + 30));
    }
    fixture.take(&last(0, 151 * MINUTE));
    let end = 151 * MINUTE;
    let hours: Vec<u64> =
        (0..4).map(|hour| fixture.used(Some(hour * HOUR_MS), Some((hour + 1) * HOUR_MS))).collect();
    // Each hour's end is stated 30 ms late.
    assert_eq!(hours, [HOUR_MS + 30, HOUR_MS, end - 2 * HOUR_MS - 30, 0]);
    assert_eq!(hours.iter().sum::<u64>(), fixture.used(None, None));
    assert_eq!(fixture.used(Some(HOUR_MS), None), end - HOUR_MS - 30);
    assert_eq!(fixture.used(None, Some(2 * HOUR_MS)), 2 * HOUR_MS + 30);
    assert_eq!(fixture.used(None, Some(100 * HOUR_MS)), end);
    let part = &fixture.stays(Some(HOUR_MS), Some(2 * HOUR_MS))[0];
    assert_eq!(part.standing, Standing::Final, "more was stated afterwards");
    let before = part.before.as_ref().unwrap().peek().unwrap();
    assert_eq!(part.used, part.statement.peek().unwrap().used.since(before.used));
    assert!(fixture.stays(Some(10 * HOUR_MS), None).is_empty(), "nothing was used");
    assert!(fixture.stays(None, Some(0)).is_empty());
}

#[test]
fn use_that_is_stated_late_counts_in_the_hour_in_which_it_is_stated() {
    let mut fixture = fixture();
    fixture.take(&statement(0, 30 * MINUTE));
    // No node until a quarter past two.
    fixture.take(&statement(0, 135 * MINUTE));
    assert_eq!(fixture.used(None, Some(HOUR_MS)), 30 * MINUTE);
    assert_eq!(fixture.used(Some(HOUR_MS), Some(2 * HOUR_MS)), 0);
    assert_eq!(fixture.used(Some(2 * HOUR_MS), Some(3 * HOUR_MS)), 105 * MINUTE);
}

#[test]
fn what_is_owed_is_there_after_a_restart_until_it_is_settled_and_newer_takes_its_place() {
    let mut fixture = fixture();
    fixture.take(&statement(0, MINUTE));
    fixture.take(&statement(0, 2 * MINUTE));
    fixture.take(&statement(0, 3 * MINUTE));
    let path = fixture.folder.path().join("monitoring.db");
    fixture.book = Book::open(&path, Limits::default()).unwrap();
    assert_eq!(fixture.book.creditors().unwrap(), [peer("up")]);
    let owed = fixture.owed("up");
    let ends: Vec<u64> = owed.iter().map(|(_, statement)| statement.until.0).collect();
    assert_eq!(ends, [MINUTE, 3 * MINUTE], "the first of the hour, and the newest");
    for (id, _) in &owed {
        fixture.book.settle_statement(*id).unwrap();
    }
    assert!(fixture.owed("up").is_empty());
    assert!(fixture.book.creditors().unwrap().is_empty());
    assert_eq!(fixture.used(None, None), 3 * MINUTE, "what is delivered stays");
}

#[test]
fn a_path_that_changes_takes_what_is_owed_of_the_newest_epoch_and_leaves_earlier_bills() {
    let mut fixture = fixture();
    fixture.remember(1, "up");
    fixture.take(&statement(0, MINUTE));
    fixture.remember(2, "other");
    let first = &fixture.stays(None, None)[0];
    assert_eq!(first.up, Some(peer("up")), "that stay was for it");
    assert_eq!(fixture.owed("up").len(), 1);
    // Its end comes when the path has changed already.
    fixture.take_as(&owner(0), &last(0, 2 * MINUTE), Some("other"));
    assert_eq!(fixture.stays(None, None)[0].up, Some(peer("up")));
    fixture.take_as(&owner(1), &statement(1, MINUTE), Some("other"));
    fixture.remember(2, "third");
    assert_eq!(fixture.stays(None, None)[1].up, Some(peer("third")));
    assert_eq!((fixture.owed("up").len(), fixture.owed("third").len()), (2, 1));
}

#[test]
fn statements_of_an_owner_that_does_not_count_any_more_give_way() {
    let mut fixture = fixture();
    fixture.take(&statement(1, 50 * MINUTE));
    let adopted = SecretKey::from_seed(&[99; 32]);
    assert_eq!(fixture.take_as(&adopted, &statement(1, MINUTE), None), Entry::New);
    assert_eq!(fixture.used(None, None), MINUTE);
    assert_eq!(fixture.book.statements[&VM], 1);
}

#[test]
fn too_many_statements_cost_the_oldest_hours_and_no_newest_statement() {
    let mut fixture = fixture();
    let work = |book: &mut Book| -> Result<(), BookError> {
        let key = owner(0);
        for hour in 0..MAX_STATEMENTS_VM + 10 {
            let statement = statement(0, hour * HOUR_MS);
            // What was verified is kept; this test is not about signatures.
            let made = Signed::seal(&statement, key.public(), |_, _| Signature([0; 64]));
            book.take_statement(&made, &statement, Time(hour), None, None)?;
        }
        Ok(())
    };
    fixture.take(&last(1, 1));
    fixture.book.commit(work).unwrap();
    let kept = fixture.kept();
    assert_eq!(kept.len() as u64, MAX_STATEMENTS_VM);
    assert_eq!(kept[0], (0, 11 * HOUR_MS), "the oldest hours are gone");
    assert_eq!(*kept.last().unwrap(), (1, 1), "the other epoch's newest is there");
    assert_eq!(fixture.used(None, None), (MAX_STATEMENTS_VM + 9) * HOUR_MS + 1);
}

#[test]
fn what_was_kept_for_long_enough_goes() {
    let mut fixture = fixture();
    fixture.take(&last(0, MINUTE));
    let kept = Time(9).after(USAGE_KEPT);
    fixture.book.sweep_usage(kept).unwrap();
    assert_eq!(fixture.kept().len(), 1);
    fixture.book.sweep_usage(Time(kept.0 + 1)).unwrap();
    assert!(fixture.kept().is_empty());
}

#[test]
fn a_tally_is_kept_until_it_is_closed() {
    let mut fixture = fixture();
    let (key, mut tally) = (owner(3).public(), Tally::default());
    tally.take(Time(5), &crate::sample::Sample::default(), model::Bytes(1));
    fixture.book.keep_tally((VM, Epoch(3)), &key, &tally).unwrap();
    fixture.book =
        Book::open(&fixture.folder.path().join("monitoring.db"), Limits::default()).unwrap();
    assert_eq!(fixture.book.tally(VM, Epoch(3)).unwrap(), Some(tally));
    assert_eq!(fixture.book.tally(VM, Epoch(4)).unwrap(), None);
    assert_eq!(fixture.book.tallies().unwrap(), [(VM, Epoch(3), key)]);
    fixture.book.forget_tally(VM, Epoch(3)).unwrap();
    assert!(fixture.book.tallies().unwrap().is_empty());
}

#[test]
fn a_book_of_the_first_version_is_opened_and_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("monitoring.db");
    let book = Book::open(&path, Limits::default()).unwrap();
    let undo =
        "DROP TABLE violations; DROP TABLE usage; DROP TABLE tallies; PRAGMA user_version = 1;
        INSERT INTO dropped VALUES (x'07070707070707070707070707070707', 3);";
    book.db.execute_batch(undo).unwrap();
    drop(book);
    let book = Book::open(&path, Limits::default()).unwrap();
    assert_eq!(book.standing(VM, false).unwrap().dropped, 3);
    assert!(book.tallies().unwrap().is_empty());
}
