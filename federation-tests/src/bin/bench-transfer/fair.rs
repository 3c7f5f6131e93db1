//! A transfer beside one TCP connection, on a line with a queue of one bandwidth-delay product.

use std::time::{Duration, Instant};

use federation_tests::bench::Failure;
use federation_tests::bench::report::{Aim, report};
use model::Carrier;
use serde_json::json;

use crate::bare::Flow;
use crate::end::{Pair, Transfer};
use crate::image;
use crate::place::{Cell, Place};
use crate::tally::{Bench, CUBIC};

const RATE: u64 = 100_000_000;
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// How long both are looked at, and with `--quick`.
const WATCHED: Duration = Duration::from_secs(20);
const QUICK_WATCHED: Duration = Duration::from_secs(8);
/// How much later the transfer begins, in the second try.
const LATER: Duration = Duration::from_secs(5);
const QUICK_LATER: Duration = Duration::from_secs(2);
/// What neither may be below.
const SHARE: f64 = 0.25;

/// Both carriers, together with the flow and after it.
pub(crate) fn run(bench: &mut Bench) -> Result<(), Failure> {
    let watched = bench.extent.size(WATCHED, QUICK_WATCHED);
    let queue = RATE * ROUND_TRIP.as_millis() as u64 / 8_000;
    println!(
        "fair: beside one TCP connection (cubic), 100 Mbit/s, 20 ms, a queue of {queue} bytes"
    );
    // More than the line moves meanwhile.
    let file = bench.file("random")?;
    image::random(&file, RATE / 8 * watched.as_secs() * 5 / 4, 5)?;
    for carrier in [Carrier::Quic, Carrier::Tls] {
        for later in [Duration::ZERO, bench.extent.size(LATER, QUICK_LATER)] {
            let cell = Cell { rate: RATE, round_trip: ROUND_TRIP, loss: 0.0, queue: Some(queue) };
            let place = Place::emulated(cell)?;
            place.set_congestion(CUBIC)?;
            let folder = bench.folder().join("target");
            let transfer =
                Transfer { file: Some(file.clone()), folder: folder.clone(), basis: None };
            let [ours, other] = watch(&place, carrier, transfer, watched, later)?;
            std::fs::remove_dir_all(&folder)?;
            let span = (watched - later).as_secs_f64();
            let rates = [ours, other].map(|bytes| bytes * 8.0 / span / 1e6);
            let [mine, its] = rates;
            let start = later.as_secs();
            println!("  {carrier}, {start} s after the flow: {mine:.1} beside {its:.1} Mbit/s");
            bench.note(&json!({
                "cell": "fair", "carrier": carrier.to_string(), "later": start,
                "seconds": span, "bytes": ours, "flow_bytes": other, "missed": place.missed(),
            }))?;
            let share = ours / (ours + other);
            report("the share of whoever has less", share.min(1.0 - share), Aim::AtLeast(SHARE));
            if place.missed() > 0 {
                println!("    the emulator was too slow for {} packets", place.missed());
            }
        }
    }
    bench.clear()
}

/// Bytes of the transfer and of the flow while both are there.
fn watch(
    place: &Place,
    carrier: Carrier,
    transfer: Transfer,
    watched: Duration,
    later: Duration,
) -> Result<[f64; 2], Failure> {
    let mut pair = Pair::start(place, Some(carrier), &[transfer])?;
    let begun = Instant::now();
    let mut flow = Flow::start(place)?;
    sleep_until(begun + later);
    pair.go(0, 1)?;
    let before = flow.bytes()?;
    sleep_until(begun + watched);
    Ok([pair.target.ask("wire")? as f64, (flow.bytes()? - before) as f64])
}

fn sleep_until(then: Instant) {
    std::thread::sleep(then.saturating_duration_since(Instant::now()));
}
