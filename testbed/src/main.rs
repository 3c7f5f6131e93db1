//! `sojourn-testbed`: a link to try things on.

use std::io::{IsTerminal, Write};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use rustix::process::{Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use testbed::emulator::MTU;
use testbed::units::{rate, share, show_rate, size, time};
use testbed::{Counters, Direction, Emulator, Loss, Settings, Side, Traffic};

/// How often counters are shown.
const SHOW: Duration = Duration::from_secs(1);
/// How long one side's command may go on when the other's has ended, and how long it may take to
/// end when it was asked to.
const GRACE: Duration = Duration::from_secs(2);
/// How often it is looked whether what was asked to end has done so.
const LOOK: Duration = Duration::from_millis(20);

/// Emulates links between two network namespaces of this machine.
#[derive(Parser)]
#[command(name = "sojourn-testbed", version)]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a link, and run commands on its sides or wait for Ctrl-C.
    #[command(after_help = EXAMPLES)]
    Link(LinkArguments),
}

const EXAMPLES: &str = "\
Examples:
  sojourn-testbed link --rate 100Mbit --rtt 20ms --loss 1%
  sojourn-testbed link --rate 1Gbit --rtt 0.2ms -- ip address
  sojourn-testbed link --rate 10Mbit --rtt 100ms --jitter 5ms --loss 5% --burst 4 --seed 7 \\
      --a 'iperf3 --client 10.77.0.2' --b 'iperf3 --server --one-off'

Side A has the address 10.77.0.1, side B 10.77.0.2; nobody else can be reached from them.
Both directions have the rate, half of the round trip, and all else that is given.
The rate counts IP packets with their headers. Lost packets have used it.
The same seed loses the same packets, counted from the first.
With commands, the link ends when both have ended: 2 seconds after the first, the other is asked to.";

#[derive(Args)]
struct LinkArguments {
    /// Bits per second (as in 100Mbit).
    #[arg(long, value_parser = rate)]
    rate: u64,
    /// What the way there and back takes (as in 20ms), beside sending.
    #[arg(long, value_name = "TIME", value_parser = time)]
    rtt: Duration,
    /// How much more or less a packet may take on its way; order is kept.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "0ms")]
    jitter: Duration,
    /// The share of packets that are lost (as in 1%).
    #[arg(long, value_name = "SHARE", value_parser = share, default_value = "0%")]
    loss: f64,
    /// Lose packets in runs of this mean length.
    #[arg(long, value_name = "PACKETS", requires = "loss")]
    burst: Option<f64>,
    /// The share of packets that overtake all that are on their way.
    #[arg(long, value_name = "SHARE", value_parser = share, default_value = "0%")]
    reorder: f64,
    /// The queue in front of the link (as in 1MiB); by default what it sends in a round trip, and
    /// in 20 ms at least.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    queue: Option<u64>,
    /// The largest packet, bytes.
    #[arg(long, value_name = "BYTES", default_value_t = MTU)]
    mtu: u16,
    /// What chance is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A shell command to run at side A.
    #[arg(long, value_name = "COMMAND")]
    a: Option<String>,
    /// A shell command to run at side B.
    #[arg(long, value_name = "COMMAND")]
    b: Option<String>,
    /// A program to run at side A, with its arguments.
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "a")]
    program: Vec<String>,
}

impl LinkArguments {
    fn settings(&self) -> Settings {
        let mut direction = Direction::new(self.rate, self.rtt / 2);
        direction.jitter = self.jitter;
        direction.loss = match self.burst {
            Some(length) => Loss::Bursts { share: self.loss, length },
            None => Loss::Independent(self.loss),
        };
        direction.reorder = self.reorder;
        direction.queue = self.queue.unwrap_or(direction.queue.max(self.mtu.into()));
        Settings { mtu: self.mtu, seed: self.seed, ..Settings::both(direction) }
    }

    /// The words of the command for a side.
    fn words(&self, side: Side) -> Option<Vec<String>> {
        let shell = |line: &String| ["sh", "-c", line].map(str::to_owned).to_vec();
        match side {
            Side::A if !self.program.is_empty() => Some(self.program.clone()),
            Side::A => self.a.as_ref().map(shell),
            Side::B => self.b.as_ref().map(shell),
        }
    }
}

