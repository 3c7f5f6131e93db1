use super::*;
use crate::sample::Counted;

const VM: VmId = VmId([7; 16]);
const START: Time = Time(1_800_000_000_000);

fn at(ms: u64) -> Time {
    Time(START.0 + ms)
}

fn specifier(measure: &str, interval_ms: u32, delivery: Delivery, format: Format) -> Specifier {
    let measure = measure.parse().unwrap();
    Specifier { measure, interval_ms, delivery, format, sealed: false, limit: false }
}

fn section(specifiers: Vec<Specifier>) -> Monitoring {
    Monitoring { specifiers, ..Monitoring::default() }
}

fn producer(specifiers: Vec<Specifier>) -> Producer {
    Producer::new(&section(specifiers), State::default(), START)
}

/// What is told by now: time against the start, number of values, value.
fn told(producer: &mut Producer, ms: u64) -> Vec<(i64, u32, Reading)> {
    let blocks = producer.blocks(VM, Epoch(0), at(ms));
    let values = blocks.into_iter().flat_map(|block| block.open);
    let since_start = |value: &Value| value.after_ms + i64::try_from(ms).unwrap();
    values.map(|value| (since_start(&value), value.of, value.reading)).collect()
}

fn write(producer: &mut Producer, ms: u64, row: i64, users: &str) {
    producer.row(at(ms), (row, at(ms)), "web", &[("users".to_owned(), users.to_owned())]);
}

fn integers(told: Vec<(i64, u32, Reading)>) -> Vec<i64> {
    let number = |(_, _, reading)| match reading {
        Reading::Integer(number) => number,
        other => panic!("{other:?}"),
    };
    told.into_iter().map(number).collect()
}

#[test]
fn each_row_is_told_at_once_and_in_order_where_both_intervals_are_zero() {
    let mut producer = producer(vec![specifier("web.users", 0, Delivery::Every(0), Format::Raw)]);
    write(&mut producer, 5, 1, "3");
    write(&mut producer, 5, 2, "4");
    producer.row(at(5), (3, at(5)), "web", &[("load".to_owned(), "9".to_owned())]);
    producer.row(at(5), (4, at(5)), "other", &[("users".to_owned(), "9".to_owned())]);
    write(&mut producer, 6, 5, "many");
    let text = Reading::Text("many".to_owned());
    assert_eq!(
        told(&mut producer, 7),
        [(5, 1, Reading::Integer(3)), (5, 1, Reading::Integer(4)), (6, 1, text)]
    );
    assert_eq!(producer.state().row, 5);
    assert_eq!(producer.next(), None);
}

#[test]
fn a_row_that_comes_again_is_not_told_again() {
    let mut producer = producer(vec![specifier("web.users", 0, Delivery::Every(0), Format::Raw)]);
    write(&mut producer, 0, 1, "3");
    write(&mut producer, 0, 2, "4");
    write(&mut producer, 0, 1, "3");
    assert_eq!(integers(told(&mut producer, 0)), [3, 4]);
}

#[test]
fn rows_that_waited_count_for_when_they_were_stored_as_far_as_the_guests_clock_is_believed() {
    let mut producer = producer(vec![specifier("web.users", 0, Delivery::Every(0), Format::Raw)]);
    let now = 100_000_000;
    let stored = [now - 5_000, now - 4_000, now - 9_000, now + 5_000, now - 4_000, 1];
    for (row, stored) in (1..).zip(stored) {
        let fields = [("users".to_owned(), row.to_string())];
        producer.row(at(now), (row, at(stored)), "web", &fields);
    }
    let times: Vec<i64> = told(&mut producer, now).into_iter().map(|(ms, _, _)| ms).collect();
    let now = i64::try_from(now).unwrap();
    assert_eq!(times, [now - 5_000, now - 4_000, now - 4_000, now, now, now]);
}

