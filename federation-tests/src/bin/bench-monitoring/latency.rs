//! From `close` to the primary: how long a value takes over two hops.
//!
//! Three nodes in a row, a, b, c; the VM of a runs at c. What is measured begins right before the
//! `close` of a file in a mount of the KPI file system on this machine, and ends when the value
//! comes out of a stream of `FollowKpi` at a. It is compared with one sync of a small file and three
//! echoes over as many hops ([`federation_tests::bench::echo`]), turn and turn about.
//!
//! Of a real guest it begins with the line that its application writes to its console right before
//! it opens the file, as seen here: opening and writing the file in the guest are in it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use federation_tests::bench::echo::{EchoCaller, Echoes};
use federation_tests::bench::{Failure, admin, ms, quantiles};
use federation_tests::process::{Federation, SOON, guest_disk};
use model::Monitoring;
use model::monitoring::{Delivery, Format, Specifier};
use proto::admin::{KpiRequest, KpiUpdate, KpiValue, kpi_value};
use tokio::runtime::Runtime;
use tonic::Streaming;

use crate::Extent;
use crate::mount::Mount;
use federation_tests::bench::report::{Aim, report};

/// Echoes in what it is compared with.
const ECHOES: u32 = 3;
/// Rounds before it counts.
const WARM: usize = 20;
/// Between two values: those of one second are far from any limit, and nothing waits for another.
const PAUSE: Duration = Duration::from_millis(20);
/// For one value to come.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a real guest may take to boot, and to tell its values: without KVM it is slow.
const SLOW: Duration = Duration::from_secs(180);
/// How often a guest's console is looked at.
const LOOK: Duration = Duration::from_micros(200);
/// What the guest's application says right before it opens its file.
const WRITES: &str = "sojourn-guest writes";

pub(crate) fn run(extent: &Extent) -> Result<(), Failure> {
    let runtime = Runtime::new()?;
    mounted(extent, &runtime)?;
    if extent.is_quick {
        return Ok(());
    }
    match guest_disk() {
        Ok(disk) => in_guest(&disk, &runtime),
        Err(why) => {
            println!("from inside a guest: not measured: {why}");
            Ok(())
        }
    }
}

/// What is told at once, as it is written.
fn at_once(measure: &str) -> Monitoring {
    let measure = measure.parse().expect("a measure");
    let (delivery, format) = (Delivery::Every(0), Format::Raw);
    let specifier =
        Specifier { measure, interval_ms: 0, delivery, format, sealed: false, limit: false };
    Monitoring { specifiers: vec![specifier], ..Monitoring::default() }
}

/// Places the VM of a at c, and returns its guest's runtime folder.
fn place(federation: &Federation, disk: Option<&Path>, measure: &str) -> PathBuf {
    federation["c"].host("c1", 1);
    let package = federation.monitored("web", disk, &at_once(measure));
    let vm = federation["a"].done(&["vm", "import", &package.display().to_string()]);
    let vm = vm["id"].as_str().expect("a VM has an id").to_owned();
    federation["a"].done(&["vm", "place", "web"]);
    federation.wait_for("it runs at c", SOON, || {
        federation.runs_at(&vm, "c").map(|guest| guest.folder).ok_or_else(|| "not yet".to_owned())
    })
}

fn mounted(extent: &Extent, runtime: &Runtime) -> Result<(), Failure> {
    let rounds = if extent.is_quick { 150 } else { 1_000 };
    let federation = Federation::chain(&["a", "b", "c"]);
    let guest = place(&federation, None, "web.users");
    let folder = federation.folder();
    let database = folder.join("kpi.db");
    let mount = Mount::new(&folder.join("kpi"), &database, Some(&guest.join("kpi")))?;
    let echoes = Echoes::start(2)?;
    let (mut values, mut bare) = runtime.block_on(async {
        let mut follow = Follow::begin(federation["a"].folder()).await?;
        let mut echo = EchoCaller::connect(echoes.address).await?;
        let (mut values, mut bare) = (Vec::new(), Vec::new());
        for round in 0..WARM + rounds {
            let number = i64::try_from(round)?;
            let value = one(&mount.file("web"), number, &mut follow).await?;
            tokio::time::sleep(PAUSE).await;
            let begun = Instant::now();
            sync(&folder.join("small"), number)?;
            for _ in 0..ECHOES {
                echo.call().await?;
            }
            if round >= WARM {
                values.push(value);
                bare.push(begun.elapsed());
            }
        }
        Ok::<_, Failure>((values, bare))
    })?;
    let mut syncs = Vec::new();
    for n in 0..200 {
        let begun = Instant::now();
        sync(&folder.join("small"), n)?;
        syncs.push(begun.elapsed());
    }
    let (value, bare) = (quantiles(&mut values), quantiles(&mut bare));
    println!("From close on a host mount to the value two hops away, {rounds} times:");
    println!("    p50 {:.2} ms, p99 {:.2} ms", value.0, value.1);
    println!(
        "    one sync and {ECHOES} echoes over two hops: p50 {:.2} ms, p99 {:.2} ms (a sync \
         alone: {:.2} ms)",
        bare.0,
        bare.1,
        quantiles(&mut syncs).0
    );
    report("p50 over p50", value.0 / bare.0, Aim::AtMost(2.0));
    Ok(())
}

