//! Many at once: sessions that are open and idle, and transfers that are not.

use std::time::{Duration, Instant};

use federation_tests::bench::report::{Aim, report};
use federation_tests::bench::{Failure, median};
use model::Carrier;
use serde_json::json;

use crate::end::{Pair, Transfer};
use crate::image;
use crate::place::Place;
use crate::tally::Bench;

/// Sessions that are open and idle, and with `--quick`.
const SESSIONS: usize = 1000;
const QUICK_SESSIONS: usize = 200;
/// Sessions that open at once: fewer than a proxy takes handshakes of.
const AT_ONCE: usize = 16;
/// How long the idle sessions are looked at: several signs of life each.
const IDLE: Duration = Duration::from_secs(9);
const QUICK_IDLE: Duration = Duration::from_secs(3);
/// Transfers at once, and what they move together, bytes.
const TRANSFERS: [usize; 3] = [1, 4, 16];
const SIZE: u64 = 1 << 30;
const QUICK_SIZE: u64 = 256 << 20;
/// The rate of many over the rate of one.
const FLAT: f64 = 0.9;
/// Nothing takes so long.
const LIMIT: Duration = Duration::from_secs(120);

const CARRIERS: [Carrier; 2] = [Carrier::Quic, Carrier::Tls];

/// Both, over each carrier.
pub(crate) fn run(bench: &mut Bench) -> Result<(), Failure> {
    for carrier in CARRIERS {
        idle(bench, carrier)?;
    }
    at_once(bench)
}

fn idle(bench: &mut Bench, carrier: Carrier) -> Result<(), Failure> {
    let count = bench.extent.size(SESSIONS, QUICK_SESSIONS);
    let watched = bench.extent.size(IDLE, QUICK_IDLE);
    let place = Place::clean()?;
    let folder = bench.folder().join("idle");
    let transfers: Vec<_> = (0..count)
        .map(|number| Transfer { folder: folder.join(number.to_string()), ..Transfer::default() })
        .collect();
    let mut pair = Pair::start(&place, Some(carrier), &transfers)?;
    let memory = |pair: &Pair| -> Result<[f64; 2], Failure> {
        Ok([pair.source.resident_bytes()? as f64, pair.target.resident_bytes()? as f64])
    };
    let (before, begun) = (memory(&pair)?, Instant::now());
    for first in (0..count).step_by(AT_ONCE) {
        let some = AT_ONCE.min(count - first);
        pair.go(first, some)?;
        for _ in 0..some {
            let opened = pair.source.hear("opened", begun + LIMIT)?;
            opened.ok_or("sessions do not open in two minutes")?;
        }
    }
    let opening = begun.elapsed().as_secs_f64();
    let used = [pair.source.seconds()?, pair.target.seconds()?];
    std::thread::sleep(watched);
    let after = memory(&pair)?;
    let used = [pair.source.seconds()? - used[0], pair.target.seconds()? - used[1]];
    let each = [0, 1].map(|end| (after[end] - before[end]) / count as f64 / 1024.0);
    let share = used.map(|seconds| seconds / watched.as_secs_f64() * 100.0);
    println!(
        "many: {count} idle sessions, {carrier}: {:.1} KiB each at the source, {:.1} KiB at the \
         target; opened in {opening:.2} s; idle they take {:.1} % and {:.1} % of a core",
        each[0], each[1], share[0], share[1]
    );
    bench.note(&json!({
        "cell": "idle", "carrier": carrier.to_string(), "sessions": count,
        "kib_source": each[0], "kib_target": each[1], "opening": opening,
        "core_percent_source": share[0], "core_percent_target": share[1],
    }))
}

fn at_once(bench: &mut Bench) -> Result<(), Failure> {
    let size = bench.extent.size(SIZE, QUICK_SIZE);
    println!("many: {} MiB of random bytes in 1, 4 and 16 transfers at once", size >> 20);
    let place = Place::clean()?;
    let mut rates = vec![Vec::new(); CARRIERS.len() * TRANSFERS.len()];
    for round in 0..bench.extent.rounds {
        for (at, carrier) in CARRIERS.into_iter().enumerate() {
            for (nth, count) in TRANSFERS.into_iter().enumerate() {
                let rate = rate(bench, &place, carrier, count, size)?;
                rates[at * TRANSFERS.len() + nth].push(rate);
                bench.note(&json!({
                    "cell": "at once", "carrier": carrier.to_string(), "transfers": count,
                    "round": round, "bytes": size, "seconds": size as f64 / rate,
                }))?;
            }
        }
    }
    let rates: Vec<f64> = rates.into_iter().map(median).collect();
    for (carrier, rates) in CARRIERS.into_iter().zip(rates.chunks(TRANSFERS.len())) {
        let told: Vec<String> = rates.iter().map(|rate| format!("{:.0}", rate / 1e6)).collect();
        println!("  {carrier}: {} MB/s", told.join(", "));
        for (count, rate) in TRANSFERS.into_iter().zip(rates).skip(1) {
            let what = format!("{carrier}, the rate of {count} over that of 1");
            report(&what, rate / rates[0], Aim::AtLeast(FLAT));
        }
    }
    Ok(())
}

/// Bytes a second of so many transfers at once that together move `size`.
fn rate(
    bench: &Bench,
    place: &Place,
    carrier: Carrier,
    count: usize,
    size: u64,
) -> Result<f64, Failure> {
    let target = bench.folder().join("target");
    std::fs::create_dir(&target)?;
    let mut transfers = Vec::new();
    for number in 0..count {
        let file = bench.file(&format!("random-{number}"))?;
        image::random(&file, size / count as u64, number as u64)?;
        let folder = target.join(number.to_string());
        transfers.push(Transfer { file: Some(file), folder, basis: None });
    }
    let pair = Pair::start(place, Some(carrier), &transfers)?;
    let took = pair.run(count, |begun| begun + LIMIT)?;
    let took = took.ok_or("transfers do not end in two minutes")?;
    std::fs::remove_dir_all(&target)?;
    bench.clear()?;
    Ok(size as f64 / took.clock)
}