#[test]
fn rows_that_were_stored_before_anybody_measured_are_all_told() {
    let mut producer = producer(vec![specifier("web.users", 0, Delivery::Every(0), Format::Raw)]);
    for row in 1..=5_i64 {
        let fields = [("users".to_owned(), row.to_string())];
        let stored = Time(START.0 - 1_000 + row.unsigned_abs());
        producer.row(at(10), (row, stored), "web", &fields);
    }
    assert_eq!(integers(told(&mut producer, 10)), [1, 2, 3, 4, 5]);
}

#[test]
fn of_rows_that_come_faster_than_the_interval_the_newest_of_each_interval_counts() {
    let mut producer = producer(vec![specifier("web.users", 100, Delivery::Every(0), Format::Raw)]);
    for ms in (0..=250).step_by(10) {
        write(&mut producer, ms, i64::try_from(ms).unwrap() + 1, &ms.to_string());
    }
    assert_eq!(integers(told(&mut producer, 250)), [0, 90, 190]);
    assert_eq!(producer.next(), Some(at(300)), "one is held until its interval is over");
    assert_eq!(told(&mut producer, 300), [(300, 1, Reading::Integer(250))]);
}

#[test]
fn formats_are_exact_over_the_delivery_interval() {
    let formats = [Format::Min, Format::Max, Format::Mean, Format::Median, Format::Raw];
    let specifiers = formats.map(|f| specifier("web.users", 0, Delivery::Every(1000), f));
    let mut producer = producer(specifiers.to_vec());
    for (row, users) in [(1, "10"), (2, "2"), (3, "none"), (4, "7"), (5, "3")] {
        write(&mut producer, 100 * u64::try_from(row).unwrap(), row, users);
    }
    assert!(told(&mut producer, 999).is_empty());
    assert_eq!(producer.next(), Some(at(1000)));
    let told_at_1000 = told(&mut producer, 1000);
    let whole = |number: i64| (1000, 4, Reading::Integer(number));
    assert_eq!(
        told_at_1000[..4],
        [whole(2), whole(10), (1000, 4, Reading::Number(5.5)), whole(5)],
        "min, max, mean, median of 10, 2, 7, 3"
    );
    let raw: Vec<i64> = told_at_1000[4..].iter().map(|(ms, _, _)| *ms).collect();
    assert_eq!(raw, [100, 200, 300, 400, 500], "each with its own time");
    assert!(told(&mut producer, 2000).is_empty(), "an empty interval tells nothing");
}

#[test]
fn a_value_after_a_missed_end_of_an_interval_belongs_to_the_next_one() {
    let delivery = Delivery::Every(1000);
    let mut producer = producer(vec![specifier("web.users", 0, delivery, Format::Max)]);
    write(&mut producer, 500, 1, "5");
    write(&mut producer, 1500, 2, "9");
    assert_eq!(told(&mut producer, 1500), [(1000, 1, Reading::Integer(5))]);
    assert_eq!(told(&mut producer, 2400), [(2000, 1, Reading::Integer(9))]);
    write(&mut producer, 2500, 3, "1");
    assert_eq!(producer.next(), Some(at(3000)), "the beat is kept");
}

#[test]
fn the_middle_of_an_even_number_is_the_mean_of_the_middle_two() {
    for (values, middle) in [("1", 1.0), ("1 2", 1.5), ("9 1 5", 5.0), ("4 1 3 2", 2.5)] {
        let delivery = Delivery::Every(10);
        let mut producer = producer(vec![specifier("web.users", 0, delivery, Format::Median)]);
        for (row, value) in values.split(' ').enumerate() {
            write(&mut producer, 0, i64::try_from(row).unwrap() + 1, value);
        }
        assert_eq!(told(&mut producer, 10)[0].2.number(), Some(middle), "{values}");
    }
}