/// Writes a row, and returns how long its value takes from right before the close.
async fn one(path: &Path, number: i64, follow: &mut Follow) -> Result<Duration, Failure> {
    let mut file = File::create(path)?;
    file.write_all(format!("users\n{number}\n").as_bytes())?;
    let begun = Instant::now();
    // Its store waits for the disk, and nothing else is to be done meanwhile.
    drop(file);
    loop {
        let (came, values) = follow.next(LIMIT).await?;
        if values.iter().any(|value| value.value == Some(kpi_value::Value::Integer(number))) {
            return Ok(came - begun);
        }
    }
}

fn sync(path: &Path, number: i64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(format!("users\n{number}\n").as_bytes())?;
    file.sync_all()
}

/// The stream of a VM's values at its primary.
struct Follow(Streaming<KpiUpdate>);

impl Follow {
    async fn begin(site: &Path) -> Result<Self, Failure> {
        let ask = KpiRequest { vm: "web".to_owned(), follow: true, last: 1, ..Default::default() };
        let mut stream = admin(site).await?.follow_kpi(ask).await?.into_inner();
        // What there is already comes first.
        stream.message().await?;
        Ok(Self(stream))
    }

    /// The next values, and when they came.
    async fn next(&mut self, limit: Duration) -> Result<(Instant, Vec<KpiValue>), Failure> {
        let next = tokio::time::timeout(limit, self.0.message()).await;
        let update = next.map_err(|_| format!("no value came in {limit:?}"))??;
        Ok((Instant::now(), update.ok_or("the stream of values has ended")?.values))
    }
}

fn in_guest(disk: &Path, runtime: &Runtime) -> Result<(), Failure> {
    const ROWS: usize = 60;
    let mut federation = Federation::new();
    for name in ["a", "b", "c"] {
        federation.add_real(name).start();
    }
    federation.join("a", "b");
    federation.join("b", "c");
    let guest = place(&federation, Some(disk), "web.current_users");
    let console = guest.join("console.log");
    let mut times: Vec<Duration> = runtime.block_on(async {
        // The guest's n-th line is about its n-th row, which is its VM's n-th value.
        let watcher = std::thread::spawn(move || watch(&console, ROWS));
        let mut follow = Follow::begin(federation["a"].folder()).await?;
        let mut came = vec![None; ROWS];
        while came.iter().any(Option::is_none) {
            let (at, values) = follow.next(SLOW).await?;
            for value in values {
                let place = usize::try_from(value.number)?.checked_sub(1);
                if let Some(first) = place.and_then(|place| came.get_mut(place)) {
                    first.get_or_insert(at);
                }
            }
        }
        let lines = watcher.join().map_err(|_| "the guest's console cannot be read")??;
        let both = lines.into_iter().zip(came.into_iter().flatten());
        Ok::<_, Failure>(both.map(|(line, came)| came.saturating_duration_since(line)).collect())
    })?;
    times = times.split_off(ROWS / 4);
    let (median, worst) = quantiles(&mut times);
    println!(
        "From inside a guest, from the line before it opens the file to the value two hops away, \
         {} times: p50 {median:.1} ms, p99 {worst:.1} ms",
        times.len()
    );
    println!("    (with opening and writing in the guest; seen every {:.1} ms)", ms(LOOK));
    Ok(())
}

/// When each of the first lines of a guest's application was seen on its console.
fn watch(console: &Path, lines: usize) -> Result<Vec<Instant>, Failure> {
    let until = Instant::now() + SLOW;
    let (mut seen, mut size) = (Vec::new(), 0);
    while seen.len() < lines {
        let now = std::fs::metadata(console).map_or(0, |file| file.len());
        let at = Instant::now();
        if now != size {
            size = now;
            let text = String::from_utf8_lossy(&std::fs::read(console)?).into_owned();
            // A line counts when it has its end.
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let count = whole.lines().filter(|line| line.contains(WRITES)).count();
            seen.resize(count.min(lines).max(seen.len()), at);
        }
        if at > until {
            return Err("the guest's application says nothing: cargo xtask guest-image".into());
        }
        std::thread::sleep(LOOK);
    }
    Ok(seen)
}
