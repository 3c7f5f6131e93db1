//! Lines of 100 Mbit/s that take their time and lose packets.

use std::time::Duration;

use federation_tests::bench::Failure;
use federation_tests::bench::report::{Aim, report};

use crate::image;
use crate::place::{Cell, Place};
use crate::tally::{BBR, Bench, CUBIC, Entry, name};
use crate::ways::{Job, Way};

/// Bits per second.
const RATE: u64 = 100_000_000;
/// Bytes that are moved, and with `--quick`.
const SIZE: u64 = 64 << 20;
const QUICK_SIZE: u64 = 16 << 20;
/// Round trips in microseconds, and the aim there.
const ROUND_TRIPS: [(u64, f64); 3] = [(200, 1.10), (20_000, 1.10), (100_000, 1.20)];
const LOSSES: [f64; 3] = [0.0, 0.01, 0.05];
/// By how much the time may grow from no loss to the highest.
const GROWTH: f64 = 1.12;
/// A run is given up when it takes so many times the line's time: what others need at 100 ms and
/// 5 % is minutes, and says no more.
const PATIENCE: f64 = 4.0;
/// How often the programs of others are run in a cell, however many rounds there are: they take
/// most of the time, and that they are slow is known after one.
const OTHERS: usize = 1;

const OURS: [Entry; 3] = [(Way::QUIC, CUBIC), (Way::TLS, CUBIC), (Way::AUTO, CUBIC)];
const THEIRS: [Entry; 4] =
    [(Way::Scp, CUBIC), (Way::Scp, BBR), (Way::Rsync, CUBIC), (Way::Rsync, BBR)];

/// Every cell.
pub(crate) fn run(bench: &mut Bench) -> Result<(), Failure> {
    let size = bench.extent.size(SIZE, QUICK_SIZE);
    println!(
        "loss: {} MiB over 100 Mbit/s; each cell is the time over size / (rate × (1 − loss)), \
         headers included; above {PATIENCE} a run is given up",
        size >> 20
    );
    let file = bench.file("random")?;
    image::random(&file, size, 4)?;
    let entries = [&OURS[..], &THEIRS[..]].concat();
    let mut rows: Vec<(u64, f64, Vec<f64>)> = Vec::new();
    for (at, (round_trip, _)) in ROUND_TRIPS.into_iter().enumerate() {
        for (nth, loss) in LOSSES.into_iter().enumerate() {
            if bench.extent.is_quick && at != nth {
                continue;
            }
            let ideal = size as f64 * 8.0 / (RATE as f64 * (1.0 - loss));
            let cell = Cell {
                rate: RATE,
                round_trip: Duration::from_micros(round_trip),
                loss,
                queue: None,
            };
            let place = Place::emulated(cell)?;
            let limit = Duration::from_secs_f64(ideal * PATIENCE);
            let job = Job { file: file.clone(), old: None, limit };
            let name = format!("{} ms, {} %", round_trip as f64 / 1e3, loss * 100.0);
            let tally = bench.compare(&name, &place, &job, &entries, OTHERS)?;
            println!("  {name}");
            tally.show(Some(ideal));
            let ratios = entries.iter().map(|entry| tally.seconds(*entry) / ideal).collect();
            rows.push((round_trip, loss, ratios));
        }
    }
    show(&entries, &rows);
    for (at, (way, _)) in OURS.into_iter().enumerate() {
        for (round_trip, most) in ROUND_TRIPS {
            let cells: Vec<_> = rows.iter().filter(|(of, _, _)| *of == round_trip).collect();
            let worst = cells.iter().map(|(_, _, ratios)| ratios[at]).fold(0.0, f64::max);
            let trip = round_trip as f64 / 1e3;
            let what = format!("{}, the worst cell at {trip} ms", way.name());
            report(&what, worst, Aim::AtMost(most));
            let ratio = |wanted: f64| {
                let cell = cells.iter().find(|(_, loss, _)| *loss == wanted);
                // As times, not as ratios to an ideal that grows too.
                cell.map(|(_, loss, ratios)| ratios[at] / (1.0 - loss))
            };
            let (first, last) = (LOSSES[0], LOSSES[LOSSES.len() - 1]);
            if let (Some(none), Some(most)) = (ratio(first), ratio(last)) {
                let what = format!("{}, time at 5 % over time at 0 % at {trip} ms", way.name());
                report(&what, most / none, Aim::AtMost(GROWTH));
            }
        }
    }
    bench.clear()
}

fn show(entries: &[Entry], rows: &[(u64, f64, Vec<f64>)]) {
    print!("    {:<15}", "cell");
    for entry in entries {
        print!(" {:>18}", name(*entry));
    }
    println!();
    for (round_trip, loss, ratios) in rows {
        let cell = format!("{} ms, {} %", *round_trip as f64 / 1e3, loss * 100.0);
        print!("    {cell:<15}");
        for ratio in ratios {
            let ratio =
                if ratio.is_finite() { format!("{ratio:.2}") } else { format!("> {PATIENCE}") };
            print!(" {ratio:>18}");
        }
        println!();
    }
}
