use model::key::Strict;
use model::{PublicKey, SecretKey};

use super::*;
use crate::sample::{Counted, Disk, Network};

const VM: VmId = VmId([7; 16]);
const MEMORY: Bytes = Bytes(1 << 30);
const SECOND: u64 = 1_000;

/// A look at a process that has run for so many milliseconds.
fn sample(process: u64, cpu_ms: u64) -> Sample {
    let disk = Disk { read_bytes: 10 * cpu_ms, written_bytes: 20 * cpu_ms, ..Disk::default() };
    let counted = Counted { cpu_ns: cpu_ms * 1_000_000, disk, network: None };
    Sample { process, counted, ..Sample::default() }
}

fn with_network(sample: Sample, sent_bytes: u64) -> Sample {
    let network = Some(Network { sent_bytes, ..Network::default() });
    Sample { counted: Counted { network, ..sample.counted }, ..sample }
}

fn statement() -> Statement {
    let network = Some(Traffic { received_bytes: 5, sent_bytes: 6 });
    Statement {
        vm: VM,
        epoch: Epoch(2),
        since: Time(1_000),
        until: Time(2_000),
        used: Used {
            cpu_ns: 1,
            memory_byte_ms: 2,
            disk_read_bytes: 3,
            disk_written_bytes: 4,
            network,
        },
        is_final: false,
    }
}

#[test]
fn a_tally_adds_up_processes_and_the_memory_of_those_that_live() {
    let mut tally = Tally::default();
    assert_eq!(tally.state(VM, Epoch(0), true), None, "a guest that was never seen used nothing");
    tally.take(Time(0), &sample(1, 0), MEMORY);
    tally.take(Time(10 * SECOND), &sample(1, 4_000), MEMORY);
    // Nobody has it for twenty seconds; then it is there again, and has run for one.
    tally.take(Time(30 * SECOND), &sample(2, 1_000), MEMORY);
    tally.take(Time(35 * SECOND), &sample(2, 2_000), MEMORY);
    let stated = tally.state(VM, Epoch(3), false).unwrap();
    assert_eq!((stated.since, stated.until), (Time(0), Time(35 * SECOND)));
    assert_eq!(stated.used.cpu_ns, 6_000_000_000);
    assert_eq!(stated.used.disk_read_bytes, 60_000);
    assert_eq!(stated.used.disk_written_bytes, 120_000);
    assert_eq!(stated.used.memory_byte_ms, u128::from(MEMORY.0) * 15_000);
    assert!((stated.used.memory_gib_hours() - 15.0 / 3600.0).abs() < 1e-12);
    assert_eq!(stated.used.network, None, "what nobody counts is not zero");
}

#[test]
fn a_tally_that_is_kept_goes_on_after_a_restart_with_what_the_process_did_meanwhile() {
    let mut tally = Tally::default();
    tally.take(Time(0), &sample(1, 100), MEMORY);
    tally.state(VM, Epoch(0), false).unwrap();
    let kept = postcard::to_stdvec(&tally).unwrap();
    // A minute without a node.
    let mut tally: Tally = postcard::from_bytes(&kept).unwrap();
    tally.take(Time(60 * SECOND), &sample(1, 9_000), MEMORY);
    assert_eq!(tally.used().cpu_ns, 9_000_000_000);
    assert_eq!(tally.used().memory_byte_ms, u128::from(MEMORY.0) * 60_000);
}

#[test]
fn looks_that_come_again_late_or_under_a_clock_that_goes_back_count_nothing_twice() {
    let mut tally = Tally::default();
    for (at, cpu) in [(10, 4_000), (20, 8_000), (20, 8_000), (19, 7_500), (15, 8_000), (5, 9_000)] {
        tally.take(Time(at * SECOND), &sample(1, cpu), MEMORY);
    }
    assert_eq!(tally.used().cpu_ns, 9_000_000_000);
    assert_eq!(tally.used().memory_byte_ms, u128::from(MEMORY.0) * 10_000);
    let stated = tally.state(VM, Epoch(0), false).unwrap();
    assert_eq!(stated.until, Time(20 * SECOND));
    tally.take(Time(6 * SECOND), &sample(1, 9_500), MEMORY);
    assert_eq!(tally.state(VM, Epoch(0), false), None, "the clock has to come back first");
    let last = tally.state(VM, Epoch(0), true).unwrap();
    assert!(last.continues(&stated), "but the end is told with all that was used");
    assert_eq!(last.used.cpu_ns, 9_500_000_000);
}

#[test]
fn traffic_counts_from_when_it_is_measured_and_zero_is_measured() {
    let mut tally = Tally::default();
    tally.take(Time(0), &with_network(sample(1, 0), 0), MEMORY);
    let none = tally.state(VM, Epoch(0), false).unwrap();
    assert_eq!(none.used.network, Some(Traffic::default()));
    tally.take(Time(1), &with_network(sample(1, 1), 7), MEMORY);
    // The next process is on a hypervisor that cannot count it.
    tally.take(Time(2), &sample(2, 1), MEMORY);
    let stated = tally.state(VM, Epoch(0), false).unwrap();
    assert_eq!(stated.used.network.unwrap().sent_bytes, 7);
    assert!(stated.continues(&none));
}

#[test]
fn statements_are_due_by_interval_and_at_each_full_hour() {
    const MINUTE: Duration = Duration::from_secs(60);
    let mut tally = Tally::default();
    assert_eq!(tally.due(MINUTE), None);
    let start = Time(HOUR_MS - 90 * SECOND);
    tally.take(start, &sample(1, 0), MEMORY);
    assert!(tally.due(MINUTE).unwrap() <= start, "at once");
    tally.state(VM, Epoch(0), false).unwrap();
    assert_eq!(tally.due(MINUTE), Some(Time(HOUR_MS - 30 * SECOND)));
    tally.take(Time(HOUR_MS - 30 * SECOND), &sample(1, 1), MEMORY);
    tally.state(VM, Epoch(0), false).unwrap();
    assert_eq!(tally.due(MINUTE), Some(Time(HOUR_MS)), "before the minute is over");
}

