//! `cargo xtask chaos`: many faults in one run, several at once.
//!
//! `chaos [--runs N] [--only PART-OF-A-NAME] [--seed S] [--list]`

#![expect(clippy::print_stdout, reason = "a report is what it is for")]

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use federation_tests::chaos::{self, Fault, Report};
use federation_tests::process::{Network, guest_disk, interrupt, interrupted};
use federation_tests::side_by_side;

/// Federations that live at the same time, on each processor. They mostly wait, but for their
/// guests' booting, which is part of the time to recover.
const AT_ONCE_EACH: usize = 2;
/// How long what is held is held.
const HOLD: Duration = Duration::from_secs(60);

struct Arguments {
    runs: usize,
    only: String,
    seed: u64,
    list: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut all = Arguments { runs: usize::MAX, only: String::new(), seed: 1, list: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("not a number: {text}"));
        match word.as_str() {
            "--runs" => all.runs = usize::try_from(number(value()?)?).unwrap_or(usize::MAX),
            "--only" => all.only = value()?,
            "--seed" => all.seed = number(value()?)?,
            "--list" => all.list = true,
            _ => return Err(format!("{word} is not known")),
        }
    }
    Ok(all)
}

fn main() -> ExitCode {
    match begin() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("chaos: {why}");
            ExitCode::FAILURE
        }
    }
}

fn begin() -> Result<bool, String> {
    let arguments = arguments()?;
    let faults = chaos::chosen(chaos::all(HOLD), &arguments.only, arguments.runs, arguments.seed);
    if arguments.list {
        faults.iter().for_each(|fault| println!("{}", fault.name));
        return Ok(true);
    }
    if faults.is_empty() {
        return Err(format!("no fault has {:?} in its name; --list shows all", arguments.only));
    }
    guest_disk()?;
    drop(Network::new(&["a"])?);
    end_well_when_told()?;
    // What a panic says is part of the report.
    std::panic::set_hook(Box::new(|_| {}));
    let report = strike(&faults, arguments.seed);
    println!("\n{report}");
    if interrupted() {
        return Err("interrupted: nothing is left running".to_owned());
    }
    Ok(report.failed() == 0)
}

/// On SIGINT and SIGTERM every federation is taken down before this ends.
fn end_well_when_told() -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|why| why.to_string())?;
    let (sender, armed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
            let (Ok(mut interrupted), Ok(mut terminated)) = signals else { return };
            let _ = sender.send(());
            tokio::select! {
                _ = interrupted.recv() => {}
                _ = terminated.recv() => {}
            }
            interrupt();
        });
    });
    armed.recv().map_err(|_| "signals cannot be listened to".to_owned())
}

fn strike(faults: &[Fault], seed: u64) -> Report {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let at_once = processors * AT_ONCE_EACH;
    let count: usize = faults.iter().map(Fault::count).sum();
    println!("{count} faults in {} lives, {at_once} at once, seed {seed}", faults.len());
    let began = Instant::now();
    let report = Mutex::new(Report::default());
    side_by_side(faults, at_once, |fault| {
        if interrupted() {
            return;
        }
        let ended = chaos::run(fault);
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        if !interrupted() {
            report.add(fault, &ended);
            tell(fault, &ended, began);
        }
    });
    println!("\nin {} s", began.elapsed().as_secs());
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn tell(fault: &Fault, ended: &chaos::Ended, began: Instant) {
    let (at, took) = (began.elapsed().as_secs(), ended.took.as_secs_f64());
    let recovered: Vec<String> =
        ended.recoveries.iter().map(|time| format!("{:.1}", time.as_secs_f64())).collect();
    let recovered = recovered.join(", ");
    let word = if ended.failure.is_some() { "FAILED" } else { "ok" };
    println!(
        "{at:>5} s  {word:<6} {} (recovered in {recovered} s, {took:.1} s in all)",
        fault.name
    );
    if let Some(failure) = &ended.failure {
        println!("{}", failure.why);
        if let Some(kept) = &failure.kept {
            println!("its folder is kept: {}", kept.display());
        }
        println!("again: cargo xtask chaos --only {}", fault.name);
    }
}