#[test]
fn a_condition_is_told_once_when_it_has_held_for_long_enough_and_again_after_the_hysteresis() {
    let condition = Delivery::When("> 1000 ~ 100 for 30 s".parse().unwrap());
    let mut producer = producer(vec![specifier("web.users", 0, condition, Format::Raw)]);
    let mut row = 0;
    let mut users = |producer: &mut Producer, second: u64, users: u32| {
        row += 1;
        write(producer, second * 1000, row, &users.to_string());
        integers(told(producer, second * 1000))
    };
    assert!(users(&mut producer, 0, 1001).is_empty());
    assert_eq!(producer.next(), Some(at(30_000)));
    assert!(users(&mut producer, 20, 1000).is_empty(), "not above: begins anew");
    assert!(users(&mut producer, 25, 1500).is_empty());
    assert!(users(&mut producer, 54, 1600).is_empty());
    assert_eq!(told(&mut producer, 55_000), [(55_000, 1, Reading::Integer(1600))], "no row needed");
    assert_eq!(producer.next(), None);
    assert!(users(&mut producer, 100, 1700).is_empty(), "told already");
    assert!(users(&mut producer, 110, 950).is_empty(), "back, but not by 100");
    assert!(users(&mut producer, 120, 1700).is_empty());
    assert!(users(&mut producer, 160, 1700).is_empty());
    assert!(users(&mut producer, 170, 900).is_empty());
    assert!(users(&mut producer, 180, 2000).is_empty());
    assert_eq!(users(&mut producer, 211, 1), [2000], "it had held before it fell");
}

#[test]
fn a_condition_without_a_time_is_told_with_the_value_that_makes_it_true() {
    let condition = Delivery::When("< 5".parse().unwrap());
    let mut producer = producer(vec![specifier("web.users", 0, condition, Format::Raw)]);
    for (row, (users, expected)) in
        [(9, vec![]), (4, vec![4]), (3, vec![]), (5, vec![]), (1, vec![1])].into_iter().enumerate()
    {
        write(&mut producer, 0, i64::try_from(row).unwrap() + 1, &users.to_string());
        assert_eq!(integers(told(&mut producer, 0)), expected);
    }
}

fn cpu(process: u64, seconds: u64) -> Sample {
    let counted = Counted { cpu_ns: seconds * 1_000_000_000, ..Counted::default() };
    Sample { process, counted, memory_resident: 4096, memory_balloon: None }
}