fn main() -> ExitCode {
    let Verb::Link(arguments) = Arguments::parse().command;
    match run(&arguments) {
        Ok(code) => code,
        Err(why) => {
            say(&format!("sojourn-testbed: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// What the program waits for.
enum Event {
    /// Ctrl-C, or SIGTERM.
    Stop,
    /// A side's command has ended.
    Ended(Side, ExitStatus),
}

fn run(arguments: &LinkArguments) -> Result<ExitCode, String> {
    let (events, heard) = channel();
    stop_on_signals(events.clone())?;
    let emulator = Emulator::new(arguments.settings())?;
    let mut running = 0;
    for side in [Side::B, Side::A] {
        if let Some(words) = arguments.words(side) {
            watch(side, start(&emulator, side, &words)?, events.clone());
            running += 1;
        }
    }
    if running == 0 {
        tell_how_to_enter(&emulator)?;
    }
    let ended = wait(&emulator, &heard, running);
    if running > 0 {
        end_all(&emulator);
    }
    show_end(&emulator.counters());
    let ended = ended?;
    for (side, status) in &ended {
        say(&format!("{side:?}: {status}"));
    }
    Ok(exit_code(&ended))
}

fn stop_on_signals(events: Sender<Event>) -> Result<(), String> {
    let signals = Signals::new([SIGINT, SIGTERM]);
    let mut signals = signals.map_err(|why| format!("signals cannot be waited for: {why}"))?;
    std::thread::spawn(move || {
        for _ in &mut signals {
            // Nobody listens any more when all has ended.
            let _ = events.send(Event::Stop);
        }
    });
    Ok(())
}

/// Starts a command on a side; the kernel ends it if this program is killed.
fn start(emulator: &Emulator, side: Side, words: &[String]) -> Result<Child, String> {
    let enter = format!("--net={}", emulator.side(side).file().display());
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "nsenter", &enter, "--"]).args(words);
    command.spawn().map_err(|why| format!("{}: {why}", words.join(" ")))
}

fn watch(side: Side, mut child: Child, events: Sender<Event>) {
    std::thread::spawn(move || {
        if let Ok(status) = child.wait() {
            let _ = events.send(Event::Ended(side, status));
        }
    });
}

fn tell_how_to_enter(emulator: &Emulator) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    for side in [Side::A, Side::B] {
        let (file, address) = (emulator.side(side).file(), side.address());
        writeln!(out, "nsenter --net={}  # {side:?}, {address}", file.display())
            .and_then(|()| out.flush())
            .map_err(|why| format!("the commands cannot be printed: {why}"))?;
    }
    Ok(())
}

/// Waits for the end, showing what the link carries; answers how commands ended by themselves.
fn wait(
    emulator: &Emulator,
    heard: &Receiver<Event>,
    running: usize,
) -> Result<Vec<(Side, ExitStatus)>, String> {
    let is_shown = running == 0 && std::io::stderr().is_terminal();
    let mut ended = Vec::new();
    let mut before = (Instant::now(), emulator.counters());
    let mut until: Option<Instant> = None;
    loop {
        let pause = until.map_or(SHOW, |until| until.saturating_duration_since(Instant::now()));
        match heard.recv_timeout(pause) {
            Ok(Event::Stop) if running > 0 => {
                return Err("interrupted before the commands had ended".to_owned());
            }
            Ok(Event::Stop) => break,
            Ok(Event::Ended(side, status)) => {
                ended.push((side, status));
                until = Some(Instant::now() + GRACE);
                if ended.len() == running {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) if until.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {
                let now = (Instant::now(), emulator.counters());
                if is_shown {
                    show_now(before, now);
                }
                before = now;
                if let Some(why) = emulator.failure() {
                    return Err(why);
                }
            }
            Err(RecvTimeoutError::Disconnected) => unreachable!("a sender is kept by the caller"),
        }
    }
    Ok(ended)
}

/// Asks what still runs on the sides to end, and then ends it.
fn end_all(emulator: &Emulator) {
    let running = || [Side::A, Side::B].map(|side| emulator.side(side).processes()).concat();
    for signal in [Signal::TERM, Signal::KILL] {
        for process in running() {
            // It may have ended since.
            let _ = kill_process(process, signal);
        }
        let until = Instant::now() + GRACE;
        while !running().is_empty() && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
    }
}

/// 0 where all that ended by themselves said so, else what the first of A and B said.
fn exit_code(ended: &[(Side, ExitStatus)]) -> ExitCode {
    let failed = |wanted: Side| {
        let mut failed = ended.iter().filter(|(side, status)| *side == wanted && !status.success());
        failed.next().map(|(_, status)| status.code())
    };
    match failed(Side::A).or_else(|| failed(Side::B)) {
        None => ExitCode::SUCCESS,
        Some(code) => {
            code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

/// Writes over the line that was shown last.
fn show_now(before: (Instant, Counters), now: (Instant, Counters)) {
    let took = (now.0 - before.0).as_secs_f64();
    let way = |name: &str, before: Traffic, now: Traffic| {
        let rate = (now.bytes - before.bytes) as f64 * 8.0 / took;
        let dropped = now.lost + now.full + now.cut + now.missed;
        format!(
            "{name} {:>10}/s, {} packets, {dropped} dropped",
            show_rate(rate as u64),
            now.packets
        )
    };
    let forward = way("A to B", before.1.forward, now.1.forward);
    let back = way("B to A", before.1.back, now.1.back);
    let mut out = std::io::stderr().lock();
    let _ = write!(out, "\r\x1b[K{forward}; {back}").and_then(|()| out.flush());
}

fn show_end(counters: &Counters) {
    if std::io::stderr().is_terminal() {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    for (name, traffic) in [("A to B", counters.forward), ("B to A", counters.back)] {
        let Traffic { packets, bytes, lost, full, cut: _, missed } = traffic;
        say(&format!(
            "{name}: {packets} packets of {bytes} bytes arrived, {lost} were lost, {full} found the \
             queue full, {missed} were missed"
        ));
    }
}

/// Says something beside what the commands print.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_typed_becomes_the_link() {
        let typed = "sojourn-testbed link --rate 100Mbit --rtt 20ms --loss 5% --burst 4 --jitter 2ms \
                     --reorder 0.1% --queue 1MiB --mtu 9000 --seed 7 -- ping 10.77.0.2";
        let Verb::Link(arguments) = Arguments::parse_from(typed.split_whitespace()).command;
        let settings = arguments.settings();
        let direction = Direction {
            rate: 100_000_000,
            delay: Duration::from_millis(10),
            jitter: Duration::from_millis(2),
            loss: Loss::Bursts { share: 0.05, length: 4.0 },
            reorder: 0.001,
            queue: 1 << 20,
        };
        assert_eq!(settings, Settings { mtu: 9_000, seed: 7, ..Settings::both(direction) });
        assert_eq!(arguments.words(Side::A).unwrap(), ["ping", "10.77.0.2"]);
        assert_eq!(arguments.words(Side::B), None);
    }
}
