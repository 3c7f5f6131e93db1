//! Files over a clean link: random bytes; a disk image with holes; and that again, changed.

use std::path::PathBuf;
use std::time::Duration;

use federation_tests::bench::Failure;
use federation_tests::bench::report::{Aim, report};

use crate::image::{self, Change};
use crate::place::Place;
use crate::tally::{BBR, Bench, CUBIC, Entry, Tally};
use crate::ways::{self, Job, Way};

/// Sizes of the file and of the image, bytes; and of both with `--quick`.
const RANDOM: u64 = 1 << 30;
const IMAGE: u64 = 2 << 30;
const QUICK_RANDOM: u64 = 256 << 20;
const QUICK_IMAGE: u64 = 512 << 20;
/// The share of an image that is data, and of that what changes.
const DATA: f64 = 0.4;
const CHANGED: f64 = 0.05;
/// No run takes so long.
const LIMIT: Duration = Duration::from_secs(120);

const OURS: [Entry; 3] = [(Way::QUIC, CUBIC), (Way::TLS, CUBIC), (Way::AUTO, CUBIC)];

/// Random bytes.
pub(crate) fn clean(bench: &mut Bench) -> Result<(), Failure> {
    let size = bench.extent.size(RANDOM, QUICK_RANDOM);
    println!("clean: {} MiB of random bytes over veth", size >> 20);
    let file = bench.file("random")?;
    image::random(&file, size, 1)?;
    let place = Place::clean()?;
    let others = [Way::Bare, Way::Scp, Way::Rsync, Way::Nbd, Way::NbdTls].map(|way| (way, CUBIC));
    let entries = [&OURS[..], &others[..], &[(Way::Bare, BBR)]].concat();
    let tally = compare(bench, "clean", &place, file, None, &entries)?;
    let aims = [(Way::Scp, 1.8), (Way::Rsync, 1.5), (Way::NbdTls, 5.0), (Way::Bare, 0.9)];
    for ours in [Way::TLS, Way::QUIC, Way::AUTO] {
        for (other, least) in aims {
            faster(&tally, ours, other, least);
        }
    }
    bench.clear()
}

/// Disk images.
pub(crate) fn image(bench: &mut Bench) -> Result<(), Failure> {
    let size = bench.extent.size(IMAGE, QUICK_IMAGE);
    let old = bench.file("old")?;
    let extents = image::disk(&old, size, DATA, 2)?;
    let data: u64 = extents.iter().map(|(_, length)| length).sum();
    println!(
        "image: {} MiB, {:.1} % data in {} extents, half of them random and half like text",
        size >> 20,
        data as f64 / size as f64 * 100.0,
        extents.len()
    );
    let place = Place::clean()?;
    let others = [Way::Scp, Way::Rsync, Way::Nbd, Way::NbdTls].map(|way| (way, CUBIC));
    let entries = [&OURS[..], &others[..]].concat();
    let tally = compare(bench, "image", &place, old.clone(), None, &entries)?;
    for ours in [Way::TLS, Way::QUIC, Way::AUTO] {
        faster(&tally, ours, Way::Scp, 4.0);
        faster(&tally, ours, Way::Nbd, 1.3);
    }
    for (how, cell) in [(Change::Extents, "changed extents"), (Change::Blocks, "changed blocks")] {
        let new = bench.file("new")?;
        ways::copy(&old, &new)?;
        let changed = image::change(&new, &extents, CHANGED, how, 3)?;
        let what = match how {
            Change::Extents => "extents of 16 KiB to 1 MiB",
            Change::Blocks => "single blocks of 4 KiB",
        };
        println!("image, {:.1} MB of it changed in {what}", changed as f64 / 1e6);
        let entries = [&OURS[..], &[(Way::Rsync, CUBIC)]].concat();
        let tally = compare(bench, cell, &place, new, Some(old.clone()), &entries)?;
        for ours in [Way::TLS, Way::QUIC, Way::AUTO] {
            let wire = tally.wire((ours, CUBIC)) / changed as f64;
            let what = format!("{}, bytes on the wire / changed bytes", ours.name());
            report(&what, wire, Aim::AtMost(1.15));
            faster(&tally, ours, Way::Rsync, 1.0);
        }
    }
    bench.clear()
}

fn compare(
    bench: &mut Bench,
    cell: &str,
    place: &Place,
    file: PathBuf,
    old: Option<PathBuf>,
    entries: &[Entry],
) -> Result<Tally, Failure> {
    let rounds = bench.extent.rounds;
    let job = Job { file, old, limit: LIMIT };
    let tally = bench.compare(cell, place, &job, entries, rounds)?;
    tally.show(None);
    Ok(tally)
}

fn faster(tally: &Tally, ours: Way, other: Way, least: f64) {
    let times = tally.seconds((other, CUBIC)) / tally.seconds((ours, CUBIC));
    let what = format!("{}, times as fast as {}", ours.name(), other.name());
    report(&what, times, Aim::AtLeast(least));
}