#[test]
fn a_statement_takes_little_and_every_altered_byte_of_it_is_noticed() {
    let (key, other) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
    let mut large = statement();
    large.used.memory_byte_ms = u128::from(MEMORY.0) * 400 * 24 * u128::from(HOUR_MS);
    let made = Signed::seal(&large, key.public(), |kind, body| key.sign(kind, body));
    assert!(made.body.len() < 80, "{}", made.body.len());
    assert_eq!(made.open(&key.public(), &Strict), Ok(large.clone()));
    let open = |body: Vec<u8>, key: PublicKey| {
        Signed::<Statement>::from_parts(body, key, made.signature).open(&key, &Strict)
    };
    assert!(open(made.body.clone(), other.public()).is_err(), "another owner's epoch");
    for at in 0..made.body.len() {
        let mut altered = made.body.clone();
        altered[at] ^= 1;
        assert!(open(altered, key.public()).is_err(), "byte {at}");
    }
    // Each field, as somebody between would rather have it.
    let fields: [fn(&mut Statement); 12] = [
        |s| s.vm = VmId([8; 16]),
        |s| s.epoch = Epoch(3),
        |s| s.since = Time(999),
        |s| s.until = Time(2_001),
        |s| s.used.cpu_ns += 1,
        |s| s.used.memory_byte_ms += 1,
        |s| s.used.disk_read_bytes += 1,
        |s| s.used.disk_written_bytes += 1,
        |s| s.used.network = None,
        |s| s.used.network = Some(Traffic::default()),
        |s| s.used.network.as_mut().unwrap().sent_bytes += 1,
        |s| s.is_final = true,
    ];
    for (at, alter) in fields.into_iter().enumerate() {
        let mut altered = large.clone();
        alter(&mut altered);
        assert!(open(postcard::to_stdvec(&altered).unwrap(), key.public()).is_err(), "field {at}");
    }
}

#[test]
fn a_statement_that_shrinks_or_follows_the_last_does_not_continue() {
    let now = Statement { until: Time(3_000), ..statement() };
    assert!(now.continues(&statement()));
    assert!(!statement().continues(&now));
    assert!(!statement().continues(&statement()));
    let fields: [fn(&mut Statement); 9] = [
        |s| s.since = Time(1_001),
        |s| s.until = Time(1_999),
        |s| s.used.cpu_ns -= 1,
        |s| s.used.memory_byte_ms -= 1,
        |s| s.used.disk_read_bytes -= 1,
        |s| s.used.disk_written_bytes -= 1,
        |s| s.used.network = None,
        |s| s.used.network.as_mut().unwrap().received_bytes -= 1,
        |s| s.used.network.as_mut().unwrap().sent_bytes -= 1,
    ];
    for (at, shrink) in fields.into_iter().enumerate() {
        let mut less = now.clone();
        shrink(&mut less);
        assert!(!less.continues(&statement()), "field {at}");
    }
    let last = Statement { is_final: true, ..statement() };
    assert!(last.continues(&statement()), "the end, at the same moment");
    assert!(!now.continues(&last), "nothing comes after it");
    let unknown = Statement { used: Used { network: None, ..statement().used }, ..statement() };
    assert!(now.continues(&unknown), "it was not measured before");
}

#[test]
fn what_is_no_statement_is_not_read() {
    let bytes = postcard::to_stdvec(&statement()).unwrap();
    assert_eq!(Statement::read(&bytes), Ok(statement()));
    assert_eq!(Statement::read(&bytes[1..]), Err(Malformed));
    assert_eq!(Statement::read(&[bytes.clone(), vec![0]].concat()), Err(Malformed));
    assert_eq!(Statement::read(&[0; MAX_STATEMENT_BYTES + 1]), Err(Malformed));
    for (since, until) in [(2_001, 2_000), (0, 1 << 54)] {
        let odd = Statement { since: Time(since), until: Time(until), ..statement() };
        assert_eq!(Statement::read(&postcard::to_stdvec(&odd).unwrap()), Err(Malformed));
    }
}

#[test]
fn sums_are_as_complete_as_their_least_complete_stay_and_never_overflow() {
    let key = SecretKey::from_seed(&[1; 32]);
    let stay = |epoch: u64, cpu_ns: u64, standing: Standing| Stay {
        vm: VM,
        epoch: Epoch(epoch),
        up: None,
        via: None,
        since: Time(epoch),
        until: Time(epoch + 10),
        used: Used { cpu_ns, ..statement().used },
        standing,
        statement: Signed::seal(&statement(), key.public(), |kind, body| key.sign(kind, body)),
        before: None,
    };
    let mut stays = vec![stay(1, 5, Standing::Final), stay(2, 6, Standing::Open)];
    let sum = |stays: &[Stay]| sum_by(stays, |stay| stay.vm).remove(&VM).unwrap();
    let both = sum(&stays);
    assert_eq!((both.stays, both.used.cpu_ns, both.standing), (2, 11, Standing::Open));
    assert_eq!((both.since, both.until), (Time(1), Time(12)));
    assert_eq!(both.used.network.unwrap().sent_bytes, 12);
    stays.push(stay(3, u64::MAX, Standing::AtLeast));
    stays[2].used.network = None;
    let all = sum(&stays);
    assert_eq!((all.used.cpu_ns, all.standing), (u64::MAX, Standing::AtLeast));
    assert_eq!(all.used.network, None, "not known of all");
}