#[test]
fn what_the_hypervisor_counts_is_measured_at_its_interval_and_goes_on_over_processes() {
    let raw = |what| specifier(what, 1000, Delivery::Every(0), Format::Raw);
    let mut producer = producer(vec![raw("cpu_time"), raw("cpu_share"), raw("network_sent")]);
    let measured = |producer: &mut Producer, ms: u64, sample: Sample| {
        assert!(producer.wants_sample(at(ms)));
        producer.sample(at(ms), sample);
        told(producer, ms).into_iter().map(|(_, _, r)| r.number().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(measured(&mut producer, 0, cpu(1, 10)), [10.0], "a share needs two measurements");
    assert!(!producer.wants_sample(at(999)));
    assert_eq!(measured(&mut producer, 1000, cpu(1, 12)), [12.0, 2.0]);
    assert_eq!(measured(&mut producer, 3000, cpu(2, 1)), [13.0, 0.5], "another process");
    assert_eq!(producer.next(), Some(at(4000)));
}

#[test]
fn an_interval_of_zero_asks_the_hypervisor_ten_times_a_second() {
    let mut producer = producer(vec![specifier("cpu_time", 0, Delivery::Every(0), Format::Raw)]);
    producer.sample(START, cpu(1, 1));
    assert_eq!(told(&mut producer, 0).len(), 1);
    assert_eq!(producer.next(), Some(at(100)));
}

#[test]
fn measuring_goes_on_at_the_next_site_where_it_was() {
    let mean = specifier("web.users", 0, Delivery::Every(1000), Format::Mean);
    let condition = Delivery::When("> 5 for 1 s".parse().unwrap());
    let alarm = specifier("web.users", 0, condition, Format::Raw);
    let section = section(vec![mean, alarm]);
    let mut source = Producer::new(&section, State::default(), START);
    write(&mut source, 100, 1, "10");
    write(&mut source, 200, 2, "20");
    assert_eq!(source.blocks(VM, Epoch(0), at(300)), []);
    let bytes = postcard::to_stdvec(source.state()).unwrap();
    let state: State = postcard::from_bytes(&bytes).unwrap();
    let mut target = Producer::new(&section, state, at(600));
    write(&mut target, 600, 2, "20");
    write(&mut target, 700, 3, "60");
    let [block] = &target.blocks(VM, Epoch(1), at(1100))[..] else { panic!() };
    assert_eq!((block.first, block.epoch), (1, Epoch(1)));
    let values: Vec<_> =
        block.open.iter().map(|v| (v.specifier, v.of, v.reading.clone())).collect();
    assert_eq!(values, [(0, 3, Reading::Integer(30)), (1, 1, Reading::Integer(60))]);
    assert_eq!(target.state().next, 3);
}

#[test]
fn a_clock_that_is_behind_at_the_next_site_makes_nothing_wait() {
    let section = section(vec![specifier("cpu_time", 1000, Delivery::Every(0), Format::Raw)]);
    let mut source = Producer::new(&section, State::default(), at(3_600_000));
    source.sample(at(3_600_000), cpu(1, 1));
    source.blocks(VM, Epoch(0), at(3_600_000));
    let target = Producer::new(&section, source.state().clone(), START);
    assert_eq!(target.next(), Some(at(1000)));
}

#[test]
fn another_section_tells_what_was_gathered_for_the_old_one_and_keeps_what_stays() {
    let mean = specifier("web.users", 0, Delivery::Every(1000), Format::Mean);
    let most = specifier("web.users", 0, Delivery::Every(1000), Format::Max);
    let old = section(vec![mean.clone(), most.clone()]);
    let mut producer = Producer::new(&old, State::default(), START);
    write(&mut producer, 100, 1, "10");
    let new = section(vec![most]);
    let blocks = producer.set_section(&new, (VM, Epoch(0)), at(200));
    assert_eq!(blocks.len(), 1);
    assert_eq!((blocks[0].section, blocks[0].open.len()), (old.id(), 1));
    write(&mut producer, 300, 2, "4");
    let blocks = producer.blocks(VM, Epoch(0), at(1000));
    assert_eq!((blocks[0].section, blocks[0].first), (new.id(), 2));
    assert_eq!(blocks[0].open[0].reading, Reading::Integer(10));
}

#[test]
fn values_are_numbered_over_all_blocks_and_large_amounts_are_cut_into_several() {
    let raw = specifier("web.users", 0, Delivery::Every(0), Format::Raw);
    let mut producer = producer(vec![raw]);
    let count = MAX_VALUES + 10;
    for row in 1..=count {
        write(&mut producer, 0, i64::try_from(row).unwrap(), "1");
    }
    let long = "x".repeat(MAX_VALUE_BYTES);
    write(&mut producer, 0, 100_000, &long);
    write(&mut producer, 0, 100_001, &long);
    write(&mut producer, 0, 100_002, &format!("{long}y"));
    let blocks = producer.blocks(VM, Epoch(0), at(0));
    let mut next = 1;
    for block in &blocks {
        assert_eq!(block.first, next);
        next = block.last() + 1;
        let bytes = postcard::to_stdvec(block).unwrap().len();
        assert!(bytes + 100 < MAX_BLOCK_BYTES, "{bytes}");
    }
    assert_eq!(next, count as u64 + 3);
    assert_eq!(producer.state().next, next);
    assert_eq!(producer.state().too_large, 1);
}

#[test]
fn a_window_that_is_full_is_told_early() {
    let delivery = Delivery::Every(3_600_000);
    let mut producer = producer(vec![specifier("web.users", 0, delivery, Format::Median)]);
    for row in 1..=MAX_WINDOW {
        write(&mut producer, 1, i64::try_from(row).unwrap(), "1");
    }
    let of = u32::try_from(MAX_WINDOW).unwrap();
    assert_eq!(told(&mut producer, 2), [(1, of, Reading::Integer(1))]);
}

#[test]
fn sealed_values_travel_in_the_sealed_part_alone() {
    let (key, public) = seal::OpeningKey::from_seed(&[1; 32]);
    let open = specifier("web.users", 0, Delivery::Every(0), Format::Raw);
    let hidden = Specifier { sealed: true, ..open.clone() };
    let file = "encrypted/balance";
    let file = Specifier { sealed: true, ..specifier(file, 0, Delivery::Every(0), Format::Raw) };
    let specifiers = vec![open, hidden, file];
    let section = Monitoring { specifiers, sealing_key: Some(public), ..Monitoring::default() };
    let mut producer = Producer::new(&section, State::default(), START);
    write(&mut producer, 0, 1, "5");
    producer.content(at(0), (2, at(0)), "balance", b"42".to_vec());
    producer.content(at(0), (3, at(0)), "other", b"43".to_vec());
    let [block] = &producer.blocks(VM, Epoch(0), at(0))[..] else { panic!() };
    assert_eq!(block.open.len(), 1);
    assert_eq!(block.count(), 3);
    let sealed = block.sealed.as_ref().unwrap();
    let values = key.values((VM, Epoch(0), 1), sealed).unwrap();
    let readings: Vec<_> = values.iter().map(|v| (v.specifier, v.reading.clone())).collect();
    assert_eq!(readings, [(1, Reading::Integer(5)), (2, Reading::Content(b"42".to_vec()))]);
}

#[test]
fn without_a_key_sealed_values_are_not_told_at_all() {
    let open = specifier("web.users", 0, Delivery::Every(0), Format::Raw);
    let hidden = Specifier { sealed: true, ..open.clone() };
    let specifiers = vec![hidden, open];
    let section = Monitoring { specifiers, ..Monitoring::default() };
    let mut producer = Producer::new(&section, State::default(), START);
    write(&mut producer, 0, 1, "5");
    let [block] = &producer.blocks(VM, Epoch(0), at(0))[..] else { panic!() };
    assert_eq!((block.open.len(), block.open[0].specifier, &block.sealed), (1, 1, &None));
    assert_eq!(producer.state().next, 2);
}

#[test]
fn a_state_that_no_site_can_have_made_is_not_sound() {
    let median = specifier("web.users", 0, Delivery::Every(1000), Format::Median);
    let raw = specifier("web.users", 0, Delivery::Every(1000), Format::Raw);
    let mut producer = producer(vec![median, raw]);
    write(&mut producer, 1, 1, "5");
    let sound = producer.state().clone();
    assert!(sound.is_sound() && State::default().is_sound());
    let broken = |change: fn(&mut State)| {
        let mut state = sound.clone();
        change(&mut state);
        !state.is_sound()
    };
    assert!(broken(|state| state.next = 0));
    assert!(broken(|state| state.next = u64::MAX));
    assert!(broken(|state| state.series[0].window.numbers.clear()));
    assert!(broken(|state| state.series[1].window.numbers.push(1.0)));
    let large = |state: &mut State| {
        state.series[1].held = Some(Reading::Text("x".repeat(MAX_VALUE_BYTES + 1)));
    };
    assert!(broken(large));
    let large = |state: &mut State| {
        let text = Reading::Text("x".repeat(MAX_VALUE_BYTES + 1));
        state.series[1].window.each.push((START, text));
    };
    assert!(broken(large));
    assert!(sound.without_windows().is_sound());
}

#[test]
fn a_state_from_the_far_future_makes_nothing_wait_longer_than_its_interval() {
    let section = section(vec![
        specifier("cpu_time", 1000, Delivery::Every(0), Format::Raw),
        specifier("web.users", 0, Delivery::Every(2000), Format::Max),
    ]);
    let mut state = Producer::new(&section, State::default(), START).state().clone();
    state.newest_row = Time(u64::MAX);
    for series in &mut state.series {
        series.measure = Time(u64::MAX);
        series.deliver = Time(u64::MAX);
    }
    let mut producer = Producer::new(&section, state, START);
    assert_eq!(producer.next(), Some(at(1000)));
    write(&mut producer, 100, 1, "7");
    assert_eq!(told(&mut producer, 2000), [(2000, 1, Reading::Integer(7))]);
}
